"""Tests of FINs after a gap, which have no effect until the other side acknowledges them."""

from __future__ import annotations

import itertools

import pytest

from .box import Box
from .test_tcp_states import flow_of, states
from .wire import ACK, FIN, PSH, SYN, Connection, Wire

_ports = itertools.count(30000)
CLIENT_START, ORIGIN_START = 1000, 5000
DATA = b"x" * 100
BACKWARDS = pytest.mark.parametrize("back", [False, True], ids=["client", "origin"])


class Pair:
    """An established connection; ``back`` swaps the sides."""

    def __init__(self, wire: Wire, family: int, back: bool):
        self.connection = Connection(wire, family, next(_ports))
        self.back = back
        assert self.connection.send(CLIENT_START, 0, SYN)
        assert self.connection.answer(ORIGIN_START, CLIENT_START + 1, SYN | ACK)
        assert self.connection.send(CLIENT_START + 1, ORIGIN_START + 1, ACK)

    def say(self, offset: int, acknowledges: int, flags: int, payload: bytes = b"") -> None:
        """Sends a segment of this side, with numbers that are relative to the end of the handshake."""
        self._put(self.back, offset, acknowledges, flags, payload)

    def reply(self, offset: int, acknowledges: int, flags: int, payload: bytes = b"") -> None:
        """Sends a segment of the other side."""
        self._put(not self.back, offset, acknowledges, flags, payload)

    def _put(self, back: bool, offset: int, acknowledges: int, flags: int, payload: bytes) -> None:
        mine, other = (ORIGIN_START, CLIENT_START) if back else (CLIENT_START, ORIGIN_START)
        put = self.connection.answer if back else self.connection.send
        assert put(mine + 1 + offset, other + 1 + acknowledges, flags, payload)


@BACKWARDS
@pytest.mark.parametrize("offset", [1, 70000, 2**30, -1, -70000], ids=str)
def test_forged_ones_change_nothing(box: Box, wire: Wire, family: int, back: bool, offset: int) -> None:
    pair = Pair(wire, family, back)
    pair.say(0, 0, ACK | PSH, DATA)
    for _ in range(2):
        pair.say(len(DATA) + offset - (offset < 0), 0, FIN | ACK)
    pair.reply(0, len(DATA), ACK)
    pair.say(len(DATA), 0, ACK | PSH, DATA)
    pair.reply(0, 2 * len(DATA), ACK)
    _, ours, counted, _ = states(box, pair.connection)
    assert (ours, counted) == ("ESTABLISHED", 1)
    # The genuine FINs take effect.
    pair.say(2 * len(DATA), 0, FIN | ACK)
    pair.reply(0, 2 * len(DATA) + 1, FIN | ACK)
    pair.say(2 * len(DATA) + 1, 1, ACK)
    _, ours, counted, _ = states(box, pair.connection)
    assert (ours, counted) == ("TIME_WAIT", 0)


@BACKWARDS
def test_a_segment_that_was_lost_before_the_gateway(box: Box, wire: Wire, family: int, back: bool) -> None:
    """The FIN arrives before the segment that fills its gap: the acknowledgement of both counts."""
    pair = Pair(wire, family, back)
    pair.say(len(DATA), 0, FIN | ACK)
    pair.reply(0, 0, ACK)
    assert states(box, pair.connection)[1] == "ESTABLISHED"
    pair.say(0, 0, ACK | PSH, DATA)
    pair.reply(0, len(DATA) + 1, ACK)
    assert states(box, pair.connection)[1] == "CLOSE_WAIT"
    pair.reply(0, len(DATA) + 1, FIN | ACK)
    pair.say(len(DATA) + 1, 1, ACK)
    _, ours, counted, _ = states(box, pair.connection)
    assert (ours, counted) == ("TIME_WAIT", 0)


@BACKWARDS
def test_both_at_once_beyond_gaps(box: Box, wire: Wire, family: int, back: bool) -> None:
    pair = Pair(wire, family, back)
    pair.say(len(DATA), 0, FIN | ACK)
    pair.reply(len(DATA), 0, FIN | ACK)
    pair.say(0, 0, ACK | PSH, DATA)
    pair.reply(0, len(DATA) + 1, ACK | PSH, DATA)
    pair.say(len(DATA) + 1, len(DATA) + 1, ACK)
    _, ours, counted, _ = states(box, pair.connection)
    assert (ours, counted) == ("TIME_WAIT", 0)


def test_conntrack_is_to_be_told(box: Box, wire: Wire, family: int) -> None:
    pair = Pair(wire, family, back=True)
    pair.say(70000, 0, FIN | ACK)
    flow = flow_of(box, pair.connection)
    assert flow is not None and int(flow["flags"]) & 32  # TELL_CONNTRACK
