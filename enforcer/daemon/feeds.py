"""What else the loop serves, where the configuration asks for it: the learner of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from enforcer.daemon.loop import Loop, Timer
from enforcer.daemon.runtime import Runtime
from enforcer.facts.kernel_facts import KernelFacts
from enforcer.facts.store import Store

_TICK = 1.0


class Feed(Protocol):
    """Something that is readable now and then, with a tick at least once a second.

    What is wanted of a configuration is kept over a reload (``use``); what is no more is closed.
    """

    def fileno(self) -> int:
        """Readable when :meth:`drain` has something to do."""

    def drain(self) -> float | None:
        """Do it; never waits. Returns in how many seconds to come again though nothing is readable, if so."""

    def tick(self) -> float:
        """What time brings; returns in how many seconds to come again."""

    def use(self, store: Store, tables: KernelFacts, config: Mapping[str, Any]) -> None:
        """Another configuration is in force."""

    def report(self) -> dict[str, Any]:
        """What it has to tell."""

    def close(self) -> None:
        """The end."""


class Maker(Protocol):
    """Makes a feed if what is enforced asks for it, else None."""

    def __call__(self, runtime: Runtime, say: Callable[[str], None]) -> Callable[[], Feed] | None:
        """What opens the feed."""


def _names(runtime: Runtime, say: Callable[[str], None]) -> Callable[[], Feed] | None:
    """What learns names from DNS answers, if a policy asks for names."""
    if not runtime.wanted.dns:
        return None
    # The library of DNS is for those who need it.
    from enforcer.dns.alive import Alive, destinations
    from enforcer.dns.learner import Learner

    def alive() -> Alive:
        return destinations(runtime.maps.flows)

    return lambda: Learner(runtime.store, runtime.tables, runtime.config, say=say, alive=alive)


FEEDS: dict[str, Maker] = {"names": _names}
"""Makers by name. A maker gives what opens the feed, which is called only if it isn't open."""


class Feeds:
    """Those that are open."""

    def __init__(self, loop: Loop, runtime: Runtime, say: Callable[[str], None]):
        self._loop = loop
        self._runtime = runtime
        self._say = say
        self._open: dict[str, Feed] = {}
        self._timers: dict[str, Timer] = {}
        """What drains each again though it is not readable."""
        loop.timer(self._tick, _TICK)

    def activate(self) -> None:
        """Opens, keeps and closes what the configuration in force wants. Raises what opening one raises."""
        runtime = self._runtime
        for name, maker in FEEDS.items():
            opener = maker(runtime, self._say)
            if opener is None:
                self._close(name)
                continue
            if name in self._open:
                self._open[name].use(runtime.store, runtime.tables, runtime.config)
            else:
                self._open[name] = opener()
                self._timers[name] = self._loop.timer(partial(self._drain, name))
                self._loop.watch(self._open[name], partial(self._drain, name))
            # What came while the kernel was asked for something has been read, and is not readable any more.
            self._loop.guard(partial(self._drain, name))

    def report(self, name: str) -> dict[str, Any]:
        """What a feed has to tell; nothing if it isn't open."""
        return self._open[name].report() if name in self._open else {}

    def close(self) -> None:
        """Closes all."""
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
            self._loop.guard(lambda feed=feed: due.append(feed.tick()))  # type: ignore[misc]
        return min(due)
