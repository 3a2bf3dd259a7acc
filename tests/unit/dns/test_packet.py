"""The parser of IP packets, on packets that scapy builds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN
from scapy.packet import Packet, Raw

from enforcer.dns import packet

FOUR = IP(src="10.0.1.2", dst="198.18.53.53")
SIX = IPv6(src="fd00:1::2", dst="2001:db8:53::53")
both = pytest.mark.parametrize("ip", [FOUR, SIX], ids=["ipv4", "ipv6"])


@both
def test_a_datagram(ip: Packet) -> None:
    found = packet.parse(bytes(ip / UDP(sport=4000, dport=53) / b"hello"))
    assert found is not None
    assert (found.protocol, found.source_port, found.destination_port) == (17, 4000, 53)
    assert found.payload == b"hello"
    expected = (
        bytes(10) + b"\xff\xff\x0a\x00\x01\x02" if ip is FOUR else bytes.fromhex("fd000001") + bytes(11)
    )
    assert found.source == (expected if ip is FOUR else expected + b"\x02")
    assert len(found.destination) == 16


@both
def test_the_ends_of_any_packet(ip: Packet) -> None:
    data = bytes(ip / UDP(sport=53, dport=4000) / b"hello")
    found = packet.parse(data)
    assert found is not None
    source, destination = packet.source_address, packet.destination_address
    assert (source(data), destination(data)) == (found.source, found.destination)
    for length in range(len(data)):
        assert len(source(data[:length])) == len(destination(data[:length])) == 16


@both
def test_a_segment(ip: Packet) -> None:
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    segment = TCP(sport=4000, dport=53, seq=7, flags="PA", options=options)
    found = packet.parse(bytes(ip / segment / b"data"))
    assert found is not None
    assert (found.protocol, found.sequence, found.flags & 0x7, found.payload) == (6, 7, 0, b"data")


@both
def test_padding_after_the_packet_is_not_its(ip: Packet) -> None:
    found = packet.parse(bytes(ip / UDP(sport=1, dport=53) / b"hi") + bytes(20))
    assert found is not None
    assert found.payload == b"hi"


def test_options_and_extensions() -> None:
    with_options = IP(src="10.0.1.2", dst="10.0.1.1", options=IPOption_Router_Alert())
    headers = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"123")]) / IPv6ExtHdrDestOpt()
    for data in (with_options / UDP(sport=1, dport=53) / b"x", SIX / headers / UDP(sport=1, dport=53) / b"x"):
        found = packet.parse(bytes(data))
        assert found is not None
        assert found.payload == b"x"


@pytest.mark.parametrize(
    "data",
    [
        FOUR / ICMP(),
        FOUR.copy() / Raw(b""),
        IP(src="10.0.1.2", dst="10.0.1.1", flags="MF") / UDP(sport=1, dport=53) / b"x",
        IP(src="10.0.1.2", dst="10.0.1.1", frag=5, proto=17) / b"12345678",
        SIX / IPv6ExtHdrFragment() / UDP(sport=1, dport=53) / b"x",
        FOUR / UDP(sport=1, dport=53, len=7) / b"x",
        FOUR / UDP(sport=1, dport=53, len=100) / b"x",
        FOUR / TCP(dataofs=4),
        FOUR / TCP(dataofs=15),
    ],
)
def test_what_is_no_whole_packet(data: Packet) -> None:
    assert packet.parse(bytes(data)) is None


@both
def test_every_beginning_of_a_packet_is_none(ip: Packet) -> None:
    for transport in (UDP(sport=1, dport=53), TCP(sport=1, dport=53)):
        whole = bytes(ip / transport / b"hello")
        assert all(packet.parse(whole[:length]) is None for length in range(len(whole)))


@given(st.binary(max_size=200))
def test_nothing_raises(data: bytes) -> None:
    packet.parse(data)
    packet.parse(b"\x45" + data)
    packet.parse(b"\x60" + data)
