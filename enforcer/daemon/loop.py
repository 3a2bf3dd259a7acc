"""A loop in one thread over what is readable and what is due; it knows nothing of gateways."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from enforcer.errors import EnforcerError

# What failed is tried again after so many seconds.
_AGAIN = 1.0

Task = Callable[[], float | None]
"""Something that is due at times; returns in how many seconds again, or None: when it is called for."""


class Readable(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class Loop:
    """Calls what is ready; ``say`` hears of errors, which end nothing."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._tasks: dict[str, Task] = {}
        self._due: dict[str, float] = {}

    def close(self) -> None:
        """The end; nothing that is watched is closed."""
        self._selector.close()

    def watch(self, source: Readable, act: Callable[[], None]) -> None:
        """Calls ``act``, which must not wait, whenever the source is readable."""
        self._selector.register(source, selectors.EVENT_READ, act)

    def unwatch(self, source: Readable) -> None:
        """Before the source is closed."""
        self._selector.unregister(source)

    def task(self, name: str, task: Task, after: float | None = None) -> None:
        """Makes a task known by name; it is due after so many seconds, or when it is called for."""
        self._tasks[name] = task
        if after is not None:
            self.call(name, after)

    def call(self, name: str, after: float = 0.0) -> None:
        """The task is due after so many seconds, and not when it was due before."""
        self._due[name] = time.monotonic() + after

    def run(self, going: Callable[[], bool]) -> None:
        """Goes on as long as ``going`` says so."""
        while going():
            wait = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
            ready: list[Callable[[], None]] = [key.data for key, _ in self._selector.select(wait)]
            for act in ready:
                self.guard(act)
            now = time.monotonic()
            for name in sorted(self._due, key=self._due.__getitem__):
                if self._due[name] <= now:
                    self.guard(partial(self._do, name))

    def _do(self, name: str) -> None:
        del self._due[name]
        try:
            after = self._tasks[name]()
        except Exception:
            self.call(name, _AGAIN)
            raise
        if after is not None:
            self.call(name, after)

    def guard(self, act: Callable[[], object]) -> None:
        """An error is said, and the loop goes on."""
        try:
            act()
        except (EnforcerError, OSError) as error:
            self._say(f"error: {error}")
            # A task that fails at once must not spin.
            for name, due in self._due.items():
                self._due[name] = max(due, time.monotonic() + _AGAIN)


class signals:
    """Some signals as bytes on a socket, for a loop; a context manager that gives the socket."""

    def __init__(self, *numbers: signal.Signals):
        self._numbers = numbers

    def __enter__(self) -> socket.socket:
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        self._before = {number: signal.signal(number, lambda *_: None) for number in self._numbers}
        return self._wake

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._wake.close()
        self._waker.close()
