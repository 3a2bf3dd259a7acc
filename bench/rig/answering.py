"""Flows that an origin has answered: only they are established and have fast-path entries."""

from __future__ import annotations

from dataclasses import replace

from bench.rig.generator import ACK, SYN, TCP, TRANSPORT, Generator, Stream
from bench.rig.peers import Peer
from lab.netns import LabError

_TURNS = 3
"""Packets of a flow until both its entries exist: the first, one after the answer, one for replies."""


def establish(generator: Generator, peer: Peer, stream: Stream) -> Stream:
    """Opens the stream's flows, each answered by its origin; returns the stream of their later packets.

    Raises LabError if an answer does not come back to the clients' side.
    """
    later = replace(stream, flags=ACK)
    with peer.wire.answering():
        for turn in range(_TURNS):
            opening = turn == 0 and stream.protocol == TCP
            sent = replace(stream, flags=SYN, transport=TRANSPORT) if opening else later
            run = generator.send(peer.wire, sent, stream.flows, timed=False)
            if peer.tracks and run.answered != run.sent:
                raise LabError(f"{peer.name}: {run.answered:,} answers to {run.sent:,} packets came back")
    return later
