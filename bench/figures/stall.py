"""The delay of one flow's packets while new connections flood an origin that is at its limit.

Both use one receive queue: every 13th packet of the generator belongs to a neighbour, an answered UDP flow
to another origin; the rest are SYNs of new connections and are all refused. The kernel takes packets from a
queue in batches of 64, as a network card's driver does (NAPI), so a neighbour's packet waits for those before
it in its batch. The packet carries the time at which the generator wrote it, and the sink subtracts this from
the current time: the delay covers the path from the receive queue to the far wire, waiting included. The
generator has the processor to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address

import numpy as np

from bench.report.results import Row, Sample, bound
from bench.rig import documents
from bench.rig.answering import establish
from bench.rig.generator import STAMPED_PORT, Run, Stream
from bench.rig.measure import Bench, entered
from bench.rig.peers import Count, Enforcer, Limited, Peer
from enforcer.constants import TCP, UDP
from lab.netns import LabError

STALL = "Packet of a neighbour under a SYN flood at an origin's limit"
_SHARES = {50.0: "median", 99.9: "p99.9", 100.0: "worst"}
_LIMIT = 40000
TARGET = 1.0
"""Milliseconds."""
_EVERY = 13
_PROBES, _SLOW_PROBES = 10_000, 300
"""Probes per round: of most peers; of those that walk through all connections, whose flood takes a second."""


def stall(bench: Bench) -> None:
    """Measures the enforcer, ct count, and plain forwarding, which only shows the cost of batches."""
    with ExitStack() as stack:
        peers = entered(
            [
                Peer(bench.programs),
                Count(bench.programs, _LIMIT),
                Enforcer(bench.programs, bench.directory, documents.gateway()),
            ],
            stack,
        )
        for family in (4, 6):
            _family(bench, peers, family)


def _family(bench: Bench, peers: Sequence[Peer], family: int) -> None:
    flood = Stream(family, TCP, origins=1, one_source=True)
    neighbour = Stream(
        family,
        UDP,
        clients=1,
        origins=1,
        flows=1,
        origin_port=STAMPED_PORT,
        first_origin=ip_address({4: "198.18.0.9", 6: "2001:db8:a::9"}[family]),
    )
    bench.say(f"{STALL}: IPv{family}")
    for peer in peers:
        peer.reset()
        establish(bench.generator, peer, neighbour)
        bench.generator.send(peer.wire, flood, _LIMIT, timed=False)

    def measure(peer: Peer) -> tuple[Sample, ...]:
        probes = _SLOW_PROBES if isinstance(peer, Limited) else _PROBES

        def send() -> Run:
            count, within = probes * _EVERY, (neighbour, _EVERY)
            return bench.generator.send(peer.wire, flood, count, start=_LIMIT, within=within)

        run, delays = bench.generator.delays(peer.wire, send)
        if peer.tracks and run.translated > probes:
            raise LabError(f"{peer.name}: {run.translated - probes:,} connections above the limit")
        lost = 1 - len(delays) / probes
        return tuple(Sample(float(value) / 1e6, lost) for value in np.percentile(delays, list(_SHARES)))

    found = bench.interleave(peers, measure)
    for peer, rounds in zip(peers, found, strict=True):
        rows = [
            Row(STALL, f"IPv{family}, {what}", peer.name, "ms", samples)
            for what, samples in zip(_SHARES.values(), zip(*rounds, strict=True), strict=True)
        ]
        claims = [bound(rows[1], TARGET, peer.name, target=True)] if isinstance(peer, Enforcer) else []
        bench.add(rows, claims)
        peer.reset()
