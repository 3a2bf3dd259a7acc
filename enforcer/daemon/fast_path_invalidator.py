"""What the fast path has learnt is forgotten as soon as the kernel says that it may be true no more."""

from __future__ import annotations

from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.datapath import fast_path
from enforcer.kernel.path_watch import PathWatch

# Where events come without end, flows take the kernel's way once in so many seconds.
_REST = 0.1


class FastPathInvalidator:
    """Also while a process changes the gateway: that one's changes are known to itself, others' are not."""

    def __init__(self, loop: Loop, watch: PathWatch, runtime: Runtime):
        self._loop = loop
        self._watch = watch
        self._runtime = runtime
        loop.watch(watch, self._on_events)
        self._retry = loop.timer(self._relearn)
        self._listening = loop.timer(self._listen)

    def activate(self) -> None:
        """On or off, as the configuration in force says: who was to change it may have been killed.

        What was learnt is stale in any case: nobody has watched over these maps before.
        """
        fast_path.set_enabled(self._runtime.maps, on=self._runtime.wanted.fast_path)

    def _relearn(self) -> None:
        fast_path.invalidate(self._runtime.maps)

    def _on_events(self) -> None:
        """At once for the first event; the next ones wait unread."""
        if not self._watch.drain():
            return
        self._loop.unwatch(self._watch)
        self._listening.start(_REST)
        if not self._loop.guard(self._relearn):
            self._retry.start(_REST)

    def _listen(self) -> None:
        self._loop.watch(self._watch, self._on_events)
