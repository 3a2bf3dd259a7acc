"""Tests that two sweeps correct a wrong counter, and leave right ones unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from enforcer.constants.bpf import State
from enforcer.datapath.recount import Recount

from .box import CLIENT, MAC, NO_FILTER, ORIGIN, Box
from .test_tcp_states import flow_of
from .wire import ACK, SYN, Connection, Wire

FLOWS = 5


@pytest.fixture(autouse=True)
def some_flows(box: Box, family: int) -> None:
    box.forget_everything()
    for number in range(FLOWS):
        ip = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=ORIGIN[family])
        frame = bytes(Ether(dst=MAC["in0"]) / ip / UDP(sport=3000 + number, dport=443))
        assert box.program("from_client")(frame) == NO_FILTER


def sweep(box: Box, recount: Recount) -> int:
    recount.begin(box.maps)
    for keys, flows in box.maps.flows.chunks():
        recount.add(keys, flows)
    return recount.finish(box.maps, box.pins)


def spoil(box: Box, table: str, **by: int) -> None:
    """Changes the counters of a table without the programs."""
    part = getattr(box.maps, table)
    (key,), (row,) = part.items()
    for name, difference in by.items():
        row[name] = int(row[name]) + difference
    part.put(key, row)


def events(box: Box) -> tuple[int, int]:
    found = [box.maps.events.get(number) for number in (1, 2)]
    return int(found[0] or 0), int(found[1] or 0)


@pytest.mark.parametrize("by", [3, -2])
def test_an_origin_is_corrected(box: Box, by: int) -> None:
    recount, before = Recount(), events(box)
    spoil(box, "origins", active=by)
    assert box.miscounted()
    assert [sweep(box, recount) for _ in range(3)] == [0, 1, 0]
    assert not box.miscounted()
    assert events(box) == (before[0] + abs(by), before[1])


@pytest.mark.parametrize("by", [{"flows": 2}, {"unanswered": -1}, {"flows": -3, "unanswered": 4}])
def test_a_client_is_corrected(box: Box, by: dict[str, int]) -> None:
    recount, before = Recount(), events(box)
    spoil(box, "client_prefixes", **by)
    assert [sweep(box, recount) for _ in range(3)] == [0, 1, 0]
    assert not box.miscounted()
    assert events(box) == (before[0], before[1] + sum(map(abs, by.values())))


def test_an_origin_that_is_gone_comes_back(box: Box) -> None:
    (key,) = box.maps.origins.items()[0]
    box.maps.origins.delete(key)
    recount = Recount()
    assert [sweep(box, recount) for _ in range(2)] == [0, 1]
    assert int(box.maps.origins.items()[1]["active"][0]) == FLOWS


def test_what_is_right_stays(box: Box) -> None:
    recount, before = Recount(), events(box)
    assert [sweep(box, recount) for _ in range(3)] == [0, 0, 0]
    assert events(box) == before


def test_flows_that_user_space_entered_are_followed(box: Box, wire: Wire, family: int) -> None:
    """A flow without an identity, as an upgrade copies it from a version that has none."""
    connection = Connection(wire, family, 4100)
    assert connection.send(100, 0, SYN)
    flow = flow_of(box, connection)
    assert flow is not None and flow["identity"]
    keys, rows = box.maps.flows.items()
    (position,) = np.flatnonzero(keys["client_port"] == int.from_bytes((4100).to_bytes(2, "big"), "little"))
    rows["identity"][position] = 0
    box.maps.flows.put(keys[position], rows[position])
    assert connection.answer(500, 101, SYN | ACK)
    assert connection.send(101, 501, ACK)
    flow = flow_of(box, connection)
    assert flow is not None and flow["identity"] and flow["state"] == State.ESTABLISHED
