"""Starts the deadline process (enforcer/dns/deadline.py) and replaces it when it ends or hangs."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from enforcer.control.interpreter import PYTHON
from enforcer.dns import deadline
from enforcer.errors import KernelError
from enforcer.kernel.nfqueue import Queue

SILENCE = 5.0
"""Seconds without a heartbeat after which the process is replaced."""
_ENDING = 1.0


class Watchdog:
    """The deadline process. ``say`` receives lines for the journal. KernelError if it cannot be started."""

    def __init__(self, queue: Queue, *, fail_open: bool, say: Callable[[str], None]) -> None:
        self._queue = queue
        self._fail_open = fail_open
        self._say = say
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fail_open(self, passes: bool) -> None:
        """Set whether late answers pass or are dropped."""
        self._fail_open = passes
        self._tell()

    def tick(self) -> None:
        """Replace the process if it has ended or is silent; call it about once a second."""
        now = time.monotonic()
        with suppress(BlockingIOError, ConnectionError):
            if self._socket.recv(4096):
                self._heard = now
        code = self._process.poll()
        if code is None and now - self._heard < SILENCE:
            return
        why = f"was silent for {SILENCE:.0f} s" if code is None else f"ended with exit code {code}"
        self._say(f"the process that bounds how long DNS answers are held {why}: started again")
        self.close()
        self._start()

    def close(self) -> None:
        """End the process; it releases all held packets."""
        self._socket.close()
        try:
            self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        descriptors = self._queue.fileno(), theirs.fileno()
        command = [*PYTHON, "-m", deadline.__name__, str(self._queue.number)]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*command, *map(str, descriptors)], pass_fds=descriptors, stdin=subprocess.DEVNULL
                )
        except OSError as error:
            self._socket.close()
            raise KernelError(f"no process can be started: {error.strerror}") from error
        self._heard = time.monotonic()
        self._tell()

    def _tell(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            self._socket.send(deadline.PASS if self._fail_open else deadline.DROP)
