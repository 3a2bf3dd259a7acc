"""A loop in one thread over what is readable and what is due; it knows nothing of gateways."""

from __future__ import annotations

import math
import selectors
import signal
import socket
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

from enforcer.errors import EnforcerError

# A task that failed is due again, and a descriptor whose handler failed is watched again, after so many
# seconds.
_AGAIN = 1.0
_ASIDE = 0.2
# The same error is said again after so many seconds.
_SILENCE = 60.0

Task = Callable[[], float | None]
"""What a timer calls; returns in how many seconds it is due again, or None: not before it is started."""


class Readable(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class Timer:
    """One task of a loop, due once after each start."""

    def __init__(self, due: dict[Timer, float], task: Task):
        self._due = due
        self.task = task

    def start(self, after: float = 0.0) -> None:
        """Makes it due in ``after`` seconds, and not when it was due before."""
        self._due[self] = time.monotonic() + after

    def cancel(self) -> None:
        """Makes it due no more, if it was."""
        self._due.pop(self, None)


class Loop:
    """Calls what is ready. ``say`` hears of errors, which end nothing: what failed has another turn later."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._due: dict[Timer, float] = {}
        self._aside: dict[Readable, tuple[float, Callable[[], None]]] = {}
        self._said: dict[str, float] = {}

    def close(self) -> None:
        """The end; nothing that is watched is closed."""
        self._selector.close()

    def watch(self, readable: Readable, act: Callable[[], None]) -> None:
        """Calls ``act``, which must not wait, whenever the readable is readable."""
        self._selector.register(readable, selectors.EVENT_READ, act)

    def unwatch(self, readable: Readable) -> None:
        """Before the readable is closed."""
        if self._aside.pop(readable, None) is None:
            self._selector.unregister(readable)

    def timer(self, task: Task, after: float | None = None) -> Timer:
        """A timer that calls ``task``; it is started if ``after``, in seconds, is given."""
        timer = Timer(self._due, task)
        if after is not None:
            timer.start(after)
        return timer

    def run(self, going: Callable[[], bool]) -> None:
        """Goes on as long as ``going`` says so."""
        while going():
            for key, _ in self._selector.select(self._wait()):
                if self._is_watched(key):
                    self._read(key)
            now = time.monotonic()
            for readable, (until, act) in list(self._aside.items()):
                if until <= now:
                    del self._aside[readable]
                    self.guard(partial(self.watch, readable, act))
            for timer in sorted(self._due, key=self._due.__getitem__):
                # One that came before it may have cancelled or restarted it.
                if self._due.get(timer, math.inf) <= now:
                    self._expire(timer)

    def _wait(self) -> float | None:
        times = [*self._due.values(), *(until for until, _ in self._aside.values())]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _is_watched(self, key: selectors.SelectorKey) -> bool:
        """Not any more, if what had its turn before it has closed it."""
        return self._selector.get_map().get(key.fd) is key

    def _read(self, key: selectors.SelectorKey) -> None:
        if not self.guard(key.data) and self._is_watched(key):
            # It is still readable, and would fail at once.
            self._selector.unregister(key.fileobj)
            self._aside[cast(Readable, key.fileobj)] = (time.monotonic() + _ASIDE, key.data)

    def _expire(self, timer: Timer) -> None:
        timer.cancel()

        def act() -> None:
            after = timer.task()
            if after is not None:
                timer.start(after)

        if not self.guard(act):
            timer.start(_AGAIN)

    def guard(self, act: Callable[[], object]) -> bool:
        """Whether it went well. An error is said, and the loop goes on: a fault of ours, too.

        Without a daemon idle flows stay counted and sessions don't end: worse than one task undone.
        """
        try:
            act()
        except (EnforcerError, OSError) as error:
            self._complain(f"error: {error}")
        except Exception:
            self._complain(f"error in the daemon itself, which goes on:\n{traceback.format_exc().rstrip()}")
        else:
            return True
        return False

    def _complain(self, text: str) -> None:
        """Once a minute if it is the same every time."""
        now = time.monotonic()
        self._said = {said: since for said, since in self._said.items() if now - since < _SILENCE}
        if text not in self._said:
            self._said[text] = now
            self._say(text)


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
