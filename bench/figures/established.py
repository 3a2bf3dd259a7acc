"""The cost of a packet of an established flow, from one end of the gateway to the other.

All flows go to one origin and have been answered: only such a flow has fast-path entries. Before each run,
every flow sends a packet that is not timed, so that the flows are in the caches of all peers, and the
enforcer has an entry for each. An entry is valid for 4 s; then a packet of the flow takes the slow path and
renews it. A separate run with invalidated entries measures this cost, and the enforcer's figure includes
its share: of the packets that the generator sends in 4 s, one of each flow takes the slow path.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import product

from bench.report.results import Row, Sample, ratio
from bench.rig import documents
from bench.rig.answering import establish
from bench.rig.generator import TRANSPORT, Stream
from bench.rig.measure import Bench, entered, sample
from bench.rig.peers import (
    ClassifierFloor,
    Connlimit,
    Count,
    Enforcer,
    Floor,
    FullyRandomSnat,
    Limited,
    Peer,
    RandomSnat,
    Snat,
    Stateful,
)
from enforcer.constants import TCP, UDP
from enforcer.datapath import fast_path

ESTABLISHED = "Packet of an established flow"
MANY = 40000
_FRAME = 64
_HEADERS = {4: 14 + 20, 6: 14 + 40}
_PACKETS = 49152
_WARM = 256
_STRIDE = 15733
_AT_ONCE = 2
"""Peers that are measured at a time if they have flows in conntrack, which has one hash table for all."""
_ROUNDS = 2
"""Factor on the number of rounds for UDP, whose runs are short and whose peers differ by little."""
VALID, RENEWED = "enforcer, entries valid", "enforcer, entries renewed"


def stream_of(family: int, protocol: int, flows: int) -> Stream:
    """Returns a stream of 64-byte frames; those of TCP over IPv6 have 74 bytes, for the headers."""
    transport = _FRAME - _HEADERS[family]
    if protocol == TCP:
        transport = max(transport, TRANSPORT)
    return Stream(
        family,
        protocol,
        clients=16,
        origins=1,
        flows=flows,
        transport=transport,
        stride=_STRIDE,
        one_source=True,
    )


def steady(valid: float, renewed: float, flows: int) -> float:
    """Nanoseconds per packet while a generator sends without a pause.

    In an entry's lifetime one packet of each flow renews it, and the others use it.
    """
    life = fast_path.LIFETIME * 1e9
    packets = flows + (life - flows * renewed) / valid
    return life / packets


@dataclass(frozen=True)
class Subject:
    """A peer with its stream of established flows; ``stale``: all fast-path entries are invalid."""

    name: str
    peer: Peer
    stream: Stream
    stale: bool = False


def measured(bench: Bench, subject: Subject) -> Sample:
    """Nanoseconds per packet."""
    peer, stream = subject.peer, subject.stream
    bench.generator.send(peer.wire, stream, max(stream.flows, _WARM), timed=False)
    count = _PACKETS
    if subject.stale:
        assert isinstance(peer, Enforcer)
        with closing(peer.maps()) as maps:
            fast_path.invalidate(maps)
        count = stream.flows
    return sample(peer, bench.generator.send(peer.wire, stream, count))


def established(bench: Bench) -> None:
    """Measures 1 flow and 40,000 flows: all peers for UDP, the peers that have targets for TCP.

    Limits are installed after the flows exist, which does not affect them: only new flows are counted.
    conntrack keeps the flows of all peers in one hash table, where they lengthen each other's look-ups. So
    only two peers that have flows there are measured at a time.
    """
    with ExitStack() as stack:
        off = documents.gateway(fast_path=False)
        main = entered(
            [
                Floor(bench.programs),
                ClassifierFloor(bench.programs),
                Peer(bench.programs),
                FullyRandomSnat(bench.programs),
                Enforcer(bench.programs, bench.directory, documents.gateway()),
            ],
            stack,
        )
        others = entered(
            [
                Snat(bench.programs),
                RandomSnat(bench.programs),
                Stateful(bench.programs),
                Count(bench.programs),
                Connlimit(bench.programs),
                Enforcer(bench.programs, bench.directory, off, "-off", "enforcer, fast path off"),
            ],
            stack,
        )
        for protocol, family, flows in product((UDP, TCP), (4, 6), (1, MANY)):
            stream = stream_of(family, protocol, flows)
            case = f"{stream.case}, {flows:,} flow" + ("" if flows == 1 else "s")
            bench.say(f"{ESTABLISHED}: {case}")
            rows = _compare(bench, case, stream, main, bench.rounds * (_ROUNDS if protocol == UDP else 1))
            floor, classifier, plain, snat, *_, enforcer = rows
            most = 1.1 if flows == 1 else 1.25
            bench.add(
                rows,
                [
                    ratio(enforcer, classifier, most, target=True),
                    ratio(enforcer, floor, most, target=True),
                    ratio(enforcer, snat, 0.6, target=True),
                    ratio(enforcer, plain, 1.0, target=True),
                ],
            )
            if protocol == UDP:
                for start in range(0, len(others), _AT_ONCE):
                    bench.add(_compare(bench, case, stream, others[start : start + _AT_ONCE], bench.rounds))


def _compare(bench: Bench, case: str, stream: Stream, peers: Sequence[Peer], rounds: int) -> list[Row]:
    """Measures the peers; the enforcer's row comes last and includes the cost of renewing entries."""
    subjects = []
    for peer in peers:
        if isinstance(peer, Limited):
            peer.relax()
        later = establish(bench.generator, peer, stream)
        if isinstance(peer, Limited):
            peer.restrict()
        has_entries = isinstance(peer, Enforcer) and peer.name == Enforcer.name and stream.flows > 1
        subjects.append(Subject(VALID if has_entries else peer.name, peer, later))
        if has_entries:
            subjects.append(Subject(RENEWED, peer, later, stale=True))
    found = bench.interleave(subjects, lambda subject: measured(bench, subject), warm=False, rounds=rounds)
    for peer in peers:
        peer.reset()
    rows = [
        Row(ESTABLISHED, case, subject.name, "ns", samples)
        for subject, samples in zip(subjects, found, strict=True)
    ]
    if subjects[-1].stale:
        valid, renewed = rows[-2:]
        both = zip(valid.samples, renewed.samples, strict=True)
        samples = tuple(
            Sample(steady(one.value, other.value, stream.flows), max(one.lost, other.lost))
            for one, other in both
        )
        rows.append(Row(ESTABLISHED, case, Enforcer.name, "ns", samples))
    return rows
