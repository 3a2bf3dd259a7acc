"""A program that runs in a namespace: started, waited for until it serves, ended by its id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from enforcer.control.interpreter import PYTHON
from lab.netns import LabError, Namespace

PATIENCE = 60.0  # seconds; a server in an emulated machine takes many to start

# Loopback address of each family, at which readiness checks reach a program in the namespace.
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Program:
    """A process in a namespace. Its output is in ``<directory>/<name>.out``.

    It runs in a session of its own: Ctrl-C at the terminal reaches only the lab, which then ends the process.
    ``ready`` is called every 10 ms; ``start`` raises LabError if the process ends or PATIENCE is exceeded.
    """

    def __init__(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        directory: Path,
        name: str,
        *,
        ready: Callable[[], bool] | None = None,
        stop_signal: int = signal.SIGTERM,
    ):
        self.namespace = namespace
        self.argv = list(argv)
        self.name = f"{name}-{namespace.name.rpartition('-')[2]}"
        self.output = directory / f"{self.name}.out"
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = ready or (lambda: True)
        self._stop_signal = stop_signal

    def __enter__(self) -> Self:
        return self if self.process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id; LabError before the first start."""
        if self.process is None:
            raise LabError(f"{self.name} was not started")
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        """The arguments that start it from anywhere."""
        return self.namespace.command(self.argv)

    def launch(self) -> Self:
        """Start it without waiting."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait(self) -> Self:
        """Wait until it serves."""
        deadline = time.monotonic() + PATIENCE
        while not self._ready():
            if not self.alive:
                raise LabError(f"{self.name} ended: {self.said()[-2000:]}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} is not ready after {PATIENCE:.0f} s: {self.said()[-2000:]}")
            time.sleep(0.01)
        return self

    def start(self) -> Self:
        """Start it and wait until it serves."""
        return self.launch().wait()

    def stop(self, patience: float = 3.0) -> int | None:
        """End it, with SIGKILL after ``patience`` seconds; return its exit code, None if never started."""
        if self.process is None:
            return None
        if self.alive:
            self._signal(self._stop_signal)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        return self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def said(self) -> str:
        """The whole output of the program so far."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""


def module(name: str, *arguments: str) -> list[str]:
    """The arguments that run one of this package's modules as a program."""
    return [*PYTHON, "-m", f"lab.{name}", *arguments]


def start_all(programs: Iterable[Program]) -> None:
    """Start programs together, then wait for each."""
    programs = [program.launch() for program in programs]
    for program in programs:
        program.wait()


def listening(namespace: Namespace, *ports: int) -> Callable[[], bool]:
    """A readiness check: all these TCP ports accept on the loopback of both families."""

    def ready() -> bool:
        for family, address in LOOPBACK.items():
            for port in ports:
                with namespace.socket(family, socket.SOCK_STREAM) as probe:
                    probe.settimeout(1)
                    if probe.connect_ex((address, port)):
                        return False
        return True

    return ready
