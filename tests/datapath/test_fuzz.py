"""A million random and mutated packets: each is counted, and none changes a live flow.

All four programs run on the same maps. The test prints its seed: FUZZ_SEED repeats a run, FUZZ_PACKETS sets
the number of packets.
"""

from __future__ import annotations

import os
import random
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from lab.configuration import LAX1, Document

from . import box as boxes
from .box import BLOCKED, CLIENT, MAC, NO_FILTER, ORIGIN, REDIRECT, Box

PACKETS = int(os.environ.get("FUZZ_PACKETS", "1000000"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
CHUNK = 500
TRANSLATED = {4: LAX1[4], 6: "2001:db8:1::2"}
# The origins of the live flows: no mutation of a few bytes produces these addresses.
ALIVE = {4: "198.19.77.1", 6: "2001:db8:77::1"}


@pytest.fixture(scope="module")
def document() -> Document:
    egress_ips = boxes.document()["egress_ips"]
    egress_ips[0]["on_link"] = True
    return boxes.document(egress_ips=egress_ips, limits={"flows": 65536, "origins": 65536})


def seeds() -> list[bytes]:
    """Packets of every kind that the programs distinguish."""
    packets = []
    for family in (4, 6):
        ip = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=ORIGIN[family])
        back = (IP if family == 4 else IPv6)(src=ORIGIN[family], dst=CLIENT[family])
        out = (IP if family == 4 else IPv6)(src=TRANSLATED[family], dst=ORIGIN[family])
        for flags in ("S", "SA", "A", "PA", "FA", "R", "RA"):
            packets += [each / TCP(sport=1000, dport=443, flags=flags) / Raw(b"hello") for each in (ip, out)]
            packets.append(back / TCP(sport=443, dport=1000, flags=flags))
        packets += [each / UDP(sport=1000, dport=53) for each in (ip, out)]
        packets += [ip / UDP(sport=1000, dport=443) / Raw(bytes(64)), back / UDP(sport=443, dport=1000)]
        packets += [ip / SCTP(sport=1, dport=2), ip / Raw(bytes(20))]
    ip, inner = IP(src=CLIENT[4], dst=ORIGIN[4]), IP(src=ORIGIN[4], dst=CLIENT[4])
    packets += [
        ip / ICMP(),
        ip / ICMP(type=3, code=4) / inner / UDP(sport=443, dport=1000),
        ip / ICMP(type=11) / inner / TCP(sport=443, dport=1000),
        IP(src=CLIENT[4], dst=ORIGIN[4], options=[IPOption_Timestamp()]) / TCP(sport=1000, dport=443),
        IP(src=CLIENT[4], dst=ORIGIN[4], flags="MF") / TCP(sport=1000, dport=443),
        IP(src=CLIENT[4], dst=ORIGIN[4], frag=100) / Raw(bytes(40)),
    ]
    ip6, inner6 = IPv6(src=CLIENT[6], dst=ORIGIN[6]), IPv6(src=ORIGIN[6], dst=CLIENT[6])
    packets += [
        ip6 / ICMPv6EchoRequest(),
        ip6 / ICMPv6PacketTooBig() / inner6 / UDP(sport=443, dport=1000),
        ip6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(sport=1000, dport=443),
        ip6 / IPv6ExtHdrFragment(offset=0, m=1) / UDP(sport=1000, dport=443),
        ip6 / IPv6ExtHdrFragment(offset=100, m=0) / Raw(bytes(40)),
        ip6 / IPv6ExtHdrFragment() / TCP(sport=1000, dport=443),
        IPv6(src="2001:db8:0:1::2", dst="ff02::1:ff00:5", hlim=255)
        / ICMPv6ND_NS(tgt="2001:db8:1::5")
        / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:02:99"),
    ]
    frames = [bytes(Ether(src="02:00:00:00:01:99", dst=MAC["in0"]) / packet) for packet in packets]
    head = Ether(dst=MAC["in0"])
    return [*frames, bytes(head / ARP()), bytes(head / Dot1Q() / ip / TCP())]


INTERESTING = (0, 1, 2, 4, 5, 6, 15, 17, 41, 43, 44, 50, 51, 58, 59, 60, 63, 64, 127, 128, 132, 135, 255)


def mutated(chance: random.Random, seed: bytes) -> bytes:
    """A seed with a few changed bytes, mostly of its headers; sometimes cut, extended or entirely random."""
    kind = chance.random()
    if kind < 0.03:
        return seed[:14] + chance.randbytes(chance.randrange(40, 200))
    frame = bytearray(seed)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(12 if chance.random() < 0.1 else 14, len(frame))
        how = chance.random()
        if how < 0.4:
            frame[at] ^= 1 << chance.randrange(8)
        elif how < 0.7:
            frame[at] = chance.choice(INTERESTING)
        else:
            frame[at] = chance.randrange(256)
    if kind < 0.1 and len(frame) > 54:
        del frame[chance.randrange(54, len(frame)) :]
    elif kind < 0.13:
        frame += chance.randbytes(chance.randrange(1, 300))
    return bytes(frame)


def bring_to_life(box: Box) -> None:
    for family in (4, 6):
        ip = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=ALIVE[family])
        back = (IP if family == 4 else IPv6)(src=ALIVE[family], dst=CLIENT[family])
        for port in range(1000, 1050):
            first = Ether(dst=MAC["in0"]) / ip / TCP(sport=port, dport=443, seq=1)
            second = Ether() / back / TCP(sport=443, dport=port, flags="SA", seq=1, ack=2)
            box.program("from_client")(bytes(first))
            box.program("to_client")(bytes(second))
            box.program("from_client")(bytes(Ether(dst=MAC["in0"]) / ip / UDP(sport=port, dport=443)))


def living(box: Box) -> dict[bytes, bytes]:
    keys, flows = box.maps.flows.items()
    return {key.tobytes(): flow.tobytes() for key, flow in zip(keys, flows, strict=True)}


def of_living(box: Box) -> dict[bytes, bytes]:
    """The rows of the origins of the live flows, by key."""
    before = {}
    for key, row in zip(*box.maps.origins.items(), strict=True):
        before[key.tobytes()] = row.copy().tobytes()
    return before


# Program: its interface, the incoming interface, how many reasons it may count for each packet.
HOOKS = {
    "from_client": ("in0", None, range(1, 2)),
    "to_client": ("in0", "out0", range(2)),
    "to_origin": ("out0", "in0", range(2)),
    "from_origin": ("out0", None, range(2)),
}
MAY_RETURN = {
    "from_client": {NO_FILTER, BLOCKED},
    "to_client": {NO_FILTER, BLOCKED},  # blocks a connection marked as expected if the table is full
    "to_origin": {NO_FILTER, BLOCKED},
    "from_origin": {NO_FILTER, REDIRECT},
}


def feed(box: Box, name: str, frames: list[bytes], marks: list[int]) -> None:
    interface, arrived, counts = HOOKS[name]
    program = box.program(name, interface)
    program.context.ingress_ifindex = box.index[arrived] if arrived else 0
    before = box.tallies.read()[:, 0]
    returned: set[int] = set()
    run = 0
    for frame, mark in zip(frames, marks, strict=True):
        try:
            returned.add(program(frame, mark))
        except OSError as error:  # a test run refuses some frames that no interface delivers
            assert error.errno == 22
            continue
        run += 1
    counted = int((box.tallies.read()[:, 0] - before).sum())
    assert run * counts.start <= counted <= run * (counts.stop - 1), f"{name}: {counted} counted of {run}"
    assert returned <= MAY_RETURN[name], (name, returned)


def rewritten(frame: bytes, interface: str) -> bytes:
    return bytes.fromhex(MAC[interface].replace(":", "")) + frame[6:]


@pytest.mark.slow
def test_a_million_packets(box: Box) -> None:
    chance = random.Random(SEED)
    bring_to_life(box)
    flows, origins = living(box), of_living(box)
    assert len(flows) == 200
    every = seeds()
    began = time.monotonic()
    fed = dict.fromkeys(HOOKS, 0)
    tally = box.tallies.read()
    names = list(HOOKS)
    for number in range(PACKETS // CHUNK):
        name = names[number % len(names)]
        frames = [rewritten(mutated(chance, chance.choice(every)), HOOKS[name][0]) for _ in range(CHUNK)]
        marks = [chance.choice((0, 1, 2, 3, 4, 0xFFFF, 0x10002)) for _ in range(CHUNK)]
        feed(box, name, frames, marks)
        fed[name] += CHUNK
        if number % 200 == 199:
            assert not box.miscounted()
    seconds = time.monotonic() - began
    difference = box.tallies.read() - tally
    reasons = {boxes.reasons()[int(i)].name: int(difference[i, 0]) for i in np.flatnonzero(difference[:, 0])}
    print(f"\nseed {SEED}: {sum(fed.values()):,} packets in {seconds:.0f} s, {reasons}")
    after, rows = living(box), of_living(box)
    assert {key: after.get(key) for key in flows} == flows
    assert {key: rows.get(key) for key in origins} == origins
    assert sum(fed.values()) == PACKETS // CHUNK * CHUNK
    # The mutations must reach these reasons.
    assert {"policy", "nearest", "dns", "icmp", "icmp-error", "malformed", "tiny-fragment"} <= reasons.keys()
    assert {"later-fragment", "out-of-state", "leak", "local", "inside", "ttl", "reply"} <= reasons.keys()
    assert {"neighbour", "not-ip", "protocol", "expected"} <= reasons.keys()


@given(st.binary(min_size=40, max_size=300), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(box: Box, data: bytes, kind: bytes) -> None:
    """Random bytes of hypothesis, through all four programs."""
    for name, (interface, _, _) in HOOKS.items():
        frame = rewritten(bytes(12) + kind + data, interface)
        feed(box, name, [frame], [0])
