"""`enforcer explain`: asks the loaded program what it would do with a connection; nothing is sent.

A packet is built and BPF_PROG_TEST_RUN runs the program `explain` on it, which shares its functions with
from_client and enters nothing.
"""

from __future__ import annotations

import os
import struct
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

_SYN = 2

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
    """The connection's first packet; checksums are left out, nobody looks at them.

    By hand: importing scapy would take longer than all the rest of the command.
    """
    ports = struct.pack("!HH", question.source_port, question.destination_port)
    # Long enough for the verdict, which comes back in the packet's place.
    room = bytes(64)
    if question.protocol == "tcp":
        number, transport = 6, ports + struct.pack("!IIBBHHH", 0, 0, 5 << 4, _SYN, 65535, 0, 0) + room
    elif question.protocol == "udp":
        number, transport = 17, ports + struct.pack("!HH", 8 + len(room), 0) + room
    else:
        number, echo = (1, 8) if question.source.version == 4 else (58, 128)
        transport = struct.pack("!BBHHH", echo, 0, 0, 1, 1) + room
    addresses = question.source.packed + question.destination.packed
    if question.source.version == 4:
        kind, header = 0x0800, struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 0, 0, 64, number, 0)
    else:
        kind, header = 0x86DD, struct.pack("!IHBB", 6 << 28, len(transport), number, 64)
    return link.mac + bytes(6) + struct.pack("!H", kind) + header + addresses + transport
