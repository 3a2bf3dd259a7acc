"""Tests of full tables and client limits: eviction removes unanswered and closed flows, never live ones."""

from __future__ import annotations

import struct
from collections import Counter
from functools import cache

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from enforcer.datapath import sweep
from enforcer.datapath.program_runs import run_on
from lab.configuration import Document
from lab.netns import run

from .box import CLIENT, CLIENT_MAC, MAC, NO_FILTER, ORIGIN, REFUSED, Box
from .box import document as plain_document

FLOWS = ORIGINS = 1024
OF_A_CLIENT, UNANSWERED = 700, 300
OPENED = ("nearest", "policy")
NEIGHBOUR = {4: "10.1.0.3", 6: "fd01:0:0:1::2"}
"""Another client; for IPv6 in another /64."""


@pytest.fixture(scope="module")
def document() -> Document:
    sizes = {"flows": FLOWS, "origins": ORIGINS}
    caps = {"flows_per_client": OF_A_CLIENT, "unanswered_per_client": UNANSWERED}
    return plain_document(limits={"connections_per_origin": 40000, **sizes, **caps})


@pytest.fixture(scope="module", autouse=True)
def networks(box: Box) -> None:
    """Routes fd01::/48 through a router inside: each /64 of it is a client."""
    run(f"ip -6 route add fd01::/48 via {CLIENT[6]} dev in0")


@pytest.fixture(autouse=True)
def nothing_lives(box: Box) -> None:
    box.forget_everything()
    sweep.keep_evictable(box.pins, FLOWS)  # empties the queue


@cache
def frame(family: int, client: str, kind: type, **fields: object) -> bytes:
    """A frame from a client to the origin, with ports 1 and 2."""
    ip = (IP if family == 4 else IPv6)(src=client, dst=ORIGIN[family])
    return bytes(Ether(src=CLIENT_MAC, dst=MAC["in0"]) / ip / kind(sport=1, dport=2, **fields))


def with_ports(made: bytes, family: int, sport: int, dport: int) -> bytes:
    at = 14 + (20 if family == 4 else 40)
    return made[:at] + struct.pack(">HH", sport, dport) + made[at + 4 :]


def syn(
    family: int, client: str, sport: int, dport: int, flags: str = "S", seq: int = 100, ack: int = 0
) -> bytes:
    return with_ports(frame(family, client, TCP, flags=flags, seq=seq, ack=ack), family, sport, dport)


def datagram(family: int, client: str, sport: int, dport: int) -> bytes:
    return with_ports(frame(family, client, UDP), family, sport, dport)


@cache
def answered(family: int, client: str, kind: type, **fields: object) -> bytes:
    ip = (IP if family == 4 else IPv6)(src=ORIGIN[family], dst=client)
    return bytes(Ether(src=MAC["in0"], dst="ff:ff:ff:ff:ff:ff") / ip / kind(sport=1, dport=2, **fields))


def answer(family: int, client: str, sport: int, dport: int, kind: type = UDP, **fields: object) -> bytes:
    """A reply as to_client receives it, with the client's address and port."""
    return with_ports(answered(family, client, kind, **fields), family, dport, sport)


def send(box: Box, frame: bytes) -> str:
    with box.counted() as counted:
        assert box.program("from_client")(frame) == NO_FILTER
    (reason,) = counted.packets
    return reason


def ask(box: Box, family: int, client: str, number: int, answered: bool) -> str:
    """Opens one more flow of a client, to an origin of its own; returns the reason."""
    sport, dport = 2000 + number % 50000, 1000 + number % 60000
    reason = send(box, datagram(family, client, sport, dport))
    if answered and reason in OPENED:
        box.program("to_client")(answer(family, client, sport, dport))
    return reason


def clients(family: int, count: int) -> list[str]:
    """The addresses of ``count`` clients, for IPv6 each in another /64."""
    return [f"10.1.1.{n + 1}" if family == 4 else f"fd01:0:0:{n + 16:x}::2" for n in range(count)]


def used(box: Box) -> tuple[int, int]:
    return len(box.maps.flows.items()[0]), len(box.maps.origins.items()[0])


def events(box: Box) -> int:
    row = box.maps.events.get(0)
    assert row is not None
    return int(row)


def opened(reasons: list[str]) -> Counter[str]:
    return Counter("opened" if reason in OPENED else reason for reason in reasons)


def test_a_client_has_so_many_unanswered_flows(box: Box, family: int) -> None:
    reasons = [ask(box, family, CLIENT[family], n, answered=False) for n in range(UNANSWERED + 5)]
    assert opened(reasons) == {"opened": UNANSWERED, "client-unanswered": 5}
    assert box.program("from_client").mark == REFUSED
    # The limit does not affect other clients, and an answer makes room for another flow.
    assert opened([ask(box, family, NEIGHBOUR[family], 7, answered=False)]) == {"opened": 1}
    box.program("to_client")(answer(family, CLIENT[family], 2000, 1000))
    reasons = [ask(box, family, CLIENT[family], 5000 + n, answered=False) for n in range(2)]
    assert opened(reasons) == {"opened": 1, "client-unanswered": 1}


def test_an_ipv6_client_is_its_64(box: Box) -> None:
    """One host may use every address of its /64."""
    for n in range(UNANSWERED):
        assert opened([ask(box, 6, f"fd01::{n + 2:x}", n, answered=False)]) == {"opened": 1}
    assert ask(box, 6, "fd01::ffff:1", 9999, answered=False) == "client-unanswered"
    ((key,), (row,)) = box.maps.client_prefixes.items()
    assert (int(row["flows"]), int(row["unanswered"]), int(row["refused"])) == (UNANSWERED, UNANSWERED, 1)
    assert key["client"].tobytes().hex() == "fd01" + "00" * 14


def test_half_open_connections_are_unanswered(box: Box, family: int) -> None:
    """A host that sends SYNs and completes no handshake gets SYN/ACKs from any listening origin."""
    client, count = CLIENT[family], UNANSWERED + 5
    reasons = []
    for n in range(count):
        reasons.append(send(box, syn(family, client, 2000 + n, 443)))
        frame = answer(family, client, 2000 + n, 443, TCP, flags="SA", seq=500, ack=101)
        box.program("to_client")(frame)
    assert opened(reasons) == {"opened": UNANSWERED, "client-unanswered": 5}
    # A completed handshake makes room for another connection.
    assert send(box, syn(family, client, 2000, 443, "A", 101, 501)) in OPENED
    assert opened([send(box, syn(family, client, 9000, 443))]) == {"opened": 1}


def test_a_client_has_so_many_live_flows(box: Box, family: int) -> None:
    reasons = [ask(box, family, CLIENT[family], n, answered=True) for n in range(OF_A_CLIENT + 3)]
    assert opened(reasons) == {"opened": OF_A_CLIENT, "client-flows": 3}
    assert opened([ask(box, family, NEIGHBOUR[family], 7, answered=True)]) == {"opened": 1}


def test_flows_that_end_are_a_clients_no_more(box: Box, family: int) -> None:
    """Flows end by a reset, by a sweep, and with their egress IP."""
    client = CLIENT[family]
    for n in range(5):
        send(box, syn(family, client, 3000 + n, 443))
        send(box, syn(family, client, 3000 + n, 443, "R"))
    for n in range(5):
        ask(box, family, client, n, answered=bool(n % 2))
    rows = box.maps.client_prefixes.items()[1]
    assert (int(rows["flows"][0]), int(rows["unanswered"][0])) == (5, 3)
    slots = {int(slot) for slot in box.maps.flows.items()[1]["slot"]}
    assert sweep.end_flows(box.maps.flows, box.pins, slots) == 5
    rows = box.maps.client_prefixes.items()[1]
    assert (int(rows["flows"][0]), int(rows["unanswered"][0])) == (0, 0)


def test_unanswered_flows_make_room_the_oldest_first(box: Box, family: int) -> None:
    """Four clients fill the table; a fifth is admitted, and the answered flows stay."""
    before = events(box)
    live, *others = clients(family, 5)
    for n in range(200):
        assert opened([ask(box, family, live, n, answered=True)]) == {"opened": 1}
    for number, client in enumerate(others):
        sweep.keep_evictable(box.pins, FLOWS)  # as the daemon does with every sweep
        for n in range(UNANSWERED):
            reason = ask(box, family, client, 1000 * (number + 1) + n, answered=False)
            assert opened([reason]) == {"opened": 1}
    assert used(box)[0] == FLOWS
    assert events(box) - before == 200 + 4 * UNANSWERED - FLOWS
    rows = box.maps.flows.items()[1]
    assert int((rows["replied"] == 1).sum()) == 200
    # The oldest flows of the first client are gone, those of the last client are complete.
    keys = box.maps.flows.items()[0]
    left = Counter(key["client"].tobytes() for key in keys)
    assert sorted(left.values()) == [200, FLOWS - 200 - 2 * UNANSWERED, UNANSWERED, UNANSWERED]


def test_live_flows_make_no_room(box: Box, family: int) -> None:
    first, second, third = clients(family, 3)
    for n in range(OF_A_CLIENT):
        assert opened([ask(box, family, first, n, answered=True)]) == {"opened": 1}
    for n in range(FLOWS - OF_A_CLIENT):
        assert opened([ask(box, family, second, 1000 + n, answered=True)]) == {"opened": 1}
    reasons = [ask(box, family, third, 5000 + n, answered=False) for n in range(20)]
    assert set(reasons) <= {"flows-full", "origins-full"}
    assert box.program("from_client").mark == REFUSED
    assert used(box)[0] == FLOWS and int((box.maps.flows.items()[1]["replied"] == 1).sum()) == FLOWS


def test_closed_connections_make_room(box: Box, family: int) -> None:
    """A client opens and closes connections, to an origin that cooperates."""
    client = CLIENT[family]
    for n in range(FLOWS + 50):
        sport, dport = 2000 + n % 1000, 400 + n // 1000
        assert opened([send(box, syn(family, client, sport, dport))]) == {"opened": 1}
        for flags in ("SA", "R"):
            box.program("to_client")(answer(family, client, sport, dport, TCP, flags=flags, seq=500, ack=101))
    assert used(box)[0] == FLOWS


def test_origins_without_a_flow_make_room(box: Box, family: int) -> None:
    """A client that opens and resets connections to many origins does not exclude new origins."""
    client = CLIENT[family]
    for n in range(ORIGINS + 200):
        assert opened([send(box, syn(family, client, 2000, 1000 + n))]) == {"opened": 1}
        send(box, syn(family, client, 2000, 1000 + n, "R"))
    assert used(box) == (0, ORIGINS)


def test_answered_origins_stay(box: Box, family: int) -> None:
    """Origins with an answered flow stay; those of unanswered flows make room."""
    live, *others = clients(family, 5)
    for n in range(100):
        ask(box, family, live, n, answered=True)
    for number, client in enumerate(others):
        for n in range(UNANSWERED):
            ask(box, family, client, 1000 * (number + 1) + n, answered=False)
    keys, rows = box.maps.origins.items()
    ports = {int(port).to_bytes(2, "little") for port in keys["origin_port"][rows["active"] > 0]}
    assert ports >= {(1000 + n).to_bytes(2, "big") for n in range(100)}


def test_a_full_table_of_clients_keeps_none_out(box: Box, family: int) -> None:
    """Flows of clients for which there is no room are not counted for the client, but for the origin."""
    count = FLOWS // 4 + 20
    for n in range(count):
        client = f"10.1.{1 + n // 200}.{1 + n % 200}" if family == 4 else f"fd01:0:0:{n + 16:x}::2"
        assert opened([ask(box, family, client, n, answered=False)]) == {"opened": 1}
    assert len(box.maps.client_prefixes.items()[0]) == FLOWS // 4
    assert int(box.maps.origins.items()[1]["active"].sum()) == count
    box.forget_everything()  # here the counts differ from the flows, as intended


def test_unused_clients_are_forgotten(box: Box, family: int) -> None:
    for client in clients(family, 3):
        send(box, syn(family, client, 2000, 443))
    send(box, syn(family, clients(family, 3)[0], 2000, 443, "R"))
    keys = box.maps.client_prefixes.items()[0]
    assert run_on(box.pins, "forget_clients", keys) == 1
    assert len(box.maps.client_prefixes.items()[0]) == 2
    assert np.all(box.maps.client_prefixes.items()[1]["flows"] == 1)
