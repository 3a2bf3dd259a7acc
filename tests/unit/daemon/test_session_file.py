"""The watched session file: its last content is in force in the end, whatever events come between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enforcer.control.worker import WorkerProcess
from enforcer.daemon import session_file, session_manager
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop
from enforcer.daemon.session_file import SessionFile

LOADED = {"sessions": 1, "changed": 1, "replaced": 0, "removed": 0, "taken_over": []}


class Machine:
    """``loads`` lists the loads: ``daemon`` or ``process``, and the content."""

    def __init__(self, loop: Loop, said: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch):
        self.loop = loop
        self.jobs = Jobs(loop)
        self.loads: list[tuple[str, str]] = []
        self.said = said
        self.file = directory / "sessions"
        self.ended = 0
        self.runtime = SimpleNamespace(
            session_file=self.file,
            sessions=SimpleNamespace(load=self._load, forget_file=self._forget, log_loaded=lambda *_: None),
        )
        monkeypatch.setattr(session_manager, "SMALL", 10)
        monkeypatch.setattr(session_file, "load_apart", self._load_apart)
        self.watched = SessionFile(
            loop,
            self.jobs,
            cast(Any, self.runtime),
            expiry=loop.timer(lambda: None),
        )
        loop.timer(lambda: 0.02, 0.0)
        self.result = directory / "result"
        self.result.write_text(json.dumps(LOADED))

    def _load(self, path: Path, *_: str) -> dict[str, Any]:
        self.loads.append(("daemon", path.read_text()))
        return LOADED

    def _load_apart(self, path: Path, *_: str) -> WorkerProcess:
        self.loads.append(("process", path.read_text()))
        return WorkerProcess("json.tool", str(self.result))

    def _forget(self) -> int:
        self.ended += 1
        return 0

    def write(self, text: str) -> None:
        self.file.write_text(text)
        self.watched.load()

    def reload(self, finish: Callable[[], None]) -> None:
        def finished(work: WorkerProcess) -> dict[str, Any]:
            finish()
            return work.result()

        self.jobs.add(Job("reload", lambda: WorkerProcess("json.tool", str(self.result)), finished))
        self.run(lambda: not self.jobs.runs("reload"))

    def run(self, going: Callable[[], bool] | None = None) -> None:
        end = time.monotonic() + 20
        self.loop.run(going or (lambda: self.jobs.busy and time.monotonic() < end))


@pytest.fixture
def machine(said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with closing(Loop()) as loop:
        made = Machine(loop, said, tmp_path, monkeypatch)
        made.file.write_text("first")
        made.watched.activate()
        assert made.loads.pop() == ("daemon", "first")
        yield made


LARGE = "a large file "


def test_many_changes_are_one_load(machine: Machine) -> None:
    for index in range(5):
        machine.write(f"{LARGE}{index}")
    machine.run()
    assert machine.loads == [("process", f"{LARGE}4")]


def test_a_change_during_a_load_comes_after_it(machine: Machine) -> None:
    """Also that of a small file: otherwise the process would overwrite it with the former content."""
    machine.write(LARGE)
    machine.run(lambda: not machine.loads)
    machine.write("small")
    assert machine.loads == [("process", LARGE)]
    machine.run()
    assert machine.loads == [("process", LARGE), ("process", "small")]
    machine.watched.activate()  # a reload finds nothing new
    assert len(machine.loads) == 2


def test_a_small_file_does_not_wait_for_a_reload(machine: Machine) -> None:
    machine.reload(lambda: None)
    machine.write("small")
    assert machine.loads == [("daemon", "small")]


def test_a_large_file_waits_for_a_reload(machine: Machine) -> None:
    machine.reload(machine.watched.activate)
    machine.write(LARGE)
    assert machine.loads == []
    machine.run()
    assert machine.loads == [("process", LARGE)]


def test_a_file_that_a_reload_forgets_is_not_loaded_after_it(machine: Machine) -> None:
    machine.reload(machine.watched.activate)
    machine.write(LARGE)
    machine.runtime.session_file = None
    machine.run()
    assert (machine.loads, machine.ended) == ([], 1)


def test_a_file_that_goes_is_said_and_changes_nothing(machine: Machine) -> None:
    machine.file.unlink()
    machine.watched.load()
    machine.run(lambda: not machine.said)
    assert machine.said == [f"{machine.file} is not there: its sessions stay as they are until it is"]
    assert machine.loads == []
