"""Tests of the watch for changes of routes, filters and nftables."""

from __future__ import annotations

import select
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Network

import pytest

from enforcer.errors import KernelError
from enforcer.kernel import addresses, events, nft
from enforcer.kernel import watch as watching
from enforcer.kernel.nft import generations
from enforcer.kernel.nft.ruleset import Ruleset
from enforcer.kernel.watch import Watch
from lab.netns import run

from ..conftest import new_namespace


@pytest.fixture
def watch(netns: str) -> Iterator[Watch]:
    run("ip link add out0 type veth peer name far0")
    run("ip link set out0 up")
    with Watch() as opened:
        yield opened


def readable(watch: Watch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


@pytest.mark.parametrize(
    "command",
    [
        "ip addr add 203.0.113.10/32 dev out0",
        "ip addr add 2001:db8::1/128 dev out0 nodad",
        "ip route add local 2001:db8:5::/64 dev lo table local",
        "ip link set out0 down",
    ],
)
def test_changes_of_routes(watch: Watch, command: str) -> None:
    watch.drain()
    assert not readable(watch)
    run(command)
    assert readable(watch)
    assert "route" in watch.drain()
    assert watch.drain() == set()


@pytest.mark.parametrize("route", ["198.51.100.0/24", "2001:db8:5::/64"])
def test_routes_to_elsewhere_are_no_news(watch: Watch, route: str) -> None:
    watch.drain()
    run(f"ip route add {route} dev out0")
    assert watch.drain() == set()


def test_changes_of_filters(watch: Watch) -> None:
    watch.drain()
    run("tc qdisc add dev out0 clsact")
    assert watch.drain() == {"filter"}
    run("tc filter add dev out0 ingress bpf bytecode '1,6 0 0 0,'")
    assert "filter" in watch.drain()


def test_our_own_changes_of_nftables_are_silent(watch: Watch) -> None:
    watch.drain()
    nft.apply(Ruleset(0xFFFF, ("in0",), ("out0",)))
    nft.apply(Ruleset(0xFFFF, ("in1",), ("out0",)))
    nft.remove()
    assert watch.drain() == set()


@pytest.mark.parametrize(
    "command",
    [
        "nft flush ruleset",
        "nft delete table inet enforcer",
        "nft flush chain inet enforcer forward",
        "nft add element inet enforcer dedicated4 '{ 203.0.113.9 }'",
        "nft flush map inet enforcer source4",
    ],
)
def test_other_peoples_changes_of_our_table(watch: Watch, command: str) -> None:
    nft.apply(Ruleset(0xFFFF, ("in0",), ("out0",), {1: IPv4Address("203.0.113.1")}))
    watch.drain()
    run(command)
    assert watch.drain() == {"nft"}


def test_other_tables_are_no_matter(watch: Watch) -> None:
    nft.apply(Ruleset(0xFFFF, ("in0",), ("out0",)))
    watch.drain()
    run("nft add table inet other")
    run("nft add table ip enforcer")
    assert watch.drain() == set()


def test_other_namespaces_are_no_matter(watch: Watch) -> None:
    watch.drain()
    with new_namespace("other") as other:
        run(f"ip -n {other} addr add 203.0.113.10/32 dev lo")
        assert watch.drain() == set()


def test_an_overflow_is_every_event(watch: Watch) -> None:
    watch.drain()
    addresses.add([("out0", IPv4Interface((0x0A000000 + number, 32))) for number in range(3000)])
    assert watch.drain() == {"route", "filter"}
    assert watch.drain() == set()


LARGE = Ruleset(
    *(0xFFFF, ("in0",), ("out0",)),
    source4={number: IPv4Address(0xCB007100 + number) for number in range(1, 200)},
    source6={number: IPv6Network((number << 64, 64)) for number in range(1, 200)},
)


@pytest.fixture
def narrow(netns: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A watch whose queue is too small for the events of one large table."""
    monkeypatch.setattr(watching, "RECEIVE_BUFFER", 1)
    with Watch() as opened:
        yield opened


def overflows(watch: Watch) -> bool:
    """Whether events were lost; discards the others."""
    return None in list(events.received(watch._nft))


def test_our_own_large_table_overflows_the_queue(narrow: Watch) -> None:
    nft.apply(LARGE)
    assert overflows(narrow)


def test_an_overflow_by_our_own_table_is_no_news(narrow: Watch) -> None:
    for _ in range(3):
        nft.apply(LARGE)
        assert narrow.drain() == set()
    nft.apply(LARGE)
    nft.apply(LARGE)
    nft.remove()
    assert narrow.drain() == set()
    assert narrow.drain() == set()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        "nft flush chain inet enforcer forward",
        "nft add element inet enforcer dedicated4 '{ 203.0.113.9 }'",
        "nft flush map inet enforcer source6",
        "nft add table inet other",  # the content of this event is lost
    ],
)
def test_a_change_of_others_beside_an_overflow_by_our_own(narrow: Watch, before: bool, command: str) -> None:
    nft.apply(LARGE)
    nft.apply(LARGE)
    narrow.drain()
    if before:
        nft.apply(LARGE)  # leaves no room for events of other changes
    run(command)
    nft.apply(LARGE)
    assert narrow.drain() == {"nft", "filter"}
    assert narrow.drain() == set()
    nft.apply(LARGE)
    assert narrow.drain() == set()


def test_refused_transactions_count_as_none(narrow: Watch) -> None:
    before = generations.generation()
    with pytest.raises(KernelError):
        nft.apply(Ruleset(0xFFFF, ("in0" * 10,), ("out0",)))
    assert not nft.remove()
    assert generations.generation() == before
    nft.apply(LARGE)
    assert generations.since(before, generations.generation()) == 1
    assert narrow.drain() == set()


def test_the_generation_that_cannot_be_read(narrow: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    nft.apply(LARGE)

    def refuse() -> int:
        raise KernelError("the kernel is busy")

    monkeypatch.setattr(generations, "generation", refuse)
    assert narrow.drain() == {"nft", "filter"}


@pytest.mark.parametrize(
    ("before", "now", "commits"),
    [(1, 1, 0), (1, 4, 3), (4, 1, -3), (0xFFFFFFFF, 1, 2), (1, 0xFFFFFFFF, -2)],
)
def test_generations_begin_again(before: int, now: int, commits: int) -> None:
    assert generations.since(before, now) == commits
