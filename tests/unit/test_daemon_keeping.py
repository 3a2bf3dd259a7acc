"""Keeping: what the kernel says is followed, after a reload and after an error too."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from enforcer.daemon import keeping
from enforcer.daemon.keeping import Keeping
from enforcer.daemon.loop import Loop
from enforcer.daemon.sweeping import Sweeping
from enforcer.errors import KernelError
from enforcer.gateway import availability
from enforcer.gateway.availability import There
from enforcer.gateway.roles import Seen
from enforcer.kernel.watch import FILTER, NFT, ROUTE


class Events:
    """Stands for the kernel's events: readable as long as there are some."""

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


class Machine(Keeping):
    """``done`` has what was done; ``failures`` is how often putting back fails yet."""

    def __init__(self, loop: Loop, events: Events) -> None:
        self.done: list[str] = []
        self.failures = 0
        self.reload = False
        self.loop = loop
        super().__init__(
            loop, cast(Any, events), cast(Any, None), lambda: self.reload, say=print, again=lambda: None
        )

    def refresh(self) -> None:
        self.done.append("refresh")

    def _put_back(self, *, distrust_table: bool = False) -> None:
        if self.failures:
            self.failures -= 1
            raise KernelError("the kernel is busy")
        self.done.append("put back the table" if distrust_table else "put back")

    def run(self, seconds: float, going: Callable[[], bool] = lambda: True) -> None:
        end = time.monotonic() + seconds
        self.loop.task("tick", lambda: 0.02, 0.0)
        self.loop.run(lambda: time.monotonic() < end and going())


@pytest.fixture
def events() -> Iterator[Events]:
    with closing(Events()) as made:
        yield made


@pytest.fixture
def machine(events: Events) -> Iterator[Machine]:
    with closing(Loop(print)) as loop:
        yield Machine(loop, events)


@pytest.mark.parametrize(
    ("kind", "done"),
    [(ROUTE, ["refresh", "put back"]), (FILTER, ["refresh", "put back"]), (NFT, ["put back the table"])],
)
def test_an_event(machine: Machine, events: Events, kind: str, done: list[str]) -> None:
    events.happen(kind)
    machine.run(0.1)
    assert machine.done == done


def test_an_event_whose_work_failed_is_not_lost(machine: Machine, events: Events) -> None:
    machine.failures = 1
    events.happen(NFT)
    machine.run(5, lambda: not machine.done)
    assert machine.done == ["put back the table"]


def test_events_of_a_reload_come_after_it(machine: Machine, events: Events) -> None:
    machine.reload = True
    events.happen(ROUTE)
    events.happen(NFT)
    machine.run(0.1)
    assert machine.done == []
    machine.reload = False
    machine.catch_up()
    machine.run(0.1)
    assert machine.done == ["refresh", "put back the table"]


def test_what_could_not_be_read_has_another_turn(monkeypatch: pytest.MonkeyPatch, events: Events) -> None:
    """The loop waits for nothing meanwhile; not while a process changes the gateway."""
    turns = iter([Seen(uncertain=True), Seen(uncertain=True), Seen()])
    looked: list[Seen] = []

    def refresh(*_: object) -> There:
        looked.append(next(turns))
        return There({}, (True, True), looked[-1])

    monkeypatch.setattr(availability, "refresh", refresh)
    monkeypatch.setattr(availability, "write_timeouts", lambda _: np.zeros(0))
    monkeypatch.setattr(keeping, "_TICK", 0.05)
    with closing(Loop(print)) as loop:
        machine = Keeping(
            loop,
            cast(Any, events),
            cast(Any, SimpleNamespace(maps=None, wanted=None)),
            lambda: len(looked) == 1 and reloading,
            say=print,
            again=lambda: None,
        )
        loop.task("hooks", lambda: None)
        reloading = True
        machine.refresh()
        end = time.monotonic() + 0.3
        loop.task("tick", lambda: 0.02, 0.0)
        loop.run(lambda: time.monotonic() < end)
        assert len(looked) == 1
        reloading = False
        end = time.monotonic() + 5
        loop.run(lambda: time.monotonic() < end and len(looked) < 3)
        end = time.monotonic() + 0.3
        loop.run(lambda: time.monotonic() < end)
    assert len(looked) == 3


def test_a_sweep_comes_between_two_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the time between them."""
    reloading = True
    swept: list[bool] = []

    class Swept(Sweeping):
        def _reap(self) -> None:
            swept.append(reloading)

    with closing(Loop(print)) as loop:
        sweeping = Swept(loop, cast(Any, None), lambda: reloading, cast(Any, None), print)
        for _ in range(2):
            loop.call("sweep")
            reloading = True
            turns = iter([True, False])
            loop.task("tick", lambda: 0.01, 0.0)
            loop.run(lambda turns=turns: next(turns))
            reloading = False
            sweeping.catch_up()
            turns = iter([True, False])
            loop.run(lambda turns=turns: next(turns))
        assert swept == [False, False]
