"""The cost of a connection that an origin's limit refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from itertools import count

from bench.report.results import Row, Sample, ratio
from bench.rig import documents
from bench.rig.generator import FIRST_ORIGIN, Stream
from bench.rig.measure import Bench, entered
from bench.rig.peers import Enforcer
from enforcer.constants import TCP

REFUSED = "SYN refused at an origin's limit"
LIMIT = 40000
_MANY = 8192


def refused(bench: Bench) -> None:
    """Compares SYNs to an origin at its limit, each answered with a reset, with SYNs to other origins."""
    with ExitStack() as stack:
        (peer,) = entered([Enforcer(bench.programs, bench.directory, documents.gateway())], stack)
        for family in (4, 6):
            bench.say(f"{REFUSED}: IPv{family}")
            peer.reset()
            full = Stream(family, TCP, clients=16, origins=1, one_source=True)
            bench.generator.send(peer.wire, full, LIMIT, timed=False)
            others = count(1)

            def admitted(family: int = family, full: Stream = full, others: Iterator[int] = others) -> Sample:
                roomy = replace(full, first_origin=ip_address(FIRST_ORIGIN[family]) + next(others))
                run = bench.generator.send(peer.wire, roomy, _MANY)
                return Sample(run.each, 1 - run.translated / run.sent)

            def refused(full: Stream = full) -> Sample:
                run = bench.generator.send(peer.wire, full, _MANY, start=LIMIT)
                return Sample(run.each, 1 - run.answered / run.sent if not run.translated else 1.0)

            measures: tuple[Callable[[], Sample], ...] = (admitted, refused)
            found = bench.interleave(measures, lambda measure: measure())
            rows = [
                Row(REFUSED, full.case, subject, "ns", samples)
                for subject, samples in zip(("admitted SYN", "refused SYN"), found, strict=True)
            ]
            bench.add(rows, [ratio(rows[1], rows[0], 1.0, target=True)])
