"""Tests of the events after which packets may take another path."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from enforcer.kernel import netlink, nft
from enforcer.kernel.events import Event
from enforcer.kernel.nft.ruleset import Ruleset
from enforcer.kernel.path_watch import (
    NDA_DST,
    NDA_LLADDR,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
    Neighbours,
    PathWatch,
)
from lab.netns import run

from ..conftest import new_namespace

ROUTER = {socket.AF_INET: "192.0.2.2", socket.AF_INET6: "2001:db8::2"}
A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


@pytest.fixture
def link(netns: str) -> str:
    run("ip link add out0 type veth peer name far0")
    run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.out0.accept_dad=0")
    run("ip addr add 192.0.2.1/24 dev out0")
    run("ip addr add 2001:db8::1/64 dev out0 nodad")
    run("ip link set far0 up")
    run("ip link set out0 up")
    return "out0"


@pytest.fixture
def watch(link: str) -> Iterator[PathWatch]:
    with PathWatch() as opened:
        quiet(opened)
        yield opened


def quiet(watch: PathWatch) -> None:
    """Reads the events of all earlier changes."""
    while select.select([watch], [], [], 0.1)[0]:
        watch.drain()


def readable(watch: PathWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


@pytest.mark.parametrize(
    "command",
    [
        "ip route add 198.51.100.0/24 dev out0",
        "ip route add 198.51.100.0/24 dev out0 table 100",
        "ip route add 2001:db8:5::/64 dev out0",
        "ip route add 2001:db8:5::/64 dev out0 table 100",
        "ip route add local 2001:db8:5::/64 dev lo table local",
        "ip rule add from 10.0.0.0/8 lookup 100",
        "ip -6 rule add from fd00::/8 lookup 100",
        "ip nexthop add id 7 via 192.0.2.2 dev out0",
        "ip addr add 203.0.113.10/32 dev out0",
        "ip addr add 2001:db8::5/128 dev out0 nodad",
        "ip addr del 192.0.2.1/24 dev out0",
        "ip link set out0 down",
        "ip link set out0 mtu 1400",
        f"ip link set out0 address {A}",
        "ip link del out0",
        "ip link add in0 type veth",
        "sysctl -qw net.ipv4.conf.all.forwarding=1",
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
        "tc qdisc add dev out0 clsact",
        "nft add table inet other",
        "nft add table ip enforcer",
        f"ip neigh add 192.0.2.9 lladdr {A} dev out0 && ip neigh del 192.0.2.9 dev out0",
    ],
)
def test_packets_may_go_another_way(watch: PathWatch, command: str) -> None:
    assert not readable(watch)
    run(command)
    assert readable(watch)
    assert watch.drain() is True


def test_our_own_table_is_for_those_who_write_it(watch: PathWatch) -> None:
    nft.apply(Ruleset(0xFFFF, ("in0",), ("out0",), {1: IPv4Address("203.0.113.1")}))
    nft.remove()
    assert watch.drain() is False


def test_what_others_change_of_our_table(watch: PathWatch) -> None:
    nft.apply(Ruleset(0xFFFF, ("in0",), ("out0",), {1: IPv4Address("203.0.113.1")}))
    assert watch.drain() is False
    run("nft flush chain inet enforcer forward")
    assert watch.drain() is True


def test_other_namespaces_are_no_matter(watch: PathWatch) -> None:
    with new_namespace("other") as other:
        run(f"ip -n {other} addr add 203.0.113.10/32 dev lo")
        run(f"ip -n {other} route add 198.51.100.0/24 dev lo")
        assert watch.drain() is False


def test_any_number_of_routes_is_one_piece_of_news(watch: PathWatch) -> None:
    """Events that do not fit into the queue take no time, and later events arrive as well."""
    lines = "".join(f"route add 10.{n >> 8}.{n & 255}.0/24 dev out0\n" for n in range(5000))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    assert watch.drain() is True
    assert watch.drain() is False
    run("ip route del 10.3.0.0/24 dev out0")
    assert watch.drain() is True


# --- neighbours


def test_a_neighbour_with_another_address(watch: PathWatch, family: int) -> None:
    router = ROUTER[family]
    run(f"ip neigh add {router} lladdr {A} dev out0 nud reachable")
    assert watch.drain() is False, "nobody can have learnt from it"
    for state in ("stale", "delay", "probe", "reachable", "permanent", "stale"):
        run(f"ip neigh replace {router} lladdr {A} dev out0 nud {state}")
        assert readable(watch)
        assert watch.drain() is False, state
    run(f"ip neigh replace {router} lladdr {B} dev out0 nud reachable")
    assert watch.drain() is True
    run(f"ip neigh replace {router} lladdr {B} dev out0 nud stale")
    assert watch.drain() is False


def test_a_neighbour_from_before(link: str, family: int) -> None:
    """The watch knows the neighbours that existed before it."""
    router = ROUTER[family]
    run(f"ip neigh add {router} lladdr {A} dev out0 nud permanent")
    with PathWatch() as watch:
        quiet(watch)
        run(f"ip neigh replace {router} lladdr {A} dev out0 nud stale")
        assert watch.drain() is False
        run(f"ip neigh replace {router} lladdr {B} dev out0 nud stale")
        assert watch.drain() is True


@pytest.mark.parametrize("end", ["ip neigh del {} dev out0", "ip neigh flush dev out0"])
def test_a_neighbour_that_vanishes(watch: PathWatch, family: int, end: str) -> None:
    router = ROUTER[family]
    run(f"ip neigh add {router} lladdr {A} dev out0 nud reachable")
    watch.drain()
    run(end.format(router))
    assert watch.drain() is True


def test_a_neighbour_that_answers_no_more(watch: PathWatch, family: int) -> None:
    """The kernel detects the failure itself, and repeats the event for each packet."""
    router = ROUTER[family]
    run("sysctl -qw net.ipv4.neigh.out0.retrans_time_ms=50 net.ipv6.neigh.out0.retrans_time_ms=50")
    run(f"ip neigh add {router} lladdr {A} dev out0 nud probe")
    watch.drain()
    news = [select.select([watch], [], [], 10)[0] and watch.drain()]
    while not news[-1]:
        assert len(news) < 20
        news.append(select.select([watch], [], [], 10)[0] and watch.drain())
    assert "FAILED" in run(f"ip neigh show {router}")
    run(f"ping -c 1 -W 1 {router} || true")
    assert watch.drain() is False


def neighbour(
    number: int,
    address: bytes | None,
    *,
    kind: int = RTM_NEWNEIGH,
    family: int = 2,
    state: int = 2,
    flags: int = 0,
    interface: int = 3,
) -> Event:
    parts = netlink.attribute(NDA_DST, struct.pack(">I", number))
    if address is not None:
        parts += netlink.attribute(NDA_LLADDR, address)
    return Event(kind, 0, struct.pack("=BxxxiHBB", family, interface, state, flags, 1) + parts)


def test_each_interface_has_its_neighbours() -> None:
    known = Neighbours()
    assert not known.are_new(neighbour(1, b"aaaaaa"))
    assert not known.are_new(neighbour(1, b"bbbbbb", interface=4))
    assert not known.are_new(neighbour(1, b"aaaaaa"))
    assert known.are_new(neighbour(1, b"cccccc"))


def test_what_bridges_learn_and_proxies_are_no_neighbours() -> None:
    known = Neighbours()
    known.are_new(neighbour(1, b"aaaaaa"))
    assert not known.are_new(neighbour(1, b"bbbbbb", family=7))
    assert not known.are_new(neighbour(1, None, flags=8))
    assert not known.are_new(neighbour(1, b"aaaaaa"))


def test_a_neighbour_fails_once() -> None:
    known = Neighbours()
    known.are_new(neighbour(1, b"aaaaaa"))
    assert known.are_new(neighbour(1, None, state=0x20))
    assert not known.are_new(neighbour(1, None, state=0x20))
    assert not known.are_new(neighbour(1, None, kind=RTM_DELNEIGH))
    assert not known.are_new(neighbour(1, b"aaaaaa"))


@pytest.mark.parametrize("lost", ["overflow", "more than are remembered"])
def test_after_a_loss_any_neighbour_may_be_another(lost: str) -> None:
    known = Neighbours(most=10)
    for number in range(10):
        assert not known.are_new(neighbour(number, b"aaaaaa"))
    assert known.are_new(None if lost == "overflow" else neighbour(10, b"aaaaaa"))
    assert known.are_new(neighbour(1, b"bbbbbb"))
    assert not known.are_new(neighbour(1, b"bbbbbb"))
    assert known.are_new(neighbour(99, b"aaaaaa")), "it may have been there before"
