"""A loop in one thread: it calls handlers of readable descriptors and of timers that are due."""

from __future__ import annotations

import logging
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

_log = logging.getLogger(__name__)

# Seconds after which a task that failed is due again.
_RETRY_AFTER = 1.0
# Seconds for which a descriptor is not watched after its handler failed.
_ASIDE = 0.2
# Seconds after which the same error is logged again.
_SILENCE = 60.0

Task = Callable[[], float | None]
"""A timer's function: returns the seconds until it is due again; None: not before :meth:`Timer.start`."""


class Readable(Protocol):
    """An object with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class Timer:
    """One task of a loop, due once after each start."""

    def __init__(self, due: dict[Timer, float], task: Task):
        self._due = due
        self.task = task

    def start(self, after: float = 0.0) -> None:
        """Makes the task due in ``after`` seconds, instead of at any time set before."""
        self._due[self] = time.monotonic() + after

    def cancel(self) -> None:
        """Makes the task not due; has no effect if it is not."""
        self._due.pop(self, None)


class Loop:
    """Descriptors and timers. A handler's error is logged; the loop continues and calls the handler again."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._due: dict[Timer, float] = {}
        self._aside: dict[Readable, tuple[float, Callable[[], None]]] = {}
        self._logged: dict[str, float] = {}
        """Errors of the last _SILENCE seconds, by the time of their line."""

    def close(self) -> None:
        """Ends the loop; closes none of the descriptors that it watches."""
        self._selector.close()

    def watch(self, readable: Readable, act: Callable[[], None]) -> None:
        """Calls ``act``, which must not block, whenever the descriptor is readable."""
        self._selector.register(readable, selectors.EVENT_READ, act)

    def unwatch(self, readable: Readable) -> None:
        """Stops watching; to be called before the descriptor is closed."""
        if self._aside.pop(readable, None) is None:
            self._selector.unregister(readable)

    def timer(self, task: Task, after: float | None = None) -> Timer:
        """A timer that calls ``task``; it is started if ``after``, in seconds, is given."""
        timer = Timer(self._due, task)
        if after is not None:
            timer.start(after)
        return timer

    def run(self, going: Callable[[], bool]) -> None:
        """Runs while ``going()`` is true."""
        while going():
            for key, _ in self._selector.select(self._wait()):
                if self._is_watched(key):
                    self._read(key)
            now = time.monotonic()
            for readable, (until, act) in list(self._aside.items()):
                if until <= now:
                    del self._aside[readable]
                    self.attempt(partial(self.watch, readable, act))
            for timer in sorted(self._due, key=self._due.__getitem__):
                # An earlier timer of this round may have cancelled or restarted this one.
                if self._due.get(timer, math.inf) <= now:
                    self._expire(timer)

    def _wait(self) -> float | None:
        times = [*self._due.values(), *(until for until, _ in self._aside.values())]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _is_watched(self, key: selectors.SelectorKey) -> bool:
        """False if an earlier handler of this round has closed the descriptor."""
        return self._selector.get_map().get(key.fd) is key

    def _read(self, key: selectors.SelectorKey) -> None:
        if not self.attempt(key.data) and self._is_watched(key):
            # The descriptor is still readable, and its handler would fail again at once.
            self._selector.unregister(key.fileobj)
            self._aside[cast(Readable, key.fileobj)] = (time.monotonic() + _ASIDE, key.data)

    def _expire(self, timer: Timer) -> None:
        timer.cancel()

        def act() -> None:
            after = timer.task()
            if after is not None:
                timer.start(after)

        if not self.attempt(act):
            timer.start(_RETRY_AFTER)

    def attempt(self, act: Callable[[], object]) -> bool:
        """Calls ``act``; returns False if it raised. Logs every error, also one that is a bug of the daemon.

        Without the daemon, idle flows stay counted and sessions do not expire: that is worse than one failed
        task.
        """
        try:
            act()
        except (EnforcerError, OSError) as error:
            self._complain(f"error: {error}")
        except Exception:
            self._complain(f"error in the daemon itself, which continues:\n{traceback.format_exc().rstrip()}")
        else:
            return True
        return False

    def _complain(self, text: str) -> None:
        """Logs an error; the same one once in _SILENCE seconds."""
        now = time.monotonic()
        self._logged = {line: since for line, since in self._logged.items() if now - since < _SILENCE}
        if text not in self._logged:
            self._logged[text] = now
            _log.error(text)


class signals:
    """Context manager: a socket on which the given signals arrive as bytes, each its number."""

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
