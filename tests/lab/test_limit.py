"""Tests of the limit: exact, refusals at once, no eviction, and every end of a connection frees one place."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from truth import (
    Origin,
    counted,
    families,
    foretold,
    leaves_from,
    packets,
    row_of,
    running,
    tracked,
    wait_for,
)
from versions import impatient

from lab.clients import Session, UdpFlow, family_of, fate
from lab.configuration import LAX1, Document
from lab.gateway import LabGateway
from lab.load import Hammer, Holders, client_sources
from lab.topology import CLIENT, CLIENT2, ORIGIN1, ORIGIN2, Lab

LIMIT = 50
_ports = itertools.count(7000, 2)
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])

# How a refusal appears at a socket, by family: ICMP "administratively prohibited".
PROHIBITED = {4: "EHOSTUNREACH", 6: "EACCES"}


def config(lab: Lab, limit: int) -> Document:
    """A configuration in which all traffic leaves by one egress IP."""
    everything = {
        "name": "everything",
        "precedence": 1,
        "traffic": 'net.protocol in {"tcp" "udp"}',
        "egress": {"ipv4": LAX1[4]},
    }
    return lab.config(limits={"connections_per_origin": limit}, policies=[everything])


@pytest.fixture(scope="module")
def enforced(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGateway]:
    version = impatient(tmp_path_factory.mktemp("version"))
    with running(lab, config(lab, LIMIT), version) as gateway:
        yield gateway


@pytest.fixture
def port() -> int:
    """A port of which each test has its own, and of the one above: fresh origins."""
    return next(_ports)


def refused(protocol: str, family: int) -> str:
    return "ECONNREFUSED" if protocol == "tcp" else PROHIBITED[family]


def key(protocol: str, family: int, origin: dict[int, str], port: int) -> Origin:
    return Origin(leaves_from(LAX1, family), protocol, origin[family], port)


def stays(gateway: LabGateway, expected: dict[Origin, int]) -> None:
    """Assert that our counts and conntrack's are these."""
    ours, theirs = counted(gateway), tracked(gateway.lab)
    assert {origin: (ours[origin], theirs[origin]) for origin in expected} == {
        origin: (number, number) for origin, number in expected.items()
    }


@pytest.mark.rfc4787_req11
@pytest.mark.rfc7857_4
@pytest.mark.rfc6888_req11a
@pytest.mark.rfc6888_req11d
@families
@protocols
def test_exactly_so_many_and_for_this_origin_alone(
    enforced: LabGateway, port: int, family: int, protocol: str
) -> None:
    lab = enforced.lab
    with ExitStack() as stack:
        for namespace, number in ((lab.origin1, port), (lab.origin1, port + 1), (lab.origin2, port)):
            stack.enter_context(Holders(namespace, number, capacity=2 * LIMIT))

        def hammer(
            origin: dict[int, str], number: int = port, protocol: str = protocol, source: str = CLIENT[family]
        ) -> Hammer:
            made = Hammer(
                lab.client, origin[family], number, sources=[source], protocol=protocol, capacity=2 * LIMIT
            )
            return stack.enter_context(made)

        first = hammer(ORIGIN1)
        opened = first.open(LIMIT)
        assert (opened.opened, opened.failed) == (LIMIT, {})
        assert counted(enforced)[key(protocol, family, ORIGIN1, port)] == LIMIT

        told = foretold(enforced, ORIGIN1[family], protocol, port)
        assert (told["verdict"], told["reason"], told["active"]) == ("refused", "limit", LIMIT)
        before = packets(enforced)["limit"]
        for _ in range(5):
            opened = first.open(1)
            assert (opened.opened, opened.failed) == (0, {refused(protocol, family): 1})
            assert opened.seconds < 1  # at once: neither by a timeout nor after a retransmission
        assert packets(enforced)["limit"] == before + 5
        row = row_of(enforced, key(protocol, family, ORIGIN1, port))
        assert (row["active"], row["peak"], row["total"], row["refused"]) == (LIMIT, LIMIT, LIMIT, 5)

        # Another address, another port and another protocol are other origins.
        assert hammer(ORIGIN2).open(LIMIT + 1).failed == {refused(protocol, family): 1}
        assert hammer(ORIGIN1, port + 1).open(LIMIT + 1).failed == {refused(protocol, family): 1}
        other = "udp" if protocol == "tcp" else "tcp"
        assert hammer(ORIGIN1, protocol=other).open(LIMIT + 1).failed == {refused(other, family): 1}
        # In IPv4 another client shares the address; in IPv6 it has its own.
        neighbour = hammer(ORIGIN1, source=client_sources(family)[1])
        assert neighbour.open(1).opened == (0 if family == 4 else 1)

        # No connection was evicted.
        assert first.probe().answered == LIMIT
        stays(
            enforced,
            {key(protocol, family, ORIGIN1, port): LIMIT, key(protocol, family, ORIGIN2, port): LIMIT},
        )


@families
def test_each_end_of_a_tcp_connection_gives_back_one(enforced: LabGateway, port: int, family: int) -> None:
    lab = enforced.lab
    origin = key("tcp", family, ORIGIN1, port)
    with (
        Holders(lab.origin1, port, capacity=2 * LIMIT) as holders,
        Hammer(lab.client, ORIGIN1[family], port, sources=[CLIENT[family]], capacity=2 * LIMIT) as hammer,
    ):
        assert hammer.open(LIMIT).opened == LIMIT

        def one_more_is_admitted() -> None:
            wait_for(lambda: counted(enforced)[origin] == LIMIT - 1, "one given back")
            opened = hammer.open(2)
            assert (opened.opened, opened.failed) == (1, {"ECONNREFUSED": 1})

        hammer.close(1)  # FIN by the client, then by the origin
        one_more_is_admitted()
        hammer.reset(1)  # RST by the client
        one_more_is_admitted()
        holders.reset(1)  # RST by the origin
        one_more_is_admitted()
        holders.close(1)  # FIN by the origin: the client's half is still open
        time.sleep(0.2)
        assert counted(enforced)[origin] == LIMIT
        hammer.count()  # closes the client's half
        one_more_is_admitted()
        assert hammer.probe().answered == LIMIT
        stays(enforced, {origin: LIMIT})


@families
def test_a_refused_connection_takes_no_room(enforced: LabGateway, port: int, family: int) -> None:
    """A closed port answers with RST, so the connection frees its place."""
    with Hammer(
        enforced.lab.client, ORIGIN1[family], port, sources=[CLIENT[family]], capacity=3 * LIMIT
    ) as hammer:
        assert hammer.open(3 * LIMIT).failed == {"ECONNREFUSED": 3 * LIMIT}
    row = row_of(enforced, key("tcp", family, ORIGIN1, port))
    assert (row["active"], row["total"], row["refused"]) == (0, 3 * LIMIT, 0)
    stays(enforced, {key("tcp", family, ORIGIN1, port): 0})


@pytest.fixture
def short_timers(enforced: LabGateway) -> Iterator[LabGateway]:
    """A gateway that forgets half-open and idle flows after seconds."""
    normal = config(enforced.lab, LIMIT)
    enforced.reload(normal | {"timers": {"tcp_transitory": 4, "udp": 1}})
    yield enforced
    enforced.reload(normal)


@families
def test_half_open_connections_count_once_and_end_by_timeout(
    short_timers: LabGateway, port: int, family: int
) -> None:
    lab = short_timers.lab
    origin = key("tcp", family, ORIGIN1, port)
    with ExitStack() as stack:
        lab.origin1.run(
            "nft",
            "add table inet deaf; add chain inet deaf input { type filter hook input priority 0; }; "
            f"add rule inet deaf input tcp dport {port} drop",
        )
        stack.callback(lab.origin1.run, "nft", "delete table inet deaf")
        waiting = []
        for _ in range(LIMIT):
            attempt = stack.enter_context(
                closing(lab.client.socket(family_of(CLIENT[family]), socket.SOCK_STREAM))
            )
            attempt.setblocking(False)
            attempt.connect_ex((ORIGIN1[family], port))
            waiting.append(attempt)
        wait_for(lambda: counted(short_timers)[origin] == LIMIT)
        with pytest.raises(ConnectionRefusedError):
            Session(lab.client, ORIGIN1[family], port)
        time.sleep(1.5)  # SYN retransmissions start after a second
        row = row_of(short_timers, origin)
        assert (row["active"], row["peak"], row["total"]) == (LIMIT, LIMIT, LIMIT)
        assert tracked(lab)[origin] == LIMIT
        for attempt in waiting:
            attempt.close()
        wait_for(lambda: counted(short_timers)[origin] == 0)
        assert tracked(lab)[origin] == 0


@families
def test_idle_udp_flows_are_given_back_and_busy_ones_stay(
    short_timers: LabGateway, port: int, family: int
) -> None:
    lab = short_timers.lab
    origin = key("udp", family, ORIGIN1, port)
    with (
        Holders(lab.origin1, port, capacity=LIMIT) as holders,
        Hammer(
            lab.client, ORIGIN1[family], port, sources=[CLIENT[family]], protocol="udp", capacity=2 * LIMIT
        ) as idle,
        UdpFlow(lab.client, ORIGIN1[family], port) as busy,
    ):
        busy.socket.send(b"?")
        assert busy.socket.recv(16) == b"?"
        assert idle.open(LIMIT).failed == {PROHIBITED[family]: 1}
        deadline = time.monotonic() + 20
        while counted(short_timers)[origin] != 1:
            assert time.monotonic() < deadline
            busy.socket.send(b"?")
            assert busy.socket.recv(16) == b"?"
            time.sleep(0.2)
        # The busy flow kept its translation: it was neither evicted nor admitted again.
        assert holders.count().udp == LIMIT
        assert idle.open(LIMIT - 1).opened == LIMIT - 1


@pytest.mark.rfc5508_req8
@pytest.mark.rfc6888_req11b
@families
def test_refusals_of_udp_name_their_reason(enforced: LabGateway, port: int, family: int) -> None:
    lab = enforced.lab
    with (
        Holders(lab.origin1, port, capacity=LIMIT),
        Hammer(
            lab.client, ORIGIN1[family], port, sources=[CLIENT[family]], protocol="udp", capacity=LIMIT
        ) as hammer,
        UdpFlow(lab.client, ORIGIN1[family], port) as late,
    ):
        hammer.open(LIMIT)
        with pytest.raises(OSError, match=r"No route|denied") as refusal:
            late.ask()
        assert fate(refusal.value) == "prohibited"
        error = late.error()
        assert error is not None
        assert (error.kind, error.code) == ((3, 13) if family == 4 else (1, 1))
        # A refused flow has no entry: the enforcer decides each of its packets again.
        assert hammer.count() == LIMIT
        stays(enforced, {key("udp", family, ORIGIN1, port): LIMIT})


@families
def test_a_changed_limit_holds_from_the_reload_on(enforced: LabGateway, port: int, family: int) -> None:
    lab = enforced.lab
    with (
        Holders(lab.origin1, port, capacity=LIMIT),
        Hammer(lab.client, ORIGIN1[family], port, sources=[CLIENT[family]], capacity=2 * LIMIT) as hammer,
    ):
        try:
            assert hammer.open(20).opened == 20
            enforced.reload(config(lab, 10))
            assert hammer.open(1).failed == {"ECONNREFUSED": 1}
            assert hammer.probe().answered == 20
            hammer.close(11)
            wait_for(lambda: counted(enforced)[key("tcp", family, ORIGIN1, port)] == 9)
            assert hammer.open(2).opened == 1
        finally:
            enforced.reload(config(lab, LIMIT))
        assert hammer.open(2).opened == 2


@pytest.mark.rfc4787_req3
@pytest.mark.rfc5382_req7
@pytest.mark.rfc6888_req13
@pytest.mark.slow
@pytest.mark.timeout(1500)
@families
def test_forty_thousand_to_each_of_two_origins_through_one_address(
    enforced: LabGateway, port: int, family: int
) -> None:
    """Two clients share the address; in IPv6 their host bits are equal."""
    lab = enforced.lab
    many = 40_000
    half = many // 2
    enforced.reload(config(lab, many))
    try:
        with ExitStack() as stack:
            sides = []
            for namespace, origin in ((lab.origin1, ORIGIN1), (lab.origin2, ORIGIN2)):
                holders = stack.enter_context(Holders(namespace, port))
                hammers = [
                    stack.enter_context(
                        Hammer(client, origin[family], port, sources=[source], capacity=half + 1)
                    )
                    for client, source in ((lab.client, CLIENT[family]), (lab.client2, CLIENT2[family]))
                ]
                sides.append((holders, hammers))
            for _, (first, second) in sides:
                opened = first.open(half), second.open(half - 1)
                assert [each.failed for each in opened] == [{}, {}]
                print(f"IPv{family}: {many - 1:,} in {opened[0].seconds + opened[1].seconds:.1f} s")
                assert second.open(1).opened == 1
                for hammer in (first, second):
                    refusal = hammer.open(1)
                    assert (refusal.opened, refusal.failed) == (0, {"ECONNREFUSED": 1})
                    assert refusal.seconds < 1
                    print(f"IPv{family}: number {many + 1:,} refused in {refusal.seconds * 1000:.2f} ms")
            expected = {key("tcp", family, origin, port): many for origin in (ORIGIN1, ORIGIN2)}
            stays(enforced, expected)
            for holders, _ in sides:
                peers = holders.peers()
                assert len(peers) == len(set(peers)) == many
                assert {address for address, _ in peers} == {leaves_from(LAX1, family)}
            for _, (first, _) in sides:
                assert first.close(1) == 1
            fewer = dict.fromkeys(expected, many - 1)
            wait_for(lambda: fewer.items() <= counted(enforced).items(), "one given back")
            for _, (_, second) in sides:
                again = second.open(2)
                assert (again.opened, again.failed) == (1, {"ECONNREFUSED": 1})
            for holders, hammers in sides:
                assert sum(hammer.probe().answered for hammer in hammers) == many
                assert holders.count().tcp == many
            stays(enforced, expected)
        wait_for(lambda: not expected.keys() & counted(enforced).keys(), "all given back", patience=60)
        stays(enforced, dict.fromkeys(expected, 0))
    finally:
        enforced.reload(config(lab, LIMIT))
