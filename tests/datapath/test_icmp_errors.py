"""Tests of a client's ICMP errors about its flows (RFC 5508, REQ-4), with and without a shared address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from .box import CLIENT, CLIENT_MAC, MAC, NO_FILTER, ORIGIN, REFUSED, Box

PORTS = 5000, 6000


@pytest.fixture(params=[True, False], ids=["shared", "no shared address"])
def shared(request: pytest.FixtureRequest, box: Box) -> Iterator[bool]:
    """Whether the gateway has the shared addresses."""
    held = box.maps.egresses.get(0)
    assert held is not None
    row = held.copy()
    row["address"]["available"] = int(request.param)
    box.maps.egresses.put(0, row)
    yield bool(request.param)
    box.maps.egresses.put(0, held)
    box.forget_everything()


def header(family: int, *, back: bool = False) -> Packet:
    ends = (ORIGIN[family], CLIENT[family]) if back else (CLIENT[family], ORIGIN[family])
    return (IP if family == 4 else IPv6)(src=ends[0], dst=ends[1])


def send(box: Box, packet: Packet) -> tuple[int, int, set[str]]:
    """The return value of from_client, the mark, and the counted reasons."""
    program = box.program("from_client")
    with box.counted() as counted:
        returned = program(bytes(Ether(src=CLIENT_MAC, dst=MAC["in0"]) / packet))
    return returned, program.mark, set(counted.packets)


def test_about_a_live_flow(box: Box, family: int, shared: bool) -> None:
    mine, theirs = PORTS
    _, mark, _ = send(box, header(family) / UDP(sport=mine, dport=theirs) / Raw(b"x"))
    assert mark == box.slot("lax-1") + 1
    quoted = header(family, back=True) / UDP(sport=theirs, dport=mine) / Raw(b"y")
    too_big = ICMP(type=3, code=4, nexthopmtu=1300) if family == 4 else ICMPv6PacketTooBig(mtu=1300)
    error = header(family) / too_big / Raw(bytes(quoted))
    assert send(box, error) == (NO_FILTER, mark, {"icmp-error"})


def test_about_nothing(box: Box, family: int, shared: bool) -> None:
    echo = header(family) / (ICMP() if family == 4 else ICMPv6EchoRequest())
    found = (1, {"icmp"}) if shared else (REFUSED, {"shared-unavailable"})
    assert send(box, echo) == (NO_FILTER, *found)
