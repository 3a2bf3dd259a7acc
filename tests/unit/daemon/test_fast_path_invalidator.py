"""FastPathInvalidator: events invalidate the fast-path entries at once, but at a limited rate."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enforcer.daemon import fast_path_invalidator
from enforcer.daemon.fast_path_invalidator import FastPathInvalidator
from enforcer.daemon.loop import Loop
from enforcer.errors import KernelError


class Events:
    """Stands in for the kernel's events: readable while any wait; ``matter``: whether they change a path."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.matter = True

    def fileno(self) -> int:
        return self.ours.fileno()

    def happen(self) -> None:
        self.theirs.send(b"x")

    def drain(self) -> bool:
        return bool(self.ours.recv(1 << 16)) and self.matter

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Machine:
    """``done`` are the times of invalidations; the next ``failures`` invalidations fail."""

    def __init__(self, loop: Loop, events: Events):
        self.loop = loop
        self.events = events
        self.done: list[float] = []
        self.failures = 0
        self.maps = object()
        self.wanted = SimpleNamespace(fast_path=True)
        runtime = cast(Any, SimpleNamespace(maps=self.maps, wanted=self.wanted))
        self.invalidator = FastPathInvalidator(loop, cast(Any, events), runtime)

    def relearn(self, maps: object) -> None:
        assert maps is self.maps
        if self.failures:
            self.failures -= 1
            raise KernelError("the kernel is busy")
        self.done.append(time.monotonic())

    def run(self, seconds: float, going: Callable[[], bool] = lambda: True) -> None:
        end = time.monotonic() + seconds
        tick = self.loop.timer(lambda: 0.01, 0.0)
        self.loop.run(lambda: time.monotonic() < end and going())
        tick.cancel()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with closing(Events()) as events, closing(Loop()) as loop:
        made = Machine(loop, events)
        monkeypatch.setattr(fast_path_invalidator.fast_path, "invalidate", made.relearn)
        yield made


def test_the_first_event_is_not_waited_with(machine: Machine) -> None:
    machine.events.happen()
    machine.run(5, lambda: not machine.done)
    assert len(machine.done) == 1
    machine.run(0.3)
    assert len(machine.done) == 1


def test_events_without_end(machine: Machine) -> None:
    """Invalidations follow within a tenth of a second, at intervals of ``_REST`` or more."""

    def tick() -> float:
        machine.events.happen()
        return 0.005

    machine.loop.timer(tick, 0.0)
    machine.run(1.05)
    assert 2 <= len(machine.done) <= 11
    pauses = [after - before for before, after in zip(machine.done, machine.done[1:], strict=False)]
    assert min(pauses) >= fast_path_invalidator._REST


def test_the_last_event_is_heeded_too(machine: Machine) -> None:
    machine.events.happen()
    machine.run(5, lambda: not machine.done)
    machine.events.happen()
    machine.run(5, lambda: len(machine.done) < 2)
    assert len(machine.done) == 2


def test_what_changes_no_path_is_nothing(machine: Machine) -> None:
    machine.events.matter = False
    machine.events.happen()
    machine.run(0.1)
    assert machine.done == []
    machine.events.matter = True
    machine.events.happen()
    machine.run(5, lambda: not machine.done)
    assert len(machine.done) == 1


def test_an_event_that_could_not_be_heeded_is_not_lost(machine: Machine) -> None:
    machine.failures = 2
    machine.events.happen()
    machine.run(5, lambda: not machine.done)
    assert len(machine.done) == 1


@pytest.mark.parametrize("on", [True, False])
def test_what_is_in_force_says_whether_it_is_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    """A killed applying process may have left the fast path off."""
    switched: list[tuple[object, bool]] = []
    monkeypatch.setattr(
        fast_path_invalidator.fast_path, "set_enabled", lambda maps, *, on: switched.append((maps, on))
    )
    machine.wanted.fast_path = on
    machine.invalidator.activate()
    assert switched == [(machine.maps, on)]
