"""What a new flow costs at an origin that has many, and at one that has as many as it may."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address

from enforcer.bench import documents
from enforcer.bench.generator import TCP, Run, Stream
from enforcer.bench.measure import Bench, entered, sample
from enforcer.bench.peers import Count, Enforcer, Peer
from enforcer.bench.results import Row, Sample, ratio

CROWDED = "New flow at an origin that has many"
REFUSED = "SYN refused at an origin's limit"
LIMIT = 40000
_LEVELS = (1000, 10000, LIMIT)
_SOME = 200
_MANY = 8192


def crowded(bench: Bench) -> None:
    """One origin is filled step by step; at each level the next flows are measured, all of them admitted."""
    for family in (4, 6):
        with ExitStack() as stack:
            peers = entered(
                [
                    Count(bench.programs),
                    Enforcer(bench.programs, bench.directory, documents.gateway()),
                ],
                stack,
            )
            filled = dict.fromkeys(peers, 0)
            stream = Stream(family, TCP, clients=16, origins=1)
            for level in _LEVELS:
                measured = bench.rounds * _SOME
                first = min(level, LIMIT - measured)
                bench.say(f"{CROWDED}: {stream.case}, {level:,}")
                for peer in peers:
                    bench.generator.send(
                        peer.wire, stream, first - filled[peer], start=filled[peer], timed=False
                    )
                    filled[peer] = first

                def measure(peer: Peer, filled: dict[Peer, int] = filled, stream: Stream = stream) -> Sample:
                    run = bench.generator.send(peer.wire, stream, _SOME, start=filled[peer])
                    filled[peer] += _SOME
                    return sample(peer, run)

                found = bench.interleave(peers, measure, warm=False)
                case = f"{stream.case}, {level:,} flows"
                rows = [
                    Row(CROWDED, case, peer.name, "ns", samples)
                    for peer, samples in zip(peers, found, strict=True)
                ]
                bench.add(rows, [ratio(rows[1], rows[0], 1 / 30)] if level == LIMIT else [])


def refused(bench: Bench) -> None:
    """SYNs to an origin at its limit, each answered with a reset, against SYNs to one with room."""
    with ExitStack() as stack:
        (peer,) = entered([Enforcer(bench.programs, bench.directory, documents.gateway())], stack)
        for family in (4, 6):
            bench.say(f"{REFUSED}: IPv{family}")
            full = Stream(family, TCP, clients=16, origins=1)
            roomy = Stream(
                family,
                TCP,
                clients=16,
                origins=1,
                first_origin=ip_address({4: "198.18.0.9", 6: "2001:db8:a::9"}[family]),
            )

            def measure(stream: Stream, peer: Peer = peer, full: Stream = full) -> Sample:
                peer.reset()
                bench.generator.send(peer.wire, full, LIMIT, timed=False)
                start = LIMIT if stream is full else 0
                run = bench.generator.send(peer.wire, stream, _MANY, start=start)
                return Sample(run.each, 1 - _as_it_should(run, stream is full) / run.sent)

            found = bench.interleave((roomy, full), measure)
            rows = [
                Row(REFUSED, full.case, subject, "ns", samples)
                for subject, samples in zip(("admitted SYN", "refused SYN"), found, strict=True)
            ]
            bench.add(rows, [ratio(rows[1], rows[0], 1.0)])


def _as_it_should(run: Run, refused: bool) -> int:
    return run.answered if refused and not run.translated else run.translated
