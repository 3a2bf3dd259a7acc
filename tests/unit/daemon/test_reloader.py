"""Reloader: requests during a reload share the next one; failed steps are repeated at intervals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enforcer.control import worker
from enforcer.control.protocol import ControlConnection
from enforcer.control.worker import WorkerProcess
from enforcer.daemon import reloader
from enforcer.daemon.jobs import Jobs
from enforcer.daemon.loop import Loop
from enforcer.daemon.reloader import Reloader, log_report
from enforcer.errors import KernelError

from .conftest import Lines


class Waiting:
    """Stands in for a caller's connection."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []

    def answer(self, result: dict[str, Any]) -> None:
        self.answers.append(result)


class Machine:
    """``result`` is the output of processes, ``begun`` their number, ``taken`` the number of activations."""

    def __init__(self, loop: Loop, said: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch):
        self.loop = loop
        self.said = said
        self.result: dict[str, Any] = {"operations": ["switch"], "warnings": []}
        self.begun = self.taken = self.failures = 0
        self.crowded = self.lost = False
        self.files: list[Path | None] = []
        """The applied files; None: the configuration in force."""
        self.jobs = Jobs(loop)
        self._file = directory / "result"
        monkeypatch.setattr(worker, "start", self._start)
        monkeypatch.setattr(worker, "start_again", lambda: self._start(None))
        monkeypatch.setattr(reloader, "is_crowded", lambda _: self.crowded)
        self.tables = SimpleNamespace(matches_bank=True)
        self.runtime = SimpleNamespace(maps=None, tables=self.tables, half_done=False, restore=lambda: None)
        runtime = cast(Any, self.runtime)
        self.reloader = Reloader(loop, self.jobs, runtime, Path("f"), activate=self._activate)
        loop.timer(lambda: 0.02, 0.0)

    def _start(self, file: Path | None) -> WorkerProcess:
        self.begun += 1
        self.files.append(file)
        self._file.write_text("" if self.lost else json.dumps(self.result))
        return WorkerProcess("json.tool", str(self._file))

    def _activate(self) -> None:
        if self.failures:
            self.failures -= 1
            raise KernelError("busy")
        self.taken += 1

    def ask(self) -> Waiting:
        waiting = Waiting()
        self.reloader.ask(cast(ControlConnection, waiting))
        return waiting

    def run(self, seconds: float = 20, going: Callable[[], bool] | None = None) -> None:
        end = time.monotonic() + seconds
        self.loop.run(lambda: time.monotonic() < end and (going or (lambda: self.jobs.busy))())


@pytest.fixture
def machine(said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with closing(Loop()) as loop:
        yield Machine(loop, said, tmp_path, monkeypatch)


def test_many_ask_while_one_runs(machine: Machine) -> None:
    """The running reload may have read the former file: one more follows, for all later requests."""
    first = machine.ask()
    machine.run(going=lambda: not machine.jobs.runs("reload"))
    others = [machine.ask() for _ in range(5)]
    machine.run()
    assert (machine.begun, machine.taken) == (2, 2)
    for one in (first, *others):
        assert one.answers == [machine.result]
    assert machine.said == ["switch"] * 2


def test_a_failure_is_answered_and_its_leftovers_are_activated(machine: Machine) -> None:
    machine.result = {"error": "wrong file", "hint": None, "exit_code": 2}
    waiting = machine.ask()
    machine.run()
    assert waiting.answers == [machine.result]
    assert machine.taken == 1
    assert machine.said == ["reload failed, the configuration in force stays: wrong file"]


def test_what_could_not_be_activated_is_tried_again(machine: Machine) -> None:
    machine.failures = 2
    waiting = machine.ask()
    machine.run(10, lambda: machine.taken == 0)
    assert [one["error"] for one in waiting.answers] == ["busy"]
    assert machine.begun == 1
    assert machine.said == ["switch", "error: busy", "the daemon has read the configuration in force now"]


def test_tables_without_room_ask_for_a_reload(machine: Machine) -> None:
    machine.crowded = True
    machine.run(10, lambda: machine.begun == 0)
    machine.crowded = False
    machine.run()
    assert (machine.begun, machine.taken) == (1, 1)
    assert machine.files == [None]  # must not apply a file that is being edited


def test_tables_without_room_and_a_wrong_file_do_not_reload_all_the_time(machine: Machine) -> None:
    machine.crowded = True
    machine.result = {"error": "wrong file", "hint": None, "exit_code": 2}
    machine.run(3, lambda: True)
    assert machine.begun == 1
    assert machine.said.count("reload failed, the configuration in force stays: wrong file") == 1


def test_tables_that_the_facts_are_not_about_are_made_anew_once(machine: Machine) -> None:
    machine.tables.matches_bank = False
    machine.run(3, lambda: True)
    assert machine.files == [None]


def test_who_asks_for_the_file_does_not_get_what_was_in_force(machine: Machine) -> None:
    machine.ask()
    machine.run(going=lambda: not machine.jobs.runs("reload"))
    machine.reloader.reapply()
    waiting = machine.ask()
    machine.run()
    assert machine.files == [Path("f"), None, Path("f")]
    assert waiting.answers == [machine.result]


def test_what_was_lost_half_way_is_healed_before_anything_else(machine: Machine) -> None:
    machine.runtime.half_done = True
    machine.result = {}
    machine.lost = True
    first = machine.ask()
    machine.run(going=lambda: not machine.jobs.runs("reload"))
    second = machine.ask()
    machine.run(going=lambda: not first.answers)
    assert "exit code" in first.answers[0]["error"]
    assert "half done" in first.answers[0]["hint"]
    assert machine.reloader.half_done
    assert machine.taken == 0
    machine.lost, machine.runtime.half_done = False, False
    machine.result = {"operations": [], "restored": ["it"], "warnings": []}
    machine.run()
    assert machine.files == [Path("f"), None, Path("f")]
    assert machine.taken == 2
    assert second.answers == [machine.result]
    assert not machine.reloader.half_done


def test_healing_is_tried_again_and_not_all_the_time(machine: Machine) -> None:
    machine.runtime.half_done = True
    machine.result = {"error": "no room", "hint": None, "exit_code": 1}
    machine.ask()
    machine.run(2.5, lambda: True)
    assert machine.files == [Path("f"), None, None]
    assert machine.reloader.half_done
    machine.runtime.half_done = False
    machine.result = {"operations": [], "warnings": []}
    machine.run(20, lambda: machine.reloader.half_done)
    assert machine.taken == 1


def test_the_end_comes_after_healing(machine: Machine) -> None:
    machine.runtime.half_done = True
    machine.lost = True
    machine.ask()
    machine.run(going=lambda: not machine.jobs.runs("reload"))
    machine.jobs.end()
    machine.run()
    assert machine.files == [Path("f"), None]


def test_lines_of_a_worker_keep_their_level(lines: Lines) -> None:
    log_report({"operations": ["switch"], "restored": ["attach it"], "warnings": ["one city"]})
    assert list(zip(lines.levels, lines.said, strict=True)) == [
        ("WARNING", "warning: one city"),
        ("WARNING", "restored: attach it"),
        ("INFO", "switch"),
    ]
    log_report({"operations": ["switch"], "warnings": []})  # the report of an earlier version
    assert lines.said[3:] == ["switch"]
