"""The cost of a new flow at an origin that already has many flows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from bench.report.results import Row, Sample, ratio
from bench.rig import documents
from bench.rig.generator import Run, Stream
from bench.rig.measure import Bench, entered, sample
from bench.rig.peers import Connlimit, Count, Enforcer, FullyRandomSnat, Limited, Peer
from enforcer.constants import TCP

CROWDED = "New flow at an origin that has many"
LEVELS = (1000, 10000, 40000, 45000)
_LIMIT = 50000
_MANY, _FEW, _SLOW = 4500, 1200, 750
"""Flows around a level, all rounds together: at an origin with many flows; at one with few; of a peer that
walks through all flows of the origin."""
_TIMED = 0.8
"""Share of these flows that is timed; the flows before them warm the caches."""
_FLAT = 1.15
_PATIENCE = 40000
"""The highest level for peers that walk through all flows: filling an origin takes them quadratic time."""


def _around(peer: Peer, level: int) -> int:
    if isinstance(peer, Limited):
        return _SLOW
    return _FEW if level < _MANY else _MANY


class Origin:
    """One origin behind each peer, filled with flows level by level."""

    def __init__(self, bench: Bench, peers: Sequence[Peer], family: int):
        self.bench = bench
        self.peers = peers
        self.stream = Stream(family, TCP, clients=16, origins=1, one_source=True)
        self._filled = dict.fromkeys(peers, 0)

    def _send(self, peer: Peer, count: int, *, timed: bool = False) -> Run:
        run = self.bench.generator.send(peer.wire, self.stream, count, start=self._filled[peer], timed=timed)
        self._filled[peer] += count
        return run

    def at(self, level: int) -> list[Row]:
        """Nanoseconds per new flow; half of the measured flows lie below the level, half above it."""
        self.bench.say(f"{CROWDED}: {self.stream.case}, {level:,}")
        peers = [peer for peer in self.peers if not isinstance(peer, Limited) or level <= _PATIENCE]
        for peer in peers:
            self._send(peer, level - _around(peer, level) // 2 - self._filled[peer])

        def measure(peer: Peer) -> Sample:
            each = _around(peer, level) // self.bench.rounds
            timed = round(_TIMED * each)
            self._send(peer, each - timed)
            return sample(peer, self._send(peer, timed, timed=True))

        found = self.bench.interleave(peers, measure, warm=False)
        case = f"{self.stream.case}, {level:,} flows"
        return [
            Row(CROWDED, case, peer.name, "ns", samples) for peer, samples in zip(peers, found, strict=True)
        ]


def crowded(bench: Bench) -> None:
    """Measures each level; the limit is above all of them, so every flow is admitted."""
    for family in (4, 6):
        with ExitStack() as stack:
            document = documents.gateway(limits={"connections_per_origin": _LIMIT})
            peers = entered(
                [
                    Connlimit(bench.programs, _LIMIT),
                    Count(bench.programs, _LIMIT),
                    FullyRandomSnat(bench.programs),
                    Enforcer(bench.programs, bench.directory, document),
                ],
                stack,
            )
            origin = Origin(bench, peers, family)
            levels = {level: origin.at(level) for level in LEVELS}
        for level, rows in levels.items():
            *limited, snat, enforcer = rows
            claims = [ratio(enforcer, snat, 1.15, target=True)]
            if level == LEVELS[0]:
                few = enforcer
            else:
                text = f"{level:,} flows / {LEVELS[0]:,}"
                claims.append(ratio(enforcer, few, _FLAT, text, target=True))
            if level == 40000:
                claims += [ratio(enforcer, other, 1 / 30, target=True) for other in limited[-1:]]
            bench.add(rows, claims)
