"""The daemon's loop: a failing handler delays no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from enforcer.cli import run
from enforcer.daemon.loop import Loop
from enforcer.errors import KernelError


class Machine:
    """A loop, its log lines, and pairs of sockets that are closed at the end."""

    def __init__(self, stack: ExitStack, said: list[str]):
        self.said = said
        self.loop = Loop()
        self.stack = stack
        stack.callback(self.loop.close)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        return self.stack.enter_context(ours), self.stack.enter_context(theirs)

    def run(self, seconds: float, going: Callable[[], bool] = lambda: True) -> None:
        """Runs the loop for ``seconds``, or until ``going`` returns False."""
        end = time.monotonic() + seconds
        self.loop.timer(lambda: None, seconds)
        self.loop.run(lambda: time.monotonic() < end and going())


@pytest.fixture
def machine(said: list[str]) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(stack, said)


def failing(error: Exception, calls: list[str]) -> Callable[[], None]:
    def act() -> None:
        calls.append("failed")
        raise error

    return act


@pytest.mark.parametrize("error", [KernelError("no"), OSError("no"), ValueError("no"), AssertionError("no")])
def test_an_error_ends_nothing(machine: Machine, error: Exception) -> None:
    done: list[str] = []
    machine.loop.timer(failing(error, done), 0.0)
    machine.loop.timer(lambda: done.append("right"), 0.1)
    machine.run(0.3)
    assert done == ["failed", "right"]
    assert len(machine.said) == 1
    assert "no" in machine.said[0]


def test_a_task_that_failed_is_due_again(machine: Machine) -> None:
    calls: list[str] = []
    machine.loop.timer(failing(KernelError("no"), calls), 0.0)
    machine.run(1.3)
    assert calls == ["failed"] * 2
    assert machine.said == ["error: no"]  # an equal error is not logged again


def test_a_source_that_fails_holds_up_no_task(machine: Machine) -> None:
    """The source stays readable: due timers run nevertheless, and its handler is called again later."""
    ours, theirs = machine.pair()
    theirs.send(b"x")
    calls: list[str] = []
    machine.loop.watch(ours, failing(KernelError("no"), calls))

    def tick() -> float:
        calls.append("tick")
        return 0.05

    machine.loop.timer(tick, 0.05)
    machine.run(0.5)
    assert calls.count("tick") >= 7
    assert 2 <= calls.count("failed") <= 4
    machine.loop.unwatch(ours)  # also while the loop pauses it


def test_what_was_closed_is_not_read(machine: Machine) -> None:
    """Two sources are readable at once, and the first handler closes both."""
    pairs = [machine.pair(), machine.pair()]
    read: list[int] = []

    def act(index: int) -> None:
        read.append(index)
        for ours, _ in pairs:
            machine.loop.unwatch(ours)
            ours.close()

    for index, (ours, theirs) in enumerate(pairs):
        theirs.send(b"x")
        machine.loop.watch(ours, lambda index=index: act(index))
    machine.run(0.1)
    assert len(read) == 1
    assert machine.said == []


def test_tasks_come_in_the_order_in_which_they_are_due(machine: Machine) -> None:
    done: list[str] = []
    timers = {name: machine.loop.timer(lambda name=name: done.append(name)) for name in ("c", "a", "b")}
    for name in ("a", "b", "c"):
        timers[name].start()
    machine.run(0.1)
    assert done == ["a", "b", "c"]


def test_a_start_moves_what_is_due(machine: Machine) -> None:
    done: list[float] = []
    start = time.monotonic()
    late = machine.loop.timer(lambda: done.append(time.monotonic() - start), 0.1)
    late.start(0.3)
    machine.run(0.5)
    assert len(done) == 1
    assert done[0] >= 0.3


def test_a_cancelled_timer_is_not_due(machine: Machine) -> None:
    """Also if it was due already and the handler of an earlier timer cancels it."""
    done: list[str] = []
    late = machine.loop.timer(lambda: done.append("late"), 0.05)
    late.cancel()
    late.cancel()
    second = machine.loop.timer(lambda: done.append("second"))
    machine.loop.timer(second.cancel, 0.0)
    second.start()
    machine.run(0.2)
    assert done == []
    second.start()
    machine.run(0.1)
    assert done == ["second"]


def test_a_stdout_without_a_reader_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run._print_ready(os.fsdecode(b"/etc/\xff.yaml"))
    assert capfd.readouterr().out == "/etc/\\udcff.yaml\n"
    code = "from enforcer.cli import run; run._print_ready('x'); run._print_ready('y')"
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert b"Traceback" not in done.stderr


def test_the_daemon_is_lean() -> None:
    """Modules that need the compiler or the models run in processes that end."""
    code = """
import pkgutil, sys
import enforcer.cli.run, enforcer.daemon, enforcer.dns.learner
for module in pkgutil.iter_modules(enforcer.daemon.__path__, "enforcer.daemon."):
    __import__(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"bcc", "lark", "maxminddb", "pydantic", "ruamel", "scapy"}
