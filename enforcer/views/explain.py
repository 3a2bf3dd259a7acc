"""`enforcer explain`: asks the loaded program what it would do with a connection; nothing is sent.

A packet is built and BPF_PROG_TEST_RUN runs the program `explain` on it, which shares its functions with
from_client and enters nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from enforcer.datapath import syscall
from enforcer.datapath.address import IPAddress, unpack
from enforcer.datapath.reasons import reasons
from enforcer.errors import UsageError
from enforcer.kernel import links
from enforcer.kernel.links import Link
from enforcer.views.source import Source

# struct verdict of bpf/policy.h
_VERDICT = np.dtype(
    [
        ("reason", "<u4"),
        ("slot", "<u4"),
        ("policy", "<u4"),
        ("source", "<u4", 4),
        ("active", "<u4"),
        ("limit", "<u4"),
    ]
)


@dataclass(frozen=True)
class Question:
    """A connection that a client might open; ``protocol`` is tcp, udp or icmp."""

    source: IPAddress
    destination: IPAddress
    protocol: str
    source_port: int
    destination_port: int


def explain(source: Source, question: Question) -> dict[str, Any]:
    """The verdict in the contract's fields. Raises UsageError for a question that makes no sense."""
    if question.source.version != question.destination.version:
        raise UsageError(
            "source and destination are of different families", "Give two IPv4 or two IPv6 addresses."
        )
    link = _arrival(source, question.source)
    fd = source.pins.program("explain")
    try:
        _, data, _ = syscall.test_run(fd, _packet(question, link), ifindex=link.index)
    except OSError as error:
        raise syscall.explain_error(error, "running the program explain") from error
    finally:
        os.close(fd)
    found = np.frombuffer(data, dtype=_VERDICT, count=1)[0]
    reason = reasons()[int(found["reason"])]
    translated = reason.verdict in ("dedicated", "shared") or reason.name == "limit"
    return {
        "verdict": reason.verdict,
        "reason": reason.name,
        "policy": source.policy_names.get(int(found["policy"])),
        "egress": source.egress_names.get(int(found["slot"])) if translated else None,
        "source_ip": str(unpack(found["source"])) if translated else None,
        "active": int(found["active"]) if translated else None,
        "limit": int(found["limit"]) if translated else None,
        "description": reason.description,
    }


def _arrival(source: Source, client: IPAddress) -> Link:
    """The inside interface that this client's packets arrive on."""
    found = links.links()
    inside = [found[name] for name in source.config["interfaces"]["inside"] if name in found]
    if not inside:
        raise UsageError("no inside interface exists just now", "See `ip link` and the file's `interfaces`.")
    for link in inside:
        if any(client in interface.network for interface in link.addresses):
            return link
    return inside[0]


def _packet(question: Question, link: Link) -> bytes:
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
    from scapy.layers.l2 import Ether

    network: Any = IP if question.source.version == 4 else IPv6
    ping: Any = ICMP if question.source.version == 4 else ICMPv6EchoRequest
    transport: Any = {"tcp": TCP, "udp": UDP, "icmp": ping}[question.protocol]()
    if question.protocol != "icmp":
        transport.sport, transport.dport = question.source_port, question.destination_port
    packet = network(src=str(question.source), dst=str(question.destination)) / transport
    # Long enough for the verdict, which comes back in the packet's place.
    return bytes(Ether(src="02:00:00:00:00:01", dst=link.mac.hex(":")) / packet / bytes(64))
