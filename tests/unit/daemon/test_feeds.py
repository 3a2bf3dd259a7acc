"""Feeds: drained once when they are set up, then at the times that they return."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from enforcer.daemon import feeds
from enforcer.daemon.feeds import Feeds
from enforcer.daemon.loop import Loop


class Something:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.due: list[float] = []
        self.again: list[float | None] = []
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def drain(self) -> float | None:
        self.calls.append("drain")
        if not self.again:
            raise RuntimeError
        return self.again.pop(0)

    def tick(self) -> float:
        self.calls.append("tick")
        return self.due.pop(0)

    def use(self, *_: Any) -> None:
        self.calls.append("use")

    def report(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as opened:
        yield opened


def test_drained_once_and_due_when_it_says_so(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Something()
    monkeypatch.setattr(feeds, "FEEDS", {"one": lambda *_: lambda: one})
    runtime: Any = SimpleNamespace(store=None, tables=None, config={})
    with closing(Feeds(loop, runtime)) as opened:
        opened.activate()
        assert one.calls == ["drain"]  # the error is logged; the daemon continues
        opened.activate()
        assert one.calls == ["drain", "use", "drain"]
        one.due = [0.0, 5.0]
        assert opened._tick() == 0.0
        assert opened._tick() == 1.0
        assert opened._tick() == 1.0  # after an error


def test_it_comes_again_for_what_is_not_readable(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Something()
    one.again = [0.0, 0.01, None]
    monkeypatch.setattr(feeds, "FEEDS", {"one": lambda *_: lambda: one})
    runtime: Any = SimpleNamespace(store=None, tables=None, config={})
    with closing(Feeds(loop, runtime)) as opened:
        opened.activate()
        deadline = time.monotonic() + 10
        loop.run(lambda: bool(one.again) and time.monotonic() < deadline)
        assert one.calls.count("drain") == 3
