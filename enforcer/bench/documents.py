"""Configurations that fit the benchmark's gateways."""

from __future__ import annotations

import random
from typing import Any

from enforcer.lab.configuration import Document, document

LAX1 = {"ipv4": "203.0.113.10", "ipv6": "2001:db8:1::/64"}
LAX2 = {"ipv4": "203.0.113.11", "ipv6": "2001:db8:2::/64"}
_LAST = 1_000_000


def gateway(policies: list[dict[str, Any]] | None = None, **changes: object) -> Document:
    """One inside and one outside interface; everything leaves by the first egress IP if nothing is said."""
    return document(
        None,
        interfaces={"inside": ["in0"], "outside": ["out0"]},
        policies=[everything()] if policies is None else policies,
        **changes,
    )


def everything() -> dict[str, Any]:
    """A last policy for all TCP and UDP."""
    return {
        "name": "everything",
        "precedence": _LAST,
        "traffic": 'net.protocol in {"tcp" "udp"}',
        "egress": LAX1,
    }


def policies(count: int) -> list[dict[str, Any]]:
    """``count`` policies with selectors of all kinds; the last one matches everything.

    Some name the addresses that the benchmark's traffic goes to, so that different policies decide it.
    """
    chance = random.Random(count)
    found = []
    for number in range(count - 1):
        host, net = chance.randrange(256), chance.randrange(65536)
        client = f"10.{64 + chance.randrange(64)}.{chance.randrange(256)}.0/24 fd64:{net:x}::/32"
        origin = f"198.18.{chance.randrange(4)}.{host} 2001:db8:a::{host:x}"
        ports = " ".join(str(port) for port in sorted(chance.sample(range(1, 65536), 3)))
        expression = [
            f"net.dst.ip in {{{origin}}}",
            f"net.dst.ip in {{{origin}}} and net.dst.port in {{8000 {ports}}}",
            f"net.src.ip in {{{client}}} and net.dst.port in {{{ports}}}",
            f"net.dst.ip in {{172.{16 + net % 16}.{host}.0/24 2001:db8:{net:x}::/48}}"
            ' and net.protocol == "tcp"',
            f"net.src.ip in {{{client}}} and net.dst.ip in {{198.19.{host}.0/24}}",
            f'net.protocol == "udp" and not net.dst.port in {{{ports}}}'
            f" and net.dst.ip in {{203.0.{host}.0/25}}",
        ][number % 6]
        found.append(
            {
                "name": f"policy {number}",
                "precedence": number + 1,
                "traffic": expression,
                "egress": (LAX1, LAX2)[number % 2],
            }
        )
    return [*found, everything()]


def egress_ips(count: int) -> list[dict[str, Any]]:
    """``count`` egress IPs of one location."""
    return [
        {
            "name": f"lax-{number}",
            "location": "lax",
            "ipv4": f"203.{number // 250}.113.{number % 250 + 1}",
            "ipv6": f"2001:db8:{0x1000 + number:x}::/64",
        }
        for number in range(count)
    ]
