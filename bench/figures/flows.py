"""The cost of a new flow."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product

from bench.report.results import ratio
from bench.rig import documents
from bench.rig.generator import Stream
from bench.rig.measure import Bench, entered
from bench.rig.peers import Enforcer, Floor, FullyRandomSnat, Peer, RandomSnat, Snat, Stateful
from enforcer.constants import TCP, UDP

NEW = "New flow"


def new(bench: Bench) -> None:
    """Each packet begins a flow to one of 8 origins. :mod:`bench.figures.crowded` has peers with limits."""
    with ExitStack() as stack:
        plain: list[type[Peer]] = [Floor, Peer, Snat, RandomSnat, Stateful, FullyRandomSnat]
        peers = entered(
            [
                *(kind(bench.programs) for kind in plain),
                Enforcer(bench.programs, bench.directory, documents.gateway()),
            ],
            stack,
        )
        for family, protocol in product((4, 6), (UDP, TCP)):
            rows = bench.new_flows(NEW, Stream(family, protocol, origins=8), peers)
            bench.add(rows, [ratio(rows[-1], rows[-2], 1.15, target=True)])
