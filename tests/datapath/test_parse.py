"""Packets of all kinds through from_client: each is counted with exactly one reason."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from lab.netns import run

from .box import BLOCKED, CLIENT, MAC, NO_FILTER, ORIGIN, Box
from .wire import Wire

PORT = {"sport": 40000, "dport": 443}


@pytest.fixture(autouse=True)
def nothing_lives(box: Box) -> None:
    box.forget_everything()


def ip(family: int, **fields: object) -> Packet:
    layer = IP if family == 4 else IPv6
    return layer(**{"src": CLIENT[family], "dst": ORIGIN[family], **fields})


def frame(packet: Packet | bytes, kind: int | None = None, to: str = MAC["in0"]) -> bytes:
    if isinstance(packet, bytes):
        return bytes(Ether(dst=to, type=kind)) + packet
    return bytes(Ether(dst=to) / packet)


def outcome(box: Box, data: bytes, mark: int = 0) -> tuple[str, int, int]:
    """The one counted reason, the program's return value, and the mark after the run."""
    program = box.program("from_client")
    with box.counted() as counted:
        returned = program(data, mark)
    assert sum(counted.packets.values()) == 1, (counted.packets, data.hex())
    return next(iter(counted.packets)), returned, program.mark


def expect(box: Box, data: bytes, reason: str, mark: int = 0) -> None:
    returned = BLOCKED if reason in ("malformed", "tiny-fragment", "out-of-state", "not-ready") else NO_FILTER
    assert outcome(box, data) == (reason, returned, mark), data.hex()


def test_the_mark_of_a_verdict(box: Box, family: int) -> None:
    """The upper half of the mark, which other software uses, stays; the program sets the enforcer's bits."""
    data = frame(ip(family) / TCP(**PORT))
    assert outcome(box, data, 0xABCD1234) == ("policy", NO_FILTER, 0xABCD0000 | box.slot("lax-1") + 1)
    data = frame(ip(family) / UDP(sport=1, dport=53))
    assert outcome(box, data, 0xABCD1234) == ("dns", NO_FILTER, 0xABCD0001)
    assert outcome(box, frame(ip(family, dst=CLIENT[family]) / UDP()), 0xABCD1234)[2] == 0xABCD0000


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        *(("S", "policy"), ("A", "policy"), ("PA", "policy"), ("SEC", "policy"), ("SU", "policy")),
        *(("SA", "out-of-state"), ("F", "out-of-state"), ("FA", "out-of-state"), ("R", "out-of-state")),
        *(("RA", "out-of-state"), ("", "out-of-state"), ("SF", "out-of-state"), ("SR", "out-of-state")),
        *(("FSRPAUEC", "out-of-state"), ("PU", "out-of-state"), ("SFA", "out-of-state")),
    ],
)
def test_tcp_flags_of_a_first_segment(box: Box, family: int, flags: str, reason: str) -> None:
    mark = box.slot("lax-1") + 1 if reason == "policy" else 0
    expect(box, frame(ip(family) / TCP(flags=flags, **PORT)), reason, mark)


def test_other_protocols(box: Box, family: int) -> None:
    ping = ICMP() if family == 4 else ICMPv6EchoRequest()
    expect(box, frame(ip(family) / ping), "icmp", 1)
    expect(box, frame(ip(family) / SCTP(sport=1, dport=2)), "protocol", 1)
    expect(box, frame(ip(family) / GRE() / Raw(bytes(40))), "protocol", 1)
    for protocol in (50, 59, 132, 255, 58 if family == 4 else 1):
        field = {"proto": protocol} if family == 4 else {"nh": protocol}
        expect(box, frame(ip(family, **field) / Raw(bytes(8))), "protocol", 1)
    # The ICMP of the other family is an ordinary protocol, and a packet without payload is valid.
    field = {"proto": 255} if family == 4 else {"nh": 255}
    expect(box, frame(ip(family, **field)), "protocol", 1)


def test_what_is_not_ip(box: Box) -> None:
    expect(box, frame(ARP()), "not-ip")
    expect(box, frame(bytes(64), kind=0x88CC), "not-ip")
    expect(box, bytes(Ether(dst=MAC["in0"]) / Dot1Q(vlan=5) / ip(4) / TCP(**PORT)), "not-ip")
    for family in (4, 6):
        expect(box, frame(ip(family) / TCP(**PORT), to="02:00:00:00:00:77"), "not-ip")


def test_a_header_of_the_other_family(box: Box) -> None:
    expect(box, frame(bytes(ip(4) / TCP(**PORT)), kind=0x86DD), "malformed")
    expect(box, frame(bytes(ip(6) / TCP(**PORT)), kind=0x0800), "malformed")
    for family, kind in ((4, 0x0800), (6, 0x86DD)):
        data = bytearray(frame(bytes(ip(family) / TCP(**PORT)), kind=kind))
        for version in set(range(16)) - {family}:
            data[14] = data[14] & 0x0F | version << 4
            expect(box, bytes(data), "malformed")


def test_ipv4_header_lengths(box: Box) -> None:
    for ihl in range(5):
        expect(box, frame(ip(4, ihl=ihl) / TCP(**PORT)), "malformed")
    # A header that is longer than the packet.
    expect(box, frame(ip(4, ihl=15, len=50) / TCP(**PORT)), "malformed")
    assert outcome(box, frame(ip(4, options=[IPOption_NOP()] * 40) / TCP(**PORT)))[0] == "policy"
    assert outcome(box, frame(ip(4, options=[IPOption_Timestamp()]) / UDP(**PORT)))[0] == "policy"


def test_lengths_that_say_too_little(box: Box, family: int) -> None:
    for transport, least in (
        (TCP(**PORT), 20),
        (UDP(**PORT), 8),
        (ICMP() if family == 4 else ICMPv6EchoRequest(), 8),
    ):
        for length in range(least):
            said = {"len": 20 + length} if family == 4 else {"plen": length}
            if family == 6 and length == 0:
                continue  # 0 means an unknown length: below
            expect(box, frame(ip(family, **said) / transport), "malformed")
    if family == 4:
        for length in range(20):
            expect(box, frame(ip(4, len=length) / TCP(**PORT)), "malformed")
    else:
        expect(box, frame(ip(6, plen=0) / TCP(**PORT)), "malformed")


def test_lengths_that_say_too_much(box: Box, wire: Wire, family: int) -> None:
    """The kernel drops such a packet, so the program must not create a flow."""
    for missing in (1, 14, 100):
        said = {"len": 20 + 20 + 100 + missing} if family == 4 else {"plen": 20 + 100 + missing}
        packet = frame(ip(family, **said) / TCP(**PORT) / Raw(bytes(100)))
        assert arrives(box, wire, packet) == "malformed"
    assert not len(box.maps.flows.items()[0])


def test_bytes_after_the_packet(box: Box, family: int) -> None:
    """Ethernet pads short frames."""
    data = frame(ip(family) / UDP(**PORT)) + bytes(18)
    assert outcome(box, data)[0] == "policy"


def arrives(box: Box, wire: Wire, data: bytes) -> str:
    """The one reason counted for a frame on the wire; a test run cannot set the packet's true length."""
    with box.counted() as counted:
        wire.client.send(data)
        wire.settle("in0")
    counted.packets["not-ip"] -= 1  # the ARP request of settle()
    (reason,) = (name for name, packets in counted.packets.items() if packets)
    assert counted.packets[reason] == 1
    return reason


@pytest.mark.parametrize("transport", ["tcp", "udp", "icmp"])
def test_cut_at_every_byte(box: Box, wire: Wire, family: int, transport: str) -> None:
    ping = ICMP() if family == 4 else ICMPv6EchoRequest()
    payload = {"tcp": TCP(flags="S", options=[("MSS", 1460)], **PORT), "udp": UDP(**PORT), "icmp": ping}
    whole = frame(ip(family) / payload[transport])
    for length in range(15, len(whole)):
        assert arrives(box, wire, whole[:length]) == "malformed", length
    assert arrives(box, wire, whole) == {"tcp": "policy", "udp": "policy", "icmp": "icmp"}[transport]


def test_tcp_data_offset(box: Box, family: int) -> None:
    for offset in range(5):
        expect(box, frame(ip(family) / TCP(dataofs=offset, **PORT)), "malformed")
    for offset in range(6, 16):
        expect(box, frame(ip(family) / TCP(dataofs=offset, **PORT)), "malformed")
        data = frame(ip(family) / TCP(dataofs=offset, **PORT) / Raw(bytes(4 * offset - 20)))
        assert outcome(box, data)[0] == "policy"


# Fragments


def fragment(family: int, offset: int, more: bool, payload: bytes, protocol: int = 6) -> bytes:
    """``offset`` in units of eight bytes."""
    if family == 4:
        return frame(ip(4, flags="MF" if more else 0, frag=offset, proto=protocol) / Raw(payload))
    return frame(ip(6) / IPv6ExtHdrFragment(offset=offset, m=more, nh=protocol, id=7) / Raw(payload))


def test_first_fragments(box: Box, family: int) -> None:
    tcp = bytes(TCP(flags="S", **PORT) / Raw(bytes(1000)))
    assert outcome(box, fragment(family, 0, True, tcp[:24]))[0] == "policy"
    udp = bytes(UDP(**PORT) / Raw(bytes(1000)))
    assert outcome(box, fragment(family, 0, True, udp[:8], 17))[0] == "policy"


def test_tiny_first_fragments(box: Box, family: int) -> None:
    """The first fragment contains the whole transport header (RFC 1858, and RFC 7112 for IPv6)."""
    tcp = bytes(TCP(flags="S", **PORT))
    for length in (8, 16):
        expect(box, fragment(family, 0, True, tcp[:length]), "tiny-fragment")
    expect(box, fragment(family, 0, True, bytes(TCP(dataofs=15, **PORT))[:40]), "tiny-fragment")
    expect(box, fragment(family, 0, True, b"", 17), "tiny-fragment")


def test_later_fragments(box: Box, family: int) -> None:
    for offset in (1, 2, 3, 100, 8191):
        for more in (True, False):
            for protocol in (6, 17, 1, 58, 132):
                expect(box, fragment(family, offset, more, bytes(8), protocol), "later-fragment")


def test_atomic_fragments(box: Box) -> None:
    """Offset 0 without further fragments is a whole packet (RFC 6946)."""
    tcp = bytes(TCP(flags="S", **PORT))
    assert outcome(box, fragment(6, 0, False, tcp))[0] == "policy"
    expect(box, fragment(6, 0, False, tcp[:16]), "malformed")


# Extension headers

# By name: the header's number, and its bytes after the number of the next header.
EXTENSIONS = {
    "hop by hop": (0, bytes([0, 1, 4, 0, 0, 0, 0])),
    "routing": (43, bytes([0, 4, 0, 0, 0, 0, 0])),
    "destination": (60, bytes([0, 1, 4, 0, 0, 0, 0])),
    "atomic fragment": (44, bytes([0, 0, 0, 0, 0, 0, 7])),
    "authentication": (51, bytes([4]) + bytes(22)),  # counted in words of four bytes, less two (RFC 4302)
}


def extended(kinds: list[str], transport: Packet) -> bytes:
    """A frame with these extension headers in order."""
    numbers = [EXTENSIONS[kind][0] for kind in kinds] + [transport.overload_fields[IPv6]["nh"]]
    chain = b"".join(
        bytes([after]) + EXTENSIONS[kind][1] for kind, after in zip(kinds, numbers[1:], strict=True)
    )
    return frame(ip(6, nh=numbers[0]) / Raw(chain + bytes(transport)))


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("count", range(1, 9))
def test_extension_headers(box: Box, kind: str, count: int) -> None:
    """The parser follows six extension headers."""
    data = extended([kind] * count, TCP(**PORT))
    if count > 6:
        expect(box, data, "malformed")
    else:
        expect(box, data, "policy", box.slot("lax-1") + 1)


def test_extension_headers_cut_at_every_byte(box: Box, wire: Wire) -> None:
    whole = extended(list(EXTENSIONS), UDP(**PORT))
    assert arrives(box, wire, whole) == "policy"
    for length in range(15, len(whole)):
        assert arrives(box, wire, whole[:length]) == "malformed", length


def test_an_extension_header_that_reaches_over_the_end(box: Box) -> None:
    data = bytearray(frame(ip(6) / IPv6ExtHdrDestOpt() / TCP(**PORT)))
    for length in (3, 30, 255):
        data[14 + 40 + 1] = length
        expect(box, bytes(data), "malformed")


def test_nothing_follows(box: Box) -> None:
    expect(box, frame(ip(6, nh=59)), "protocol", 1)
    expect(box, frame(ip(6) / IPv6ExtHdrDestOpt(nh=59)), "protocol", 1)


def test_a_jumbogram(box: Box) -> None:
    """A jumbogram (RFC 2675), which the kernel does not forward: its header has length 0."""
    option = struct.pack(">BBBBI", 6, 0, 0xC2, 4, 70000)
    data = bytes(Ether(dst=MAC["in0"]) / ip(6, nh=0, plen=0)) + option + bytes(TCP(**PORT)) + bytes(3000)
    expect(box, data, "malformed")


def test_addresses_that_are_not_for_ipv6(box: Box) -> None:
    """An IPv4-mapped address in an IPv6 header would match a flow of IPv4."""
    assert outcome(box, frame(ip(4) / TCP(**PORT)))[0] == "policy"
    before = box.maps.flows.items()[1].tobytes()
    mapped = {"src": f"::ffff:{CLIENT[4]}", "dst": f"::ffff:{ORIGIN[4]}"}
    for which in ({"src"}, {"dst"}, {"src", "dst"}):
        fields = {name: mapped[name] for name in which}
        expect(box, frame(ip(6, **fields) / TCP(flags="R", **PORT)), "malformed")
    assert box.maps.flows.items()[1].tobytes() == before


# Routes


def test_to_the_gateway_and_to_everyone(box: Box, family: int) -> None:
    local = {
        4: [
            "10.1.0.1",
            "192.0.2.1",
            "127.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "10.1.255.255",
            "203.0.113.10",
        ],
        6: ["fd01::1", "2001:db8:0:1::1", "::1", "ff02::1", "ff0e::5", "2001:db8:1::77"],
    }
    local[4] += ["224.0.0.1", "239.1.2.3"]
    for destination in local[family]:
        expect(box, frame(ip(family, dst=destination) / UDP(**PORT)), "local")
    if family == 6:
        expect(box, frame(ip(6, dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt="fd01::1")), "local")


def test_to_an_inside_network(box: Box, family: int) -> None:
    expect(box, frame(ip(family, dst={4: "10.1.7.7", 6: "fd01::77"}[family]) / TCP(**PORT)), "inside")


def test_hop_limit_used_up(box: Box, family: int) -> None:
    for left, reason in ((0, "ttl"), (1, "ttl"), (2, "policy")):
        field = {"ttl": left} if family == 4 else {"hlim": left}
        assert outcome(box, frame(ip(family, **field) / UDP(**PORT)))[0] == reason


@pytest.fixture
def jumbo(box: Box) -> Iterator[None]:
    """The inside interface receives packets that exceed the MTU of the outside interface."""
    run("ip link set in0 mtu 9000")
    yield
    run("ip link set in0 mtu 1500")


def test_larger_than_the_mtu(box: Box, family: int, jumbo: None) -> None:
    large = UDP(**PORT) / Raw(bytes(1600))
    field = {"flags": "DF"} if family == 4 else {}
    expect(box, frame(ip(family, **field) / large), "too-big")
    if family == 4:
        # The kernel fragments the packet, and the fragments need the egress address.
        expect(box, frame(ip(4) / large), "policy", box.slot("lax-1") + 1)
        expect(box, frame(ip(4) / ICMP() / Raw(bytes(1600))), "icmp", 1)


def test_larger_than_any_that_its_interface_brings(box: Box, family: int) -> None:
    """The netfilter of a bridge has reassembled the packet; the kernel fragments it again."""
    field = {"flags": "DF"} if family == 4 else {}
    large = frame(ip(family, **field) / UDP(**PORT) / Raw(bytes(1600)))
    expect(box, large, "policy", box.slot("lax-1") + 1)
