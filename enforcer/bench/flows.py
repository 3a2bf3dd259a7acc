"""What a new flow costs, and a packet of an old one."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product

from enforcer.bench import documents
from enforcer.bench.generator import TCP, UDP, Stream
from enforcer.bench.measure import Bench, entered
from enforcer.bench.peers import Enforcer, Floor, Peer, Snat
from enforcer.bench.results import ratio

NEW = "New flow"
ESTABLISHED = "Packet of an established flow"
_PACKETS = 131072


def _peers(bench: Bench) -> list[Peer]:
    return [
        Floor(bench.programs),
        Peer(bench.programs),
        Snat(bench.programs),
        Enforcer(bench.programs, bench.directory, documents.gateway()),
    ]


def new(bench: Bench) -> None:
    """Every packet begins a flow: to 8 origins, then all to one, where a free port is harder to find."""
    with ExitStack() as stack:
        peers = entered(_peers(bench), stack)
        for origins, family, protocol in product((8, 1), (4, 6), (UDP, TCP)):
            rows = bench.new_flows(NEW, Stream(family, protocol, origins=origins), peers)
            bench.add(rows, [ratio(rows[3], rows[2], 1.15)])


def established(bench: Bench) -> None:
    """All packets belong to one UDP flow; there is no limit for it in this version."""
    with ExitStack() as stack:
        peers = entered(_peers(bench), stack)
        for family in (4, 6):
            stream = Stream(family, UDP, clients=1, origins=1, flows=1)
            bench.add(bench.new_flows(ESTABLISHED, stream, peers, _PACKETS))
