"""Tests of the watch for interfaces that come up."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from enforcer.kernel import announce
from enforcer.kernel.link_watch import LinkWatch
from lab.netns import run


@pytest.fixture
def arrivals(netns: str) -> Iterator[LinkWatch]:
    run("ip link add out0 type veth peer name far0")
    run("ip link set out0 up")
    run("ip link set far0 up")
    with LinkWatch() as opened:
        yield opened


def heard(arrivals: LinkWatch, name: str) -> bool:
    """Whether the interface arrives; the kernel reports a carrier up to a second late (link_watch.c)."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if select.select([arrivals], [], [], 0.1)[0] and name in arrivals.drain():
            return True
    return False


def test_what_is_up_has_not_just_arrived(arrivals: LinkWatch) -> None:
    run("ip link add out1 type veth peer name far1")
    run("ip link set out1 up")  # without a carrier
    run("ip addr add 203.0.113.10/32 dev out0")
    run("ip link set out0 mtu 1400")
    assert arrivals.drain() == set()
    assert arrivals.up == {"lo", "out0", "far0"}


@pytest.mark.parametrize(
    ("leaves", "returns"),
    [
        ("ip link set out0 down", "ip link set out0 up"),
        ("ip link set far0 down", "ip link set far0 up"),
        ("true", "ip link set out0 address 02:00:00:00:00:01"),
        ("ip link del out0", "ip link add out0 up type veth peer name far0; ip link set far0 up"),
    ],
    ids=["down", "carrier", "mac", "made again"],
)
def test_arrivals(arrivals: LinkWatch, leaves: str, returns: str) -> None:
    run(leaves)
    while leaves != "true" and "out0" in arrivals.up:
        assert select.select([arrivals], [], [], 3)[0]
        assert arrivals.drain() == set()
    run(returns)
    assert heard(arrivals, "out0")
    assert "out0" not in arrivals.drain()


def test_down_and_up_at_once(arrivals: LinkWatch) -> None:
    run("ip link set out0 down; ip link set out0 up")
    assert heard(arrivals, "out0")


def test_what_has_gone_again_has_not_arrived(arrivals: LinkWatch) -> None:
    run("ip link set out0 address 02:00:00:00:00:01; ip link set out0 down")
    assert "out0" not in arrivals.drain()


def test_a_renamed_one_is_known_by_its_new_name(arrivals: LinkWatch) -> None:
    run("ip link set out0 name wan0")
    assert arrivals.drain() == set()
    assert arrivals.up == {"lo", "wan0", "far0"}


def test_missed_events_are_all_that_is_up(arrivals: LinkWatch) -> None:
    run(
        "ip link add br0 type bridge; "
        "for i in $(seq 700); do echo link set br0 mtu $((1000 + i % 2)); done | ip -batch -"
    )
    assert arrivals.drain() >= {"out0", "far0"}


def test_settled_addresses(arrivals: LinkWatch) -> None:
    run("ip addr add 203.0.113.10/32 dev out0; ip addr add 2001:db8::1/128 dev out0 nodad")
    run("ip addr add 2001:db8::7/128 dev lo nodad")
    run("sysctl -qw net.ipv6.conf.out0.accept_dad=1 net.ipv6.conf.out0.dad_transmits=3")
    run("ip addr add 2001:db8::2/128 dev out0")
    found = {str(address) for address in announce.settled("out0")}
    assert {address for address in found if not address.startswith("fe80")} == {"203.0.113.10", "2001:db8::1"}
    assert announce.settled("nope") == []
