"""Configurations for the benchmark's gateways."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.rig import traffic_facts
from lab.configuration import Document, document

LAX1 = {"ipv4": "203.0.113.10", "ipv6": "2001:db8:1::/64"}
LAX2 = {"ipv4": "203.0.113.11", "ipv6": "2001:db8:2::/64"}
EGRESSES = (LAX1, LAX2)
FLOWS = 262144
"""The default of limits.flows, the size of the flow table."""
NO_LIMITS: Mapping[str, int] = MappingProxyType({})
_LAST = 1_000_000
_TCP_UDP = 'net.protocol in {"tcp" "udp"}'
# No packet of the benchmark matches this, but deciding it takes a look-up of each field.
_NEVER = """ or (
    net.src.ip in {192.0.2.0/24 2001:db8:dead::/48} and net.src.port in {1..9} and net.dst.port == 9
    and net.src.geo.country == "AQ" and net.dst.geo.country == "AQ"
    and identity.email == "nobody@example.com" and net.fqdn.host == "nowhere.example.com")"""


def gateway(
    policies: list[dict[str, Any]] | None = None, limits: Mapping[str, int] = NO_LIMITS, **changes: object
) -> Document:
    """One inside and one outside interface; all TCP and UDP leaves by the first egress IP by default.

    The limits per client equal the size of the flow table: few clients open all flows of a measurement, and
    none of the flows is answered.
    """
    room = limits.get("flows", FLOWS)
    caps = {"flows_per_client": room, "unanswered_per_client": room}
    return document(
        None,
        interfaces={"inside": ["in0"], "outside": ["out0"]},
        policies=[everything()] if policies is None else policies,
        limits={"connections_per_origin": 40000, **caps, **limits},
        **changes,
    )


def located(policies: list[dict[str, Any]], regions: Path, **changes: Any) -> Document:
    """A configuration with a database of regions, which policies on countries need."""
    return gateway(policies, geoip={"database": str(regions)}, **changes)


def everything(more: str = "") -> dict[str, Any]:
    """The last policy, which matches all TCP and UDP traffic."""
    return {"name": "everything", "precedence": _LAST, "traffic": _TCP_UDP + more, "egress": LAX1}


def policies(count: int) -> list[dict[str, Any]]:
    """``count`` policies with selectors of every kind; the last one matches everything.

    Many match the benchmark's traffic, its clients' sessions, its origins' names and regions, so that
    different policies decide. The last one, the only one of ``policies(1)``, uses every field that the others
    use: a new flow takes the same look-ups with any number of policies, and only the cost of the number
    differs.
    """
    chance = random.Random(count)
    found = []
    for number in range(count - 1):
        found.append(
            {
                "name": f"policy {number}",
                "precedence": number + 1,
                **KINDS[number % len(KINDS)](chance),
                "egress": EGRESSES[number % 2],
            }
        )
    return [*found, everything(_NEVER)]


def swapped(policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same policies, each with the other egress IP."""
    return [policy | {"egress": LAX2 if policy["egress"] == LAX1 else LAX1} for policy in policies]


Texts = dict[str, str]


def _origin(chance: random.Random) -> str:
    """One of 1,024 addresses in each family; the traffic goes to a quarter of them."""
    host = chance.randrange(1024)
    return f"198.18.{host >> 8}.{host & 255} 2001:db8:a::{host:x}"


def _networks(chance: random.Random) -> str:
    """One of 4,096 networks in each family, none of which contains an origin."""
    number = chance.randrange(4096)
    return f"172.{16 + number // 256}.{number % 256}.0/24 2001:db8:{0x1000 + number:x}::/48"


def _clients(chance: random.Random) -> str:
    """A network of clients: one in 16 contains four clients of the traffic, the others contain none."""
    number = chance.randrange(16)
    if number == 0:
        first = 4 * chance.randrange(32)
        return f"10.64.0.{first}/30 fd64::{first:x}/126"
    return f"10.{64 + number}.0.0/{chance.randrange(16, 27)} fd64:{number:x}::/{chance.randrange(48, 64)}"


def _ports(chance: random.Random) -> str:
    """Three ports and a range; in one of four results the traffic's port, too."""
    first = chance.randrange(1024, 65000)
    listed = " ".join(str(port) for port in sorted(chance.sample(range(1, 65536), 3)))
    return f"{listed} {first}..{first + chance.randrange(1, 500)}" + (
        " 8000" if chance.random() < 0.25 else ""
    )


def _countries(chance: random.Random) -> str:
    return " ".join(f'"{code}"' for code in sorted(chance.sample(traffic_facts.COUNTRIES, 2)))


def _user(chance: random.Random) -> str:
    return f'"{traffic_facts.user(chance.randrange(1, 500))}"'


def _team(chance: random.Random) -> str:
    return f'"{traffic_facts.team(chance.randrange(200))}"'


def _host(chance: random.Random) -> str:
    return f'"{traffic_facts.host(chance.randrange(1000))}"'


def _site(chance: random.Random) -> str:
    return f'"{traffic_facts.site(chance.randrange(200))}"'


def _by_origin(chance: random.Random) -> Texts:
    return {"traffic": f"net.dst.ip in {{{_origin(chance)}}}"}


def _by_origin_and_port(chance: random.Random) -> Texts:
    return {"traffic": f"net.dst.ip in {{{_origin(chance)}}} and net.dst.port in {{{_ports(chance)}}}"}


def _by_client_and_port(chance: random.Random) -> Texts:
    return {"traffic": f"net.src.ip in {{{_clients(chance)}}} and net.dst.port in {{{_ports(chance)}}}"}


def _by_network_and_protocol(chance: random.Random) -> Texts:
    return {"traffic": f'net.dst.ip in {{{_networks(chance)}}} and net.protocol == "tcp"'}


def _by_all_but_ports(chance: random.Random) -> Texts:
    return {
        "traffic": f'net.protocol == "udp" and not net.dst.port in {{{_ports(chance)}}}'
        f" and net.dst.ip in {{{_origin(chance)}}}"
    }


def _by_source_port(chance: random.Random) -> Texts:
    first = chance.randrange(1024, 60000)
    return {
        "traffic": f"net.src.port in {{{first}..{first + 99}}} and net.src.ip in {{{_clients(chance)}}}"
        f" and net.dst.ip in {{{_origin(chance)} {_networks(chance)}}}"
    }


def _by_countries(chance: random.Random) -> Texts:
    return {
        "traffic": f"net.dst.geo.country in {{{_countries(chance)}}} and net.dst.port in {{{_ports(chance)}}}"
        f" and not net.src.geo.country in {{{_countries(chance)}}} and net.dst.ip in {{{_origin(chance)}}}"
    }


def _by_country_and_team(chance: random.Random) -> Texts:
    return {
        "traffic": f"net.src.geo.country in {{{_countries(chance)}}}",
        "identity": f"any(identity.groups[*].name in {{{_team(chance)} {_team(chance)}}})",
    }


def _by_user(chance: random.Random) -> Texts:
    return {
        "traffic": f"net.dst.port in {{{_ports(chance)}}} or net.dst.ip in {{{_networks(chance)}}}",
        "identity": f"identity.email in {{{_user(chance)} {_user(chance)}}}",
    }


def _by_team_pattern(chance: random.Random) -> Texts:
    number = chance.randrange(100)
    return {
        "traffic": f"net.dst.ip in {{{_origin(chance)}}}",
        "identity": f'any(identity.groups[*].name matches "^team-{number}[0-9]?$")',
    }


def _by_posture(chance: random.Random) -> Texts:
    check = traffic_facts.check(chance.randrange(20))
    return {
        "traffic": f"net.dst.ip in {{{_origin(chance)} {_networks(chance)}}}",
        "device_posture": f'any(device_posture.checks.passed[*] in {{"{check}"}})',
    }


def _by_network_of_client(chance: random.Random) -> Texts:
    return {
        "traffic": f'net.vnet_id == "{traffic_facts.vnet(chance.randrange(50))}"'
        f" and net.dst.ip in {{{_networks(chance)}}} and not net.dst.port in {{{_ports(chance)}}}"
    }


def _by_endpoint(chance: random.Random) -> Texts:
    return {
        "traffic": f'proxy.endpoint == "{traffic_facts.endpoint(chance.randrange(50))}"'
        f" and net.dst.port in {{{_ports(chance)}}}"
    }


def _by_host(chance: random.Random) -> Texts:
    return {"traffic": f"net.fqdn.host in {{{_host(chance)} {_host(chance)}}}"}


def _by_site_and_user(chance: random.Random) -> Texts:
    return {
        "traffic": f"any(net.fqdn.domains[*] in {{{_site(chance)}}})"
        f" and net.dst.port in {{{_ports(chance)}}}",
        "identity": f"not identity.email in {{{_user(chance)}}}",
    }


def _by_either(chance: random.Random) -> Texts:
    return {
        "traffic": f"(net.dst.ip in {{{_networks(chance)}}} and net.dst.port in {{{_ports(chance)}}})"
        f" or (net.fqdn.host == {_host(chance)} and any(identity.groups[*].name == {_team(chance)}))"
    }


KINDS: list[Callable[[random.Random], Texts]] = [
    _by_origin,
    _by_origin_and_port,
    _by_client_and_port,
    _by_network_and_protocol,
    _by_all_but_ports,
    _by_source_port,
    _by_countries,
    _by_country_and_team,
    _by_user,
    _by_team_pattern,
    _by_posture,
    _by_network_of_client,
    _by_endpoint,
    _by_host,
    _by_site_and_user,
    _by_either,
]


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
