"""The fast path's changes to a packet, compared with the kernel's byte by byte.

The same packets of the same flow go through one gateway twice, with the fast path off and on, so that even
the translated port is the same. A packet that is eligible for the fast path must have taken it.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from enforcer.constants import TCP, UDP
from lab.configuration import Document
from lab.netns import run

from . import box as boxes
from .box import Box
from .frames import ACK, SHORTEST, Packet, frames, is_eligible, length, subtract16
from .learnt import LARGEST, Learnt, OffloadWire, Outcome
from .watcher import Watcher
from .wire import checksum

INSIDE_MTU = 2000
# The kernel sends every ICMP error, but none about incomplete fragments.
SETTINGS = (
    "net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratelimit=0 net.ipv6.icmp.ratemask= "
    "net.ipv4.ipfrag_time=600 net.netfilter.nf_conntrack_frag6_timeout=600"
)
FRAGMENT = 44  # next header
OURS = 24  # a virtio_net_hdr and an Ethernet header
quick = settings(
    max_examples=60,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def document() -> Document:
    return boxes.document(limits={"flows": 2048, "origins": 2048})


@pytest.fixture(scope="module")
def wire(box: Box) -> Iterator[OffloadWire]:
    run(f"sysctl -qw {SETTINGS}")
    run(f"ip link set in0 mtu {INSIDE_MTU}; ip link set client0 mtu {INSIDE_MTU}")
    made = OffloadWire()
    yield made
    made.close()


@pytest.fixture(scope="module", params=[True, False], ids=["offloads", "no offloads"])
def offloads(request: pytest.FixtureRequest, box: Box) -> None:
    state = "on" if request.param else "off"
    words = " ".join(f"{feature} {state}" for feature in ("rx", "tx", "sg", "tso", "gso", "gro"))
    for name in ("in0", "out0", "client0", "origin0"):
        run(f"ethtool -K {name} {words}")


@pytest.fixture(scope="module", params=[TCP, UDP], ids=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def flow(
    request: pytest.FixtureRequest, box: Box, wire: OffloadWire, protocol: int, offloads: None
) -> Learnt:
    return Learnt(box, wire, request.param, protocol, 5000)


# --- the packets

identifications = itertools.count()

PADDED = 9999  # as many bytes as make the shortest frame
BYTE, WORD = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
SIZES = st.integers(0, 64) | st.integers(1380, 1432) | st.integers(0, 1432)
TIMESTAMPS = bytes([1, 1, 8, 10]) + bytes(range(8))
SELECTIVE = bytes([1, 1, 5, 10]) + bytes(range(8))
TCP_OPTIONS = st.sampled_from([b"", TIMESTAMPS, SELECTIVE, TIMESTAMPS + SELECTIVE, bytes([1]) * 40, bytes(4)])
# No operation; record route; router alert; an unknown option; an option with a wrong length.
IP_OPTIONS = st.sampled_from(
    ["01010100", "0707040000000000", "94040000", "e5040000", "07ff0400"]
).map(bytes.fromhex)  # fmt: skip
NO_FLAGS = st.sampled_from([0x00, 0x08, 0x20, 0x28, 0xC0])

ordinary = st.builds(
    Packet,
    back=st.booleans(),
    payload=SIZES,
    tos=BYTE,
    flow_label=st.integers(0, 0xFFFFF),
    hop_limit=st.sampled_from([2, 3, 64, 128, 255]) | st.integers(2, 255),
    identification=WORD,
    fragment_field=st.sampled_from([0, 0x4000, 0x8000]),
    tcp_flags=st.sampled_from([0, 0x08, 0x20, 0x40, 0x80, 0xE8]).map(lambda flags: flags | ACK),
    more_tcp_flags=st.integers(0, 15),
    tcp_options=TCP_OPTIONS,
    sequence=st.integers(0, 100_000) | st.integers(0, 0xFFFFFFFF),
    acknowledgement=st.integers(0, 100_000) | st.integers(0, 0xFFFFFFFF),
    window=WORD,
    urgent=WORD,
    aim=st.none() | st.sampled_from([0, 1, 0xFFFE, 0xFFFF]) | WORD,
)
SPECIAL = {
    "hop_limit": st.sampled_from([0, 1]),
    "fragment_field": st.sampled_from([0x2000, 0x6000, 1, 0x1FFF, 0x2001]),
    "options": IP_OPTIONS,
    "extensions": st.lists(st.sampled_from([0, 60, 44, 43]), min_size=1, max_size=3).map(tuple),
    "tcp_flags": NO_FLAGS,
    "data_offset": st.integers(-5, 10),
    "udp_length": st.sampled_from([-9, -8, -1, 1, 100]),
    "check": st.none() | st.integers(1, 0xFFFE),
    "header_check": st.integers(1, 0xFFFE),
    "trailer": st.sampled_from([1, 2, 6, 18, 60, PADDED, PADDED]),
    "total": st.sampled_from([-60, -1, 1, 4, 1000]),
    "version": st.integers(1, 15),
    "another_mac": st.sampled_from(
        [b"\x02\0\0\0\x07\x07", b"\xff" * 6, b"\x01\0\x5e\0\0\x01", b"\x33\x33\0\0\0\x01"]
    ),
    "vlan": st.just(True),
    "pieces": st.sampled_from([8, 64, 512, 1024]),
    "payload": st.integers(1400, 1900),
}


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """Packets with a few special fields, in most cases none or one."""
    packet = draw(ordinary)
    names = draw(st.lists(st.sampled_from(sorted(SPECIAL)), max_size=2, unique=True))
    special: dict[str, Any] = {name: draw(SPECIAL[name]) for name in names}
    return replace(packet, **special)


def prepared(flow: Learnt, packet: Packet) -> Packet:
    """The packet without the fields that do not apply to this family or protocol."""
    if flow.family == 4:
        packet = replace(packet, extensions=())
    else:
        packet = replace(packet, options=b"", fragment_field=0, header_check=0)
    if flow.protocol == UDP:
        packet = replace(packet, tcp_options=b"", data_offset=0, tcp_flags=ACK)
    else:
        packet = replace(packet, udp_length=0, check=packet.check or 0)
    if packet.trailer:
        packet = replace(packet, total=0)
    if packet.trailer == PADDED:
        packet = replace(packet, payload=packet.payload % 6)
        packet = replace(packet, trailer=max(1, SHORTEST - 14 - length(packet, flow.ends(packet.back))))
    if packet.pieces:
        packet = replace(packet, fragment_field=0, extensions=(), total=0, trailer=0)
        # A single piece would be the whole packet.
        packet = replace(packet, payload=max(packet.payload, packet.pieces))
    if packet.check is None:
        packet = replace(packet, aim=None)
    if packet.pieces or packet.fragment_field & 0x3FFF or FRAGMENT in packet.extensions:
        # An incomplete packet must not be joined with a piece of another one.
        packet = replace(packet, identification=next(identifications) & 0xFFFF)
    packet = replace(packet, payload=min(packet.payload, room(flow, packet)))
    if packet.total < 0 and len(frames(packet, flow.ends(packet.back))[0]) == SHORTEST:
        packet = replace(packet, total=0)
    return flow.placed(packet)


def room(flow: Learnt, packet: Packet) -> int:
    """The largest payload in bytes that the link of this end can carry."""
    around = (
        sum(len(frame) for frame in frames(replace(packet, payload=0, pieces=0), flow.ends(packet.back))) - 14
    )
    return (LARGEST if packet.back else INSIDE_MTU) - around


# --- the comparison


def comparable(frame: bytes) -> bytes:
    """The frame without the IP IDs that the gateway chooses: of its ICMP errors, and of IPv6 fragments."""
    # hdr_len, the length of the linear part, may differ.
    header, packet = frame[:2] + bytes(2) + frame[4:OURS], frame[OURS:]
    if header[22:24] == b"\x08\x00" and packet[9] == socket.IPPROTO_ICMP:
        packet = packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    elif header[22:24] == b"\x86\xdd" and packet[6] == FRAGMENT:
        packet = packet[:44] + bytes(4) + packet[48:]
    return header + packet


def same(kernel: Outcome, fast: Outcome, packet: object) -> None:
    for by_kernel, outcome in ((kernel.far, fast.far), (kernel.near, fast.near)):
        wanted, came = ([comparable(frame).hex(" ", 2) for frame in each] for each in (by_kernel, outcome))
        assert came == wanted, packet


def error_of(frame: bytes) -> tuple[int, int]:
    """The errors of the checksums of the IPv4 header and of the transport, modulo 65,535."""
    packet = frame[14:]
    v4 = packet[0] >> 4 == 4
    head, protocol = (20, packet[9]) if v4 else (40, packet[6])
    size = int.from_bytes(packet[2:4] if v4 else packet[4:6], "big")
    body = packet[head : size if v4 else head + size]
    addresses = packet[12:20] if v4 else packet[8:40]
    pseudo = addresses + struct.pack(">II", len(body), protocol)
    none = protocol == UDP and body[6:8] == bytes(2)
    return (
        checksum(packet[:20]) % 0xFFFF if v4 else 0,
        0 if none else checksum(pseudo + body) % 0xFFFF,
    )


def without_checksums(frame: bytes, protocol: int) -> bytes:
    v4 = frame[14] >> 4 == 4
    at = 14 + (20 if v4 else 40) + (16 if protocol == TCP else 6)
    blank = bytearray(frame)
    blank[at : at + 2] = bytes(2)
    if v4:
        blank[24:26] = bytes(2)
    return bytes(blank)


def left_wrong(flow: Learnt, packet: Packet, kernel: Outcome, right: Outcome, quick: Outcome) -> None:
    """The kernel drops a packet with a wrong checksum. The fast path may pass it, with the same error."""
    assert kernel.far == []
    (wanted,), (frame,) = right.far, quick.far
    (sent,) = frames(packet, flow.ends(packet.back))
    assert frame[:10] == wanted[:10]
    assert without_checksums(frame[10:], flow.protocol) == without_checksums(wanted[10:], flow.protocol)
    assert error_of(frame[10:]) == error_of(sent), packet
    assert error_of(sent) != (0, 0)
    assert error_of(wanted[10:]) == (0, 0)


@given(sent=st.lists(packets(), min_size=1, max_size=8))
@quick
def test_every_packet_becomes_what_the_kernel_makes_of_it(flow: Learnt, sent: list[Packet]) -> None:
    ready = [prepared(flow, packet) for packet in sent]
    flow.forget()
    kernel = [
        (flow.put(packet), flow.put(packet.corrected()) if packet.is_wrong else None) for packet in ready
    ]
    flow.learn()
    for packet, (by_kernel, corrected) in zip(ready, kernel, strict=True):
        outcome = flow.watched(packet)
        eligible = is_eligible(packet, flow.ends(packet.back), LARGEST)
        assert outcome.fast == int(eligible), packet
        if eligible and packet.is_wrong:
            assert corrected is not None
            left_wrong(flow, packet, by_kernel, corrected, outcome)
        else:
            same(by_kernel, outcome, packet)


# --- offloads of checksums and segmentation to a device

GSO = {(4, TCP): 1, (6, TCP): 4, (4, UDP): 5, (6, UDP): 5}  # linux/virtio_net.h
GSO_ECN = 0x80
NEEDS_CHECKSUM = 1


def offloaded(flow: Learnt, packet: Packet, segment: int, ecn: bool) -> tuple[bytes, bytes]:
    """The packet as a stack passes it to a device: virtio_net_hdr, and frame with the pseudo header sum."""
    ends = flow.ends(packet.back)
    (frame,) = frames(packet, ends)
    network = 20 if flow.family == 4 else 40
    start, offset = 14 + network, 16 if flow.protocol == TCP else 6
    body = frame[start:]
    partial = ~checksum(ends.pseudo(len(body))) & 0xFFFF
    at = start + offset
    frame = frame[:at] + partial.to_bytes(2, "big") + frame[at + 2 :]
    headers = start + (20 + len(packet.tcp_options) if flow.protocol == TCP else 8)
    kind = GSO[flow.family, flow.protocol] | (GSO_ECN if ecn and flow.protocol == TCP else 0)
    header = struct.pack(
        "<BBHHHH", NEEDS_CHECKSUM, kind if segment else 0, headers if segment else 0, segment, start, offset
    )
    return header, frame


@given(
    sent=st.lists(
        st.tuples(ordinary, st.integers(0, 60_000), st.none() | st.integers(500, 1600), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
@quick
def test_what_is_left_to_the_device_is_left_to_it_still(
    flow: Learnt, sent: list[tuple[Packet, int, int | None, bool]]
) -> None:
    ready = []
    for packet, wanted, segment, ecn in sent:
        whole = prepared(flow, packet)
        if segment is not None:
            # More than one segment, but at most as many as UDP allows.
            size = min(max(wanted, segment + 1), segment * 60, 60_000)
            whole = replace(whole, payload=size, fragment_field=0x4000 if flow.family == 4 else 0)
        header, frame = offloaded(flow, whole, segment or 0, ecn)
        headers = len(frame) - 14 - whole.payload
        # The segments of a tunnel would look like those of UDP.
        eligible = headers + (segment or whole.payload) <= LARGEST and not (segment and flow.protocol == UDP)
        ready.append((whole.back, header, frame, eligible))
    flow.forget()
    kernel = [flow.wire.put(back, [frame], header) for back, header, frame, _ in ready]
    flow.learn()
    for (back, header, frame, eligible), by_kernel in zip(ready, kernel, strict=True):
        before = flow.fast_packets(back)
        outcome = flow.wire.put(back, [frame], header)
        assert flow.fast_packets(back) > before or not eligible, frame[:80].hex(" ", 2)
        assert outcome.far or not eligible
        same(by_kernel, outcome, frame[:80].hex(" ", 2))


def test_checksums_that_look_like_something_else(flow: Learnt) -> None:
    """A checksum equal to the pseudo header sum, as if left to the device; checksums that become 0."""
    for back in (False, True):
        ends = flow.ends(back)
        base = flow.placed(Packet(back=back, payload=100))
        size = len(frames(base, ends)[0]) - 14 - (20 if flow.family == 4 else 40)
        pseudo = ~checksum(ends.pseudo(size)) & 0xFFFF
        flow.forget()
        # The amount that the translation adds to a checksum.
        (frame,) = flow.put(base).far
        at = 14 + (20 if flow.family == 4 else 40) + (16 if flow.protocol == TCP else 6)
        (sent,) = frames(base, ends)
        came = int.from_bytes(frame[10 + at : 12 + at], "big")
        change = subtract16(came, int.from_bytes(sent[at : at + 2], "big"))
        for aim in (pseudo, 0xFFFF ^ pseudo, 0, 0xFFFF, 0xFFFF ^ change, subtract16(1, change)):
            packet = replace(base, aim=aim)
            flow.forget()
            kernel = flow.put(packet)
            flow.learn()
            outcome = flow.watched(packet)
            assert outcome.fast == 1
            same(kernel, outcome, packet)


@pytest.mark.parametrize("back", [False, True], ids=["out", "back"])
def test_mark_and_priority(flow: Learnt, back: bool) -> None:
    """Queues at the outgoing interface use both; the mark's bits of other software stay."""
    near = flow.wire.origin if back else flow.wire.client
    found = {}
    flow.learn()
    with contextlib.closing(Watcher("in0" if back else "out0")) as watcher:
        for mark in (0, 0x6B000007):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            for on in (False, True):
                flow.learn() if on else flow.forget()
                watcher.taken()
                for tos in range(256):
                    packet = flow.placed(Packet(back=back, tos=tos, payload=400))
                    assert flow.watched(packet).fast == int(on)
                found[mark, on] = watcher.taken()
            assert len(found[mark, True]) == 256
            assert found[mark, True] == found[mark, False]
        near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
    assert {mark for mark, _, _ in found[0x6B000007, True]} == {0x6B}
    if flow.family == 4:
        assert len({priority for _, _, priority in found[0, True]}) > 3
