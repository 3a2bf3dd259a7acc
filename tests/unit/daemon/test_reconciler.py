"""Reconciler: it follows events of the kernel, also after reloads and errors."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from plain import PLAIN

from enforcer.daemon import reconciler
from enforcer.daemon.flow_sweeper import FlowSweeper
from enforcer.daemon.loop import Loop
from enforcer.daemon.reconciler import LastSeen, Reconciler
from enforcer.errors import KernelError
from enforcer.gateway import availability
from enforcer.gateway.availability import Availability
from enforcer.gateway.roles import LinkStatus, RenamedLink
from enforcer.kernel.watch import FILTER, NFT, ROUTE

from .conftest import Lines


class Events:
    """Stands in for the kernel's events: readable while any wait."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.kinds: set[str] = set()

    def fileno(self) -> int:
        return self.ours.fileno()

    def happen(self, *kinds: str) -> None:
        self.kinds |= set(kinds)
        self.theirs.send(b"x")

    def drain(self) -> set[str]:
        if self.kinds:
            self.ours.recv(100)
        kinds, self.kinds = self.kinds, set()
        return kinds

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Machine(Reconciler):
    """``done`` lists the actions; the next ``failures`` restores fail."""

    def __init__(self, loop: Loop, events: Events) -> None:
        self.done: list[str] = []
        self.failures = 0
        self.reload = False
        self.loop = loop
        super().__init__(loop, cast(Any, events), cast(Any, None), lambda: self.reload, reapply=lambda: None)

    def refresh(self) -> None:
        self.done.append("refresh")

    def _restore(self, *, distrust_table: bool = False) -> None:
        if self.failures:
            self.failures -= 1
            raise KernelError("the kernel is busy")
        self.done.append("restore the table" if distrust_table else "restore")

    def _look_at_hooks(self) -> float:
        return 60.0

    def run(self, seconds: float, going: Callable[[], bool] = lambda: True) -> None:
        end = time.monotonic() + seconds
        tick = self.loop.timer(lambda: 0.02, 0.0)
        self.loop.run(lambda: time.monotonic() < end and going())
        tick.cancel()


@pytest.fixture
def events() -> Iterator[Events]:
    with closing(Events()) as made:
        yield made


@pytest.fixture
def machine(events: Events) -> Iterator[Machine]:
    with closing(Loop()) as loop:
        yield Machine(loop, events)


@pytest.mark.parametrize(
    ("kind", "done"),
    [(ROUTE, ["refresh", "restore"]), (FILTER, ["refresh", "restore"]), (NFT, ["restore the table"])],
)
def test_an_event(machine: Machine, events: Events, kind: str, done: list[str]) -> None:
    events.happen(kind)
    machine.run(0.1)
    assert machine.done == done


def test_a_table_that_others_change_all_the_time_is_written_once_a_tick(
    machine: Machine, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing tables are restored at each event."""
    monkeypatch.setattr(reconciler, "_TICK", 0.3)
    end = time.monotonic() + 1.0

    def change() -> float:
        events.happen(NFT)
        return 0.02

    others = machine.loop.timer(change, 0.0)
    machine.run(1.0)
    assert 2 <= machine.done.count("restore the table") <= 1 + (time.monotonic() - end + 1.0) / 0.3
    assert machine.done.count("restore") > 8
    others.cancel()
    machine.run(0.4)
    assert machine.done[-1] == "restore the table"
    machine.done.clear()
    machine.run(0.4)
    assert machine.done == []


def test_a_change_while_the_table_is_written_is_not_lost(
    machine: Machine, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "_TICK", 0.2)
    write = machine._restore

    def restore(*, distrust_table: bool = False) -> None:
        write(distrust_table=distrust_table)
        if len(machine.done) == 1:
            events.happen(NFT)

    monkeypatch.setattr(machine, "_restore", restore)
    events.happen(NFT)
    machine.run(0.5)
    assert machine.done == ["restore the table", "restore", "restore the table"]


def test_an_event_whose_work_failed_is_not_lost(machine: Machine, events: Events) -> None:
    machine.failures = 1
    events.happen(NFT)
    machine.run(5, lambda: not machine.done)
    assert machine.done == ["restore the table"]


def test_events_of_a_reload_come_after_it(machine: Machine, events: Events) -> None:
    machine.reload = True
    events.happen(ROUTE)
    events.happen(NFT)
    machine.run(0.1)
    assert machine.done == []
    machine.reload = False
    machine.catch_up()
    machine.run(0.1)
    assert machine.done == ["refresh", "restore the table"]


def test_what_could_not_be_read_has_another_turn(monkeypatch: pytest.MonkeyPatch, events: Events) -> None:
    """A timer repeats the look without blocking the loop, but not while a process changes the gateway."""
    turns = iter([LinkStatus({}, frozenset(), uncertain=uncertain) for uncertain in (True, True, False)])
    looked: list[LinkStatus] = []

    def refresh(*_: object) -> Availability:
        looked.append(next(turns))
        return Availability({}, (True, True), looked[-1])

    monkeypatch.setattr(availability, "refresh", refresh)
    monkeypatch.setattr(availability, "write_timeouts", lambda _: np.zeros(0))
    monkeypatch.setattr(reconciler, "_TICK", 0.05)
    monkeypatch.setattr(Reconciler, "_look_at_hooks", lambda _: None)
    with closing(Loop()) as loop:
        machine = Reconciler(
            loop,
            cast(Any, events),
            cast(Any, SimpleNamespace(maps=None, wanted=PLAIN)),
            lambda: len(looked) == 1 and reloading,
            reapply=lambda: None,
        )
        reloading = True
        machine.refresh()
        end = time.monotonic() + 0.3
        loop.timer(lambda: 0.02, 0.0)
        loop.run(lambda: time.monotonic() < end)
        assert len(looked) == 1
        reloading = False
        end = time.monotonic() + 5
        loop.run(lambda: time.monotonic() < end and len(looked) < 3)
        end = time.monotonic() + 0.3
        loop.run(lambda: time.monotonic() < end)
    assert len(looked) == 3


def test_a_sweep_comes_between_two_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the time between them is short."""
    reloading = True
    swept: list[bool] = []

    class Swept(FlowSweeper):
        def _reap(self) -> None:
            swept.append(reloading)

    with closing(Loop()) as loop:
        sweeper = Swept(loop, cast(Any, None), lambda: reloading, cast(Any, None))
        for _ in range(2):
            sweeper._next_sweep.start()
            reloading = True
            turns = iter([True, False])
            loop.timer(lambda: 0.01, 0.0)
            loop.run(lambda turns=turns: next(turns))
            reloading = False
            sweeper.catch_up()
            turns = iter([True, False])
            loop.run(lambda turns=turns: next(turns))
        assert swept == [False, False]


# --- links that come, go and change their names

LISTED = ("in0", "out0")
START = {"lo": 1, "in0": 2, "out0": 3}


def made_again(*looks: dict[str, int], listed: tuple[str, ...] = LISTED) -> list[set[str]]:
    """The interfaces that each look finds made again; looks have the indexes of links."""
    seen = LastSeen(START)
    return [seen.made_again(listed, look) for look in looks]


GONE = {"lo": 1, "in0": 2}


@pytest.mark.parametrize(
    "looks",
    [
        [GONE | {"out0": 7}],  # no look finds it missing
        [GONE, GONE | {"out0": 7}],
        [GONE, GONE | {"out0": 3}],  # from another network namespace
        [GONE, GONE | {"wan0": 3}, GONE | {"out0": 3}],
        [GONE | {"wan0": 3, "out0": 7}],
        [GONE | {"wan0": 3}, GONE, GONE | {"out0": 7}],
    ],
)
def test_a_link_that_is_made_again_is_so_once(looks: list[dict[str, int]]) -> None:
    found = made_again(START, *looks, looks[-1], looks[-1])
    assert found == [set()] * len(looks) + [{"out0"}, set(), set()]


@pytest.mark.parametrize(
    "looks",
    [
        [START],
        [GONE | {"wan0": 3}, START],
        [GONE | {"wan0": 3}, GONE | {"wan1": 3}, START],
        [START | {"other0": 9}, START, START | {"other0": 10}],
    ],
)
def test_links_that_are_not_made_again(looks: list[dict[str, int]]) -> None:
    assert made_again(*looks) == [set()] * len(looks)


def test_a_link_that_comes_into_the_file_is_known_from_before() -> None:
    """Its link may be made again while the file is applied."""
    seen = LastSeen(START)
    assert seen.made_again(LISTED, START | {"out1": 4}) == set()
    assert seen.made_again((*LISTED, "out1"), START | {"out1": 5}) == {"out1"}
    assert seen.made_again(LISTED, START) == set()
    assert seen.made_again((*LISTED, "out1"), START | {"out1": 6}) == set()


def test_what_is_logged_of_a_renamed_link(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    """``has its name back`` is logged only if the same link has the name again."""
    renamed = RenamedLink(3, "wan0", "out0")
    looks = iter(
        [
            LinkStatus(START, frozenset()),
            LinkStatus(GONE | {"wan0": 3}, frozenset({renamed})),
            LinkStatus(GONE | {"wan1": 3}, frozenset({RenamedLink(3, "wan1", "out0")})),
            LinkStatus(GONE | {"wan0": 3}, frozenset({renamed})),
            LinkStatus(GONE | {"wan0": 3}, frozenset()),  # the file lists it
            LinkStatus(GONE | {"wan0": 3}, frozenset({renamed})),
            LinkStatus(GONE | {"wan0": 3, "out0": 8}, frozenset({renamed})),
            LinkStatus(GONE | {"out0": 8}, frozenset()),
            LinkStatus(GONE | {"wan0": 3}, frozenset({renamed})),
            LinkStatus(START, frozenset()),
        ]
    )
    there = (availability.Availability({}, (True, True), look) for look in looks)
    monkeypatch.setattr(availability, "refresh", lambda *_: next(there))
    monkeypatch.setattr(availability, "write_timeouts", lambda _: None)
    runtime = SimpleNamespace(maps=None, wanted=PLAIN)
    with closing(Loop()) as loop, closing(Events()) as events:
        made = Reconciler(
            *(loop, cast(Any, events), cast(Any, runtime), lambda: False),
            reapply=lambda: None,
            known=START,
        )
        for _ in range(10):
            made.refresh()
    now = "out0 is called wan0 now"
    assert [line.partition(":")[0] for line in lines.said] == [
        *(now, "out0 is called wan1 now", now, now, now, "out0 has its name back"),
    ]
    assert lines.levels == ["WARNING"] * 5 + ["INFO"]


def test_levels_of_availability(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    """A loss of availability in either family is a warning; its return is not."""
    looks = iter([(True, True), (True, False), (False, False), (False, True), (True, True)])
    monkeypatch.setattr(
        availability,
        "refresh",
        lambda *_: Availability({"lax-1": next(looks)}, (True, True), LinkStatus(START, frozenset())),
    )
    monkeypatch.setattr(availability, "write_timeouts", lambda _: None)
    runtime = SimpleNamespace(maps=None, wanted=PLAIN)
    with closing(Loop()) as loop, closing(Events()) as events:
        made = Reconciler(
            loop, cast(Any, events), cast(Any, runtime), lambda: False, reapply=lambda: None, known=START
        )
        for _ in range(5):
            made.refresh()
    assert list(zip(lines.levels, lines.said, strict=True)) == [
        ("WARNING", "egress lax-1: IPv6 unavailable"),
        ("WARNING", "egress lax-1: unavailable"),
        ("WARNING", "egress lax-1: IPv4 unavailable"),
        ("INFO", "egress lax-1: available"),
    ]
