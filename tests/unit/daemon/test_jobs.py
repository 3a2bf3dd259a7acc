"""Jobs: worker processes run one at a time, in order, and every caller gets an answer."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from enforcer.control.protocol import ControlConnection
from enforcer.control.worker import WorkerProcess
from enforcer.daemon.jobs import INTERRUPTED, Job, Jobs
from enforcer.daemon.loop import Loop
from enforcer.errors import EnforcerError


class Waiting:
    """Stands in for a caller's connection."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []

    def answer(self, result: dict[str, Any]) -> None:
        self.answers.append(result)


class Machine:
    """A loop with jobs, each a process that returns its number; ``log`` lists begins and ends."""

    def __init__(self, loop: Loop, said: list[str], directory: Path):
        self.loop = loop
        self.said = said
        self.directory = directory
        self.jobs = Jobs(loop)
        self.log: list[str] = []
        self.loop.timer(lambda: 0.02, 0.0)

    def work(self, number: int) -> WorkerProcess:
        self.log.append(f"begin {number}")
        file = self.directory / str(number)
        file.write_text(json.dumps({"number": number}))
        return WorkerProcess("json.tool", str(file))

    def finish(self, work: WorkerProcess) -> dict[str, Any]:
        result = work.result()
        self.log.append(f"finish {result['number']}")
        return result

    def add(self, begin: Callable[[], Any], name: str = "job") -> Waiting:
        waiting = Waiting()
        self.jobs.add(Job(name, begin, self.finish, [cast(ControlConnection, waiting)]))
        return waiting

    def run(self, going: Callable[[], bool] | None = None) -> None:
        end = time.monotonic() + 20
        self.loop.run(going or (lambda: self.jobs.busy and time.monotonic() < end))


@pytest.fixture
def machine(said: list[str], tmp_path: Path) -> Iterator[Machine]:
    with closing(Loop()) as loop:
        yield Machine(loop, said, tmp_path)


def test_one_after_another(machine: Machine) -> None:
    waiting = [machine.add(lambda number=number: machine.work(number)) for number in range(3)]
    machine.run()
    assert machine.log == [f"{what} {number}" for number in range(3) for what in ("begin", "finish")]
    assert [one.answers for one in waiting] == [[{"number": number}] for number in range(3)]


def test_what_was_put_off_has_its_turn_between_two(machine: Machine) -> None:
    def finish_and_call(work: WorkerProcess) -> dict[str, Any]:
        put_off.start()
        return machine.finish(work)

    put_off = machine.loop.timer(lambda: machine.log.append(f"put off, runs: {machine.jobs.runs('job')}"))
    for number in range(2):
        machine.jobs.add(Job("job", lambda number=number: machine.work(number), finish_and_call))
    machine.run()
    assert machine.log[:4] == ["begin 0", "finish 0", "put off, runs: False", "begin 1"]


def no_process() -> WorkerProcess:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    ("begin", "answer", "line"),
    [
        (no_process, "no process can be started: Resource temporarily unavailable", "no process"),
        (lambda: cast(dict[str, WorkerProcess], {})["x"], "the daemon failed", "KeyError"),
    ],
)
def test_a_job_that_cannot_begin(
    machine: Machine, begin: Callable[[], WorkerProcess], answer: str, line: str
) -> None:
    """Its callers get the error, and the following jobs run."""
    wrong = machine.add(begin)
    right = machine.add(lambda: machine.work(1))
    machine.run()
    assert [one["error"] for one in wrong.answers] == [answer]
    assert right.answers == [{"number": 1}]
    assert line in machine.said[0]
    assert not machine.jobs.runs("job")


def test_a_job_that_has_nothing_to_do_any_more(machine: Machine) -> None:
    done = machine.add(lambda: {"number": 7})
    machine.run()
    assert done.answers == [{"number": 7}]
    assert machine.log == []


def test_a_process_without_a_result(machine: Machine) -> None:
    failed = machine.add(lambda: WorkerProcess("json.tool", "/nowhere"))
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


# --- callers that disconnect


@pytest.fixture
def caller() -> Iterator[tuple[socket.socket, ControlConnection]]:
    """A command's end of a connection, and the daemon's."""
    here, there = socket.socketpair()
    with here, there:
        yield here, ControlConnection(there)


def sleeping(seconds: float, *, ignores: bool) -> WorkerProcess:
    """A process without a result that ends after ``seconds``, or at SIGTERM unless it ``ignores`` that."""
    ignore = ["import signal", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"] if ignores else []
    return WorkerProcess("timeit", "-n1", "-r1", *ignore, "import time", f"time.sleep({seconds})")


def add_revocable(machine: Machine, begin: Callable[[], WorkerProcess], caller: ControlConnection) -> None:
    def finish(work: WorkerProcess) -> dict[str, Any]:
        try:
            return work.result()
        except EnforcerError as error:  # timeit gives no result
            return {"error": str(error)}

    machine.jobs.add(Job("job", begin, finish, [caller], revocable=True))


def test_what_waits_is_left_undone(machine: Machine, caller: tuple[socket.socket, ControlConnection]) -> None:
    here, there = caller
    machine.add(lambda: machine.work(0))
    add_revocable(machine, lambda: machine.work(1), there)
    here.shutdown(socket.SHUT_WR)
    machine.run()
    assert machine.log == ["begin 0", "finish 0"]
    assert json.loads(here.makefile().readline()) == INTERRUPTED


@pytest.mark.parametrize("ignores", [False, True])
def test_what_is_under_way_ends_if_it_can(
    machine: Machine, caller: tuple[socket.socket, ControlConnection], ignores: bool
) -> None:
    here, there = caller
    began = time.monotonic()
    # Long enough to start, and for SIGTERM to end the process before it ends by itself.
    add_revocable(machine, lambda: sleeping(5 if ignores else 60, ignores=ignores), there)

    def go_away() -> None:
        here.shutdown(socket.SHUT_WR)

    machine.loop.timer(go_away, 2.0)
    machine.run()
    answer = json.loads(here.makefile().readline())
    assert (answer == INTERRUPTED) is not ignores
    assert (time.monotonic() - began > 5.0) is ignores
    assert machine.said == []


def test_what_is_said_besides_is_no_farewell(
    machine: Machine, caller: tuple[socket.socket, ControlConnection]
) -> None:
    here, there = caller
    add_revocable(machine, lambda: machine.work(1), there)
    here.sendall(b"more")
    machine.run()
    assert json.loads(here.makefile().readline()) == {"number": 1}


def test_what_cannot_be_taken_back_goes_on(
    machine: Machine, caller: tuple[socket.socket, ControlConnection]
) -> None:
    here, there = caller
    machine.jobs.add(Job("job", lambda: machine.work(1), machine.finish, [there]))
    here.close()
    machine.run()
    assert machine.log == ["begin 1", "finish 1"]
