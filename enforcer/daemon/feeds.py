"""Feeds: readers of external data that fill facts if a configuration needs them: names from DNS answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from enforcer.daemon.loop import Loop, Timer
from enforcer.daemon.runtime import Runtime
from enforcer.facts.kernel_facts import KernelFacts
from enforcer.facts.store import Store

_log = logging.getLogger(__name__)

_TICK = 1.0


class Feed(Protocol):
    """An open feed. It stays open over a reload that still needs it, and is closed otherwise."""

    def fileno(self) -> int:
        """Descriptor that is readable when :meth:`drain` has something to do."""

    def drain(self) -> float | None:
        """Reads and handles what has arrived, without blocking.

        Returns the seconds until the next call if it is to come although nothing is readable, else None.
        """

    def tick(self) -> float:
        """Does what is due; returns the seconds until the next call, which comes within one second."""

    def use(self, store: Store, tables: KernelFacts, config: Mapping[str, Any]) -> None:
        """Takes the configuration that is in force now."""

    def report(self) -> dict[str, Any]:
        """Counters and state for `enforcer dns`, as JSON values."""

    def close(self) -> None:
        """Closes the feed."""


Maker = Callable[[Runtime], Callable[[], Feed] | None]
"""Returns a function that opens the feed, or None if the configuration in force does not need it."""


def _names(runtime: Runtime) -> Callable[[], Feed] | None:
    """Opens the learner of names from DNS answers, if a policy uses names."""
    if not runtime.wanted.dns:
        return None
    # Imports the DNS library only where it is needed.
    from enforcer.dns.learner import Learner
    from enforcer.dns.live_flows import LiveDestinations, live_destinations

    def alive() -> LiveDestinations:
        return live_destinations(runtime.maps.flows)

    return lambda: Learner(runtime.store, runtime.tables, runtime.config, say=_log.warning, alive=alive)


FEEDS: dict[str, Maker] = {"names": _names}
"""Makers by name."""


class Feeds:
    """The open feeds."""

    def __init__(self, loop: Loop, runtime: Runtime):
        self._loop = loop
        self._runtime = runtime
        self._open: dict[str, Feed] = {}
        self._timers: dict[str, Timer] = {}
        """Timers by name: each drains a feed that has more to do without being readable."""
        loop.timer(self._tick, _TICK)

    def activate(self) -> None:
        """Opens and closes feeds as the configuration in force needs them. Raises the errors of opening."""
        runtime = self._runtime
        for name, maker in FEEDS.items():
            opener = maker(runtime)
            if opener is None:
                self._close(name)
                continue
            if name in self._open:
                self._open[name].use(runtime.store, runtime.tables, runtime.config)
            else:
                self._open[name] = opener()
                self._timers[name] = self._loop.timer(partial(self._drain, name))
                self._loop.watch(self._open[name], partial(self._drain, name))
            # Opening or switching a feed may have read messages, so its descriptor does not become readable.
            self._loop.attempt(partial(self._drain, name))

    def report(self, name: str) -> dict[str, Any]:
        """The report of a feed; empty if it is not open."""
        return self._open[name].report() if name in self._open else {}

    def close(self) -> None:
        """Closes all feeds."""
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        if name in self._open:
            feed = self._open.pop(name)
            self._timers.pop(name).cancel()
            self._loop.unwatch(feed)
            feed.close()

    def _drain(self, name: str) -> None:
        after = self._open[name].drain()
        if after is not None:
            self._timers[name].start(after)

    def _tick(self) -> float:
        due = [_TICK]
        for feed in self._open.values():
            self._loop.attempt(lambda feed=feed: due.append(feed.tick()))  # type: ignore[misc]
        return min(due)
