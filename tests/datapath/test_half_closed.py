"""Tests of resets with a wrong number, for an established connection and for one that closes.

docs/timers.md, "Resets and FINs", describes the behaviour.
"""

from __future__ import annotations

import pytest

from enforcer.constants.bpf import State

from .box import Box
from .test_fins import BACKWARDS, DATA, Pair
from .test_tcp_states import flow_of, states
from .wire import ACK, FIN, PSH, RST, Wire

AHEAD = 5000


@BACKWARDS
def test_an_established_connection_stays(box: Box, wire: Wire, family: int, back: bool) -> None:
    """The flow has the timeout of a closed connection until its next packet."""
    pair = Pair(wire, family, back)
    pair.say(0, 0, ACK | PSH, DATA)
    pair.reply(0, len(DATA), ACK)
    pair.say(len(DATA) + AHEAD, 0, RST)
    theirs, ours, counted, _ = states(box, pair.connection)
    assert (theirs, ours, counted) == ("ESTABLISHED", "ESTABLISHED", 1)
    assert flow_of(box, pair.connection)["timeout"] == State.CLOSE
    pair.reply(0, len(DATA), ACK)
    assert flow_of(box, pair.connection)["timeout"] != State.CLOSE


@BACKWARDS
@pytest.mark.parametrize("by_peer", [False, True], ids=["own-fin", "peers-fin"])
def test_one_that_closes_is_closed(box: Box, wire: Wire, family: int, back: bool, by_peer: bool) -> None:
    """The flow remains counted if the origin has sent neither FIN nor reset: a client alone ends no count."""
    pair = Pair(wire, family, back)
    pair.say(0, 0, ACK | PSH, DATA)
    if by_peer:
        pair.reply(0, len(DATA), FIN | ACK)
        pair.say(len(DATA), 1, ACK)
    else:
        pair.say(len(DATA), 0, FIN | ACK)
        pair.reply(0, len(DATA) + 1, ACK)
    pair.say(len(DATA) + AHEAD, 0, RST)
    theirs, ours, counted, _ = states(box, pair.connection)
    assert (theirs, ours) == ("CLOSE", "CLOSE")
    assert counted == (not back and not by_peer)
