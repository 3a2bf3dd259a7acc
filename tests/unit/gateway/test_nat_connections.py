"""Which connections from the shared address are those of clients; see also tests/lab/test_marks.py."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from enforcer.address import pack
from enforcer.gateway import nat_connections
from enforcer.gateway.availability import AddressSet
from enforcer.gateway.nat_connections import Clients
from enforcer.kernel.conntrack import IPS_EXPECTED, Entry, Tuple

SHARED = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
DEDICATED = {4: "203.0.113.10", 6: "2001:db8:1::2"}
CONTAINER = {4: "172.17.0.2", 6: "fd17::2"}
ORIGIN = {4: "198.18.1.10", 6: "2001:db8:a1::10"}
INSIDE, OUTSIDE, DOCKER = 2, 3, 4
families = pytest.mark.parametrize("family", [4, 6])


def tuple_of(source: str, destination: str) -> Tuple:
    return Tuple(socket.IPPROTO_TCP, pack(ip_address(source)), pack(ip_address(destination)), 50000, 443)


def entry(client: str, source: str, origin: str) -> Entry:
    return Entry(tuple_of(client, origin), tuple_of(origin, source), "ESTABLISHED", 100, 0)


def opened_by_origin(client: str, source: str, origin: str) -> Entry:
    return Entry(tuple_of(origin, source), tuple_of(client, origin), "ESTABLISHED", 100, 0, IPS_EXPECTED)


@families
@pytest.mark.parametrize(
    ("reached_by", "ours"), [(INSIDE, True), (OUTSIDE, True), (None, True), (DOCKER, False)]
)
@pytest.mark.parametrize("make", [entry, opened_by_origin])
def test_routes_tell_what_is_no_flow(
    monkeypatch: pytest.MonkeyPatch,
    family: int,
    reached_by: int | None,
    ours: bool,
    make: Callable[[str, str, str], Entry],
) -> None:
    found = make(CONTAINER[family], SHARED[family], ORIGIN[family])
    asked: list[bytes] = []

    def interfaces_to(addresses: list[bytes]) -> list[int | None]:
        asked.extend(addresses)
        return [reached_by] * len(addresses)

    monkeypatch.setattr(nat_connections.routes, "interfaces_to", interfaces_to)
    shared = AddressSet.of([ip_address(SHARED[family])], ())
    assert Clients(shared, (), {INSIDE, OUTSIDE}).own([found]) == [found] * ours
    assert asked == [pack(ip_address(CONTAINER[family]))]
    # A connection with a flow belongs to the enforcer, wherever its client is routed.
    flow = tuple_of(CONTAINER[family], ORIGIN[family])
    assert Clients(shared, {flow}, {INSIDE, OUTSIDE}).own([found]) == [found]
    dedicated = make(CONTAINER[family], DEDICATED[family], ORIGIN[family])
    assert Clients(shared, (), {INSIDE, OUTSIDE}).own([dedicated]) == [dedicated]
