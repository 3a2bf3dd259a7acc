"""Work in processes of its own: one at a time, in order, and an answer to everybody who waits."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from enforcer.applying import Work
from enforcer.control import Caller
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop


class Waiting:
    """Stands for a caller."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []

    def answer(self, result: dict[str, Any]) -> None:
        self.answers.append(result)


class Machine:
    """A loop with jobs, each a process that gives its number; ``log`` has what happened."""

    def __init__(self, loop: Loop, said: list[str], directory: Path):
        self.loop = loop
        self.said = said
        self.directory = directory
        self.jobs = Jobs(loop)
        self.log: list[str] = []
        self.loop.task("tick", lambda: 0.02, 0.0)

    def work(self, number: int) -> Work:
        self.log.append(f"begin {number}")
        file = self.directory / str(number)
        file.write_text(json.dumps({"number": number}))
        return Work("json.tool", str(file))

    def finish(self, work: Work) -> dict[str, Any]:
        result = work.result()
        self.log.append(f"finish {result['number']}")
        return result

    def add(self, begin: Callable[[], Any], name: str = "job") -> Waiting:
        waiting = Waiting()
        self.jobs.add(Job(name, begin, self.finish, [cast(Caller, waiting)]))
        return waiting

    def run(self, going: Callable[[], bool] | None = None) -> None:
        end = time.monotonic() + 20
        self.loop.run(going or (lambda: self.jobs.busy and time.monotonic() < end))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    said: list[str] = []
    with closing(Loop(said.append)) as loop:
        yield Machine(loop, said, tmp_path)


def test_one_after_another(machine: Machine) -> None:
    waiting = [machine.add(lambda number=number: machine.work(number)) for number in range(3)]
    machine.run()
    assert machine.log == [f"{what} {number}" for number in range(3) for what in ("begin", "finish")]
    assert [one.answers for one in waiting] == [[{"number": number}] for number in range(3)]


def test_what_was_put_off_has_its_turn_between_two(machine: Machine) -> None:
    def finish_and_call(work: Work) -> dict[str, Any]:
        machine.loop.call("put off")
        return machine.finish(work)

    machine.loop.task("put off", lambda: machine.log.append(f"put off, runs: {machine.jobs.runs('job')}"))
    for number in range(2):
        machine.jobs.add(Job("job", lambda number=number: machine.work(number), finish_and_call))
    machine.run()
    assert machine.log[:4] == ["begin 0", "finish 0", "put off, runs: False", "begin 1"]


def no_process() -> Work:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    ("begin", "answer", "said"),
    [
        (no_process, "no process can be started: Resource temporarily unavailable", "no process"),
        (lambda: cast(dict[str, Work], {})["x"], "the daemon failed", "KeyError"),
    ],
)
def test_a_job_that_cannot_begin(machine: Machine, begin: Callable[[], Work], answer: str, said: str) -> None:
    """Its callers hear of it, and those behind it have their turn."""
    wrong = machine.add(begin)
    right = machine.add(lambda: machine.work(1))
    machine.run()
    assert [one["error"] for one in wrong.answers] == [answer]
    assert right.answers == [{"number": 1}]
    assert said in machine.said[0]
    assert not machine.jobs.runs("job")


def test_a_job_that_has_nothing_to_do_any_more(machine: Machine) -> None:
    done = machine.add(lambda: {"number": 7})
    machine.run()
    assert done.answers == [{"number": 7}]
    assert machine.log == []


def test_a_process_without_a_result(machine: Machine) -> None:
    failed = machine.add(lambda: Work("json.tool", "/nowhere"))
    after = machine.add(lambda: machine.work(1))
    machine.run()
    assert len(failed.answers) == len(after.answers) == 1
    assert "error" in failed.answers[0]
    assert after.answers == [{"number": 1}]


def test_the_end_waits_for_what_is_under_way(machine: Machine) -> None:
    first = machine.add(lambda: machine.work(0))
    second = machine.add(lambda: machine.work(1))
    machine.run(lambda: not machine.jobs.runs("job"))
    machine.jobs.end()
    machine.run()
    assert first.answers == [{"number": 0}]
    assert [one["error"] for one in second.answers] == ["the daemon is about to end"]
    assert machine.log == ["begin 0", "finish 0"]
