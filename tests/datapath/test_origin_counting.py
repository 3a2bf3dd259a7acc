"""Tests that the limit is exact, and that every end of a flow decrements the count once."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from enforcer.datapath import sweep
from enforcer.datapath.program_runs import run_on
from enforcer.datapath.programs import Pins
from lab.configuration import Document

from .box import CLIENT, MAC, NO_FILTER, ORIGIN, REFUSED, Box
from .box import document as plain_document

LIMIT = 50


@pytest.fixture(scope="module")
def document() -> Document:
    sizes = {"flows": 1024, "origins": 1024, "flows_per_client": 1024, "unanswered_per_client": 1024}
    return plain_document(limits={"connections_per_origin": LIMIT, **sizes})


@pytest.fixture(autouse=True)
def nothing_lives(box: Box) -> None:
    box.forget_everything()


def segment(family: int, flags: str = "S", sport: int = 1000, dport: int = 443, **fields: object) -> bytes:
    ip = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=ORIGIN[family])
    return bytes(Ether(dst=MAC["in0"]) / ip / TCP(sport=sport, dport=dport, flags=flags, **fields))


def answer(family: int, flags: str, dport: int = 1000, sport: int = 443, **fields: object) -> bytes:
    """A reply as to_client receives it, with the client's address and port."""
    ip = (IP if family == 4 else IPv6)(src=ORIGIN[family], dst=CLIENT[family])
    return bytes(Ether() / ip / TCP(sport=sport, dport=dport, flags=flags, **fields))


def datagram(family: int, sport: int = 1000, dport: int = 443) -> bytes:
    ip = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=ORIGIN[family])
    return bytes(Ether(dst=MAC["in0"]) / ip / UDP(sport=sport, dport=dport))


def with_port(frame: bytes, family: int, port: int) -> bytes:
    at = 14 + (20 if family == 4 else 40)
    return frame[:at] + port.to_bytes(2, "big") + frame[at + 2 :]


def send(box: Box, *frames: bytes) -> list[str]:
    """The reasons of the frames, in their order."""
    found = []
    for frame in frames:
        with box.counted() as counted:
            assert box.program("from_client")(frame) == NO_FILTER
        assert sum(counted.packets.values()) == 1
        found += counted.packets
    return found


def reply(box: Box, *frames: bytes) -> None:
    for frame in frames:
        box.program("to_client")(frame)


def only_origin(box: Box) -> np.ndarray:
    (row,) = box.maps.origins.items()[1]
    return row


def flow_keys(box: Box) -> np.ndarray:
    return box.maps.flows.items()[0]


def test_the_last_one_and_the_next(box: Box, family: int) -> None:
    first = segment(family)
    frames = [with_port(first, family, 1000 + number) for number in range(LIMIT + 3)]
    assert send(box, *frames) == ["policy"] * LIMIT + ["limit"] * 3
    assert box.program("from_client").mark == REFUSED
    row = only_origin(box)
    assert (row["active"], row["peak"], row["total"], row["refused"]) == (LIMIT, LIMIT, LIMIT, 3)
    # Live flows continue.
    assert send(box, *frames[:LIMIT]) == ["policy"] * LIMIT
    assert box.program("from_client").mark == box.slot("lax-1") + 1
    assert only_origin(box)["total"] == LIMIT


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_each_origin_has_its_own(box: Box, family: int, protocol: str) -> None:
    make = segment if protocol == "tcp" else datagram
    for dport in (443, 444):
        frames = [make(family, sport=1000 + number, dport=dport) for number in range(LIMIT + 1)]
        assert send(box, *frames) == ["policy"] * LIMIT + ["limit"]
    other = datagram if protocol == "tcp" else segment
    assert send(box, other(family)) == ["policy"]
    assert len(box.maps.origins.items()[0]) == 3


def test_a_retransmitted_syn_counts_once(box: Box, family: int) -> None:
    assert send(box, *[segment(family)] * 5) == ["policy"] * 5
    assert (only_origin(box)["active"], only_origin(box)["total"]) == (1, 1)


def established(box: Box, family: int, port: int = 1000) -> None:
    send(box, segment(family, "S", port, seq=100))
    reply(box, answer(family, "SA", port, seq=500, ack=101))
    send(box, segment(family, "A", port, seq=101, ack=501))


def finish(box: Box, family: int, port: int = 1000) -> None:
    send(box, segment(family, "FA", port, seq=101, ack=501))
    reply(box, answer(family, "FA", port, seq=501, ack=102))
    send(box, segment(family, "A", port, seq=102, ack=502))


ENDS = {
    "both sides close": finish,
    "the client resets": lambda box, family: send(box, segment(family, "R", seq=101)),
    "the origin resets": lambda box, family: reply(box, answer(family, "R", seq=501)),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_gives_back_one(box: Box, family: int, end: str) -> None:
    for port in range(1000, 1000 + LIMIT):
        established(box, family, port)
    assert send(box, segment(family, sport=2000)) == ["limit"]
    ENDS[end](box, family)
    assert only_origin(box)["active"] == LIMIT - 1
    # A repeated end does not decrement the count again.
    ENDS[end](box, family)
    assert only_origin(box)["active"] == LIMIT - 1
    assert send(box, segment(family, sport=2000), segment(family, sport=2001)) == ["policy", "limit"]


def test_a_refused_connection_gives_back_one(box: Box, family: int) -> None:
    send(box, segment(family, "S", seq=100))
    reply(box, answer(family, "RA", seq=0, ack=101))
    assert only_origin(box)["active"] == 0
    assert not len(flow_keys(box))  # conntrack has deleted its entry as well


@pytest.mark.parametrize("end", ENDS)
def test_a_tuple_is_used_again(box: Box, family: int, end: str) -> None:
    for turn in range(1, 4):
        established(box, family)
        assert (only_origin(box)["active"], only_origin(box)["total"]) == (1, turn)
        ENDS[end](box, family)
        assert only_origin(box)["active"] == 0


def test_a_tuple_used_again_must_be_admitted(box: Box, family: int) -> None:
    established(box, family)
    finish(box, family)
    send(box, *[segment(family, sport=port) for port in range(2000, 2000 + LIMIT)])
    assert send(box, segment(family)) == ["limit"]


# Reaping


def age(box: Box, seconds: float) -> None:
    """Sets the last packet of all flows back by ``seconds``."""
    for key, flow in zip(*box.maps.flows.items(), strict=True):
        older = flow.copy()
        older["last_seen"] = int(older["last_seen"]) - int(seconds * 1e9)
        box.maps.flows.put(key, older)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_reaping_gives_back_one(box: Box, family: int, protocol: str) -> None:
    send(
        box, *[(segment if protocol == "tcp" else datagram)(family, sport=port) for port in range(1000, 1005)]
    )
    timeouts = box.maps.timeouts.items()[1]
    for seconds, left in ((1, 5), (400, 0)):
        age(box, seconds)
        found = sweep.sweep(box.maps, box.pins, timeouts, 0, sample=250)
        assert (found.flows, found.reaped) == (5, 5 - left)
        assert only_origin(box)["active"] == left
    assert not len(flow_keys(box))


def test_a_flow_that_is_not_idle_is_not_reaped(box: Box, family: int) -> None:
    """The program checks the idle time of a flow that the sweep names."""
    send(box, segment(family))
    assert sweep.reap(box.pins, flow_keys(box)) == 0
    assert only_origin(box)["active"] == 1


def test_an_answered_flow_is_not_unknown(box: Box, family: int) -> None:
    established(box, family)
    assert sweep.reap(box.pins, flow_keys(box), unknown=True) == 0
    send(box, segment(family, sport=2000))
    unanswered = flow_keys(box)[box.maps.flows.items()[1]["replied"] == 0]
    assert sweep.reap(box.pins, unanswered, unknown=True) == 1
    assert only_origin(box)["active"] == 1


def test_reaping_what_was_given_back_already(box: Box, family: int) -> None:
    established(box, family)
    finish(box, family)
    age(box, 500)
    assert sweep.reap(box.pins, flow_keys(box)) == 1
    assert only_origin(box)["active"] == 0
    assert not len(flow_keys(box))


def test_reaping_more_than_a_batch(box: Box) -> None:
    first = datagram(4)
    for number in range(200):
        send(box, datagram(4, sport=2000 + number, dport=1000 + number % 10))
    age(box, 500)
    assert sweep.reap(box.pins, flow_keys(box)) == 200
    assert not box.maps.origins.items()[1]["active"].any()
    assert send(box, first) == ["policy"]


def test_forgetting_only_origins_without_flows(box: Box, family: int) -> None:
    send(box, segment(family, dport=1), segment(family, dport=2))
    send(box, segment(family, "R", dport=2, seq=0))
    assert sweep.forget_origins(box.maps.origins, box.pins) == 2  # both are in recent use
    keys, _ = box.maps.origins.items()
    assert run_on(box.pins, "forget", keys) == 1
    ((left, row),) = zip(*box.maps.origins.items(), strict=True)
    assert row["active"] == 1 and left["origin_port"] == 1 << 8
    assert send(box, segment(family, dport=2, sport=7)) == ["policy"]


# Several processors


def hammer(pins: Pins, ifindex: int, cpu: int, frames: list[bytes], rounds: int) -> None:
    from .box import Program

    os.sched_setaffinity(0, {cpu})
    program = Program(pins.program("from_client"), ifindex)
    for _ in range(rounds):
        for frame in frames:
            program(frame)


def in_processes(work: list[tuple[int, list[bytes]]], box: Box, rounds: int) -> None:
    children = []
    for cpu, frames in work:
        child = os.fork()
        if not child:
            try:
                hammer(box.pins, box.index["in0"], cpu, frames, rounds)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
@pytest.mark.parametrize("same", [True, False], ids=["the same tuples", "tuples of their own"])
def test_exact_on_two_processors(box: Box, family: int, same: bool) -> None:
    """Both processors repeatedly open connections to one origin, and each resets ten of them per round."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    first, reset = segment(family), segment(family, "R")
    work = []
    for number, cpu in enumerate(cpus):
        ports = range(1000, 1300) if same else range(1000 + 300 * number, 1300 + 300 * number)
        frames = [with_port(first, family, port) for port in ports]
        for port in list(ports)[:10]:
            frames += [with_port(reset, family, port)]
        work.append((cpu, frames))
    with box.counted() as counted:
        in_processes(work, box, rounds=60)
    assert sum(counted.packets.values()) == 60 * sum(len(frames) for _, frames in work)
    row = only_origin(box)
    assert row["active"] <= LIMIT and row["peak"] == LIMIT
    assert row["active"] == int(box.maps.flows.items()[1]["counted"].sum())
    missing = [with_port(first, family, 5000 + number) for number in range(LIMIT)]
    send(box, *missing)
    assert only_origin(box)["active"] == LIMIT
