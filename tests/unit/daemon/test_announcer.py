"""Which addresses are announced, and how often; tests/lab/test_announcing.py tests the packets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from enforcer.address import words
from enforcer.daemon import announcer
from enforcer.daemon.announcer import Announcer
from enforcer.daemon.loop import Loop
from enforcer.errors import KernelError
from enforcer.kernel.announce import Address

from .test_fast_path_invalidator import Events

FLOW = np.dtype([("slot", "<u4"), ("egress_address", "<u4", (4,))])
ON_LINK, ROUTED = 1, 2
HELD: list[Address] = [IPv4Address("203.0.113.10"), IPv6Address("2001:db8:ffff::1")]


class LinkWatch(Events):
    """Stands in for the kernel's link events: ``arrived`` is the result of the next :meth:`drain`."""

    def __init__(self) -> None:
        super().__init__()
        self.up = {"out0", "in0"}
        self.arrived: set[str] = set()

    def drain(self) -> set[str]:  # type: ignore[override]
        super().drain()
        return self.arrived


class Machine:
    """An announcer: ``told`` are the announcements, ``flows`` the content of the flow map."""

    def __init__(self, loop: Loop, arrivals: LinkWatch):
        self.loop = loop
        self.arrivals = arrivals
        self.told: list[tuple[str, Address]] = []
        self.flows = flows()
        ours = [
            SimpleNamespace(slot=ON_LINK, on_link=True, ipv6=IPv6Network("2001:db8:9::/64")),
            SimpleNamespace(slot=ROUTED, on_link=False, ipv6=IPv6Network("2001:db8:1::/64")),
        ]
        self.held = {egress.ipv6 for egress in ours}
        self.wanted = SimpleNamespace(ours=ours, outside=("out0", "out1"))
        maps = SimpleNamespace(flows=SimpleNamespace(chunks=lambda: [(None, self.flows)]))
        runtime = cast(Any, SimpleNamespace(maps=maps, wanted=self.wanted))
        self.announcer = Announcer(loop, cast(Any, arrivals), runtime)

    def announce(self, interface: str, addresses: list[Address]) -> int:
        if interface not in self.arrivals.up:
            raise KernelError("it is down")
        self.told += [(interface, address) for address in addresses]
        return len(addresses)

    def run(self, seconds: float) -> list[tuple[str, Address]]:
        """Runs the loop; returns the announcements of this time."""
        self.told = []
        end = time.monotonic() + seconds
        tick = self.loop.timer(lambda: 0.01, 0.0)
        self.loop.run(lambda: time.monotonic() < end)
        tick.cancel()
        return self.told


def flows(*rows: tuple[int, str]) -> np.ndarray:
    found = np.zeros(len(rows), dtype=FLOW)
    for row, (slot, source) in zip(found, rows, strict=True):
        row["slot"] = slot
        row["egress_address"] = words(IPv6Address(source) if ":" in source else IPv4Address(source))
    return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(announcer, "_REPEATED_AFTER", (0.2, 0.2))
    monkeypatch.setattr(announcer, "_OFTEN", 0.02)
    monkeypatch.setattr(announcer, "_REST", 0)
    with closing(LinkWatch()) as arrivals, closing(Loop()) as loop:
        machine = Machine(loop, arrivals)
        monkeypatch.setattr(announcer.announce, "announce", machine.announce)
        monkeypatch.setattr(announcer.addresses, "ranges", lambda: machine.held)
        monkeypatch.setattr(announcer.announce, "settled", lambda name: HELD if name == "out0" else [])
        machine.announcer.activate()
        yield machine


def sources(machine: Machine, seconds: float) -> list[str]:
    return [str(address) for _, address in machine.run(seconds) if address not in HELD]


def test_what_is_held_is_announced_three_times(machine: Machine) -> None:
    assert machine.run(0.6) == [("out0", address) for address in HELD] * 3
    machine.arrivals.arrived = {"out0", "in0"}
    machine.arrivals.happen()
    assert machine.run(0.6) == [("out0", address) for address in HELD] * 3
    assert machine.run(0.3) == []


def test_other_interfaces_are_no_news(machine: Machine) -> None:
    machine.run(0.6)
    machine.arrivals.arrived = {"in0"}
    machine.arrivals.happen()
    assert machine.run(0.3) == []


def test_each_source_that_is_on_link_once(machine: Machine) -> None:
    machine.run(0.6)
    machine.flows = flows(
        (ON_LINK, "2001:db8:9::2"),
        (ON_LINK, "2001:db8:9::2"),
        (ON_LINK, "203.0.113.19"),
        (ROUTED, "2001:db8:1::2"),
    )
    assert sources(machine, 0.2) == ["2001:db8:9::2"]
    machine.flows = flows((ON_LINK, "2001:db8:9::3"), (ON_LINK, "2001:db8:9::2"))
    assert sources(machine, 0.2) == ["2001:db8:9::3"]
    # An event of the link (a new MAC address) repeats the announcements of all sources.
    machine.arrivals.arrived = {"out0"}
    machine.arrivals.happen()
    assert sorted(sources(machine, 0.6)) == ["2001:db8:9::2"] * 3 + ["2001:db8:9::3"] * 3


def test_after_the_window_sweeps_show_the_flows(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "_WINDOW", 0.0)
    machine.run(0.6)
    machine.flows = flows((ON_LINK, "2001:db8:9::2"))
    assert machine.run(0.2) == []
    machine.announcer.note(machine.flows, machine.flows)
    assert sources(machine, 0.2) == ["2001:db8:9::2"]


def test_a_range_that_is_new_is_another_gateways(machine: Machine) -> None:
    machine.run(0.6)
    machine.flows = flows((ON_LINK, "2001:db8:9::2"), (ROUTED, "2001:db8:1::2"))
    assert sources(machine, 0.2) == ["2001:db8:9::2"]
    machine.announcer.activate()
    assert machine.run(0.2) == []
    machine.wanted.ours[1].on_link = True
    machine.announcer.activate()
    assert sorted(sources(machine, 0.2)) == ["2001:db8:1::2", "2001:db8:9::2"]


OTHER = IPv6Network("2001:db8:a::/64")


def test_a_range_that_was_removed(machine: Machine) -> None:
    """Live flows keep their source after their egress IP got another range; another gateway may have it."""
    machine.run(0.6)
    machine.held.add(OTHER)
    machine.wanted.ours[0].ipv6 = OTHER
    machine.announcer.activate()
    machine.flows = flows((ON_LINK, "2001:db8:9::2"), (ON_LINK, "2001:db8:a::2"))
    assert sources(machine, 0.2) == ["2001:db8:a::2"]


def test_a_range_that_is_removed_before_its_turn(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "_AT_ONCE", 1)
    machine.run(0.6)
    known = flows(*((ON_LINK, f"2001:db8:9::{number:x}") for number in range(1, 21)))
    machine.announcer.note(known, known)
    assert 0 < len(sources(machine, 0.1)) < 10
    machine.held.add(OTHER)
    machine.wanted.ours[0].ipv6 = OTHER
    machine.announcer.activate()
    assert sources(machine, 1.5) == []


def test_a_range_that_other_software_removes(machine: Machine) -> None:
    """Sources in the range are announced when the gateway has the range again."""
    machine.run(0.6)
    (range_,) = [egress.ipv6 for egress in machine.wanted.ours if egress.on_link]
    machine.held.remove(range_)
    machine.flows = flows((ON_LINK, "2001:db8:9::2"))
    assert sources(machine, 0.2) == []
    machine.held.add(range_)
    assert sources(machine, 0.2) == ["2001:db8:9::2"]


def test_a_source_without_flows_is_news_when_it_is_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "_FORGET_AFTER", 0.2)
    machine.run(0.6)
    machine.flows = there = flows((ON_LINK, "2001:db8:9::2"))
    assert sources(machine, 0.5) == ["2001:db8:9::2"]
    machine.flows = flows()
    machine.run(0.3)
    machine.flows = there
    assert sources(machine, 0.1) == ["2001:db8:9::2"]


def test_many_are_announced_at_a_pace(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most ``_MOST`` sources are remembered; later looks announce the others."""
    monkeypatch.setattr(announcer, "_AT_ONCE", 4)
    monkeypatch.setattr(announcer, "_MOST", 8)
    machine.run(0.6)
    machine.flows = flows(*((ON_LINK, f"2001:db8:9::{number:x}") for number in range(1, 21)))
    assert len(sources(machine, 0.04)) in (4, 8)
    assert len(set(sources(machine, 0.5))) >= 12


def test_an_interface_that_has_gone_down(machine: Machine) -> None:
    """A failed announcement on one interface does not prevent those on the others."""
    machine.run(0.6)
    machine.flows = flows((ON_LINK, "2001:db8:9::2"))
    machine.run(0.1)
    machine.arrivals.arrived = {"out1"}
    machine.arrivals.happen()
    assert sources(machine, 0.15) == ["2001:db8:9::2"]
