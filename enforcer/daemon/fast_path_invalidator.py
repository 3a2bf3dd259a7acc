"""Invalidates all fast-path entries as soon as a kernel event says that a path may have changed."""

from __future__ import annotations

from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.datapath import fast_path
from enforcer.kernel.path_watch import PathWatch

# Seconds between invalidations: a flood of events makes flows use the kernel's path no more often.
_REST = 0.1


class FastPathInvalidator:
    """Acts also while a process changes the gateway: other software may change paths at the same time."""

    def __init__(self, loop: Loop, watch: PathWatch, runtime: Runtime):
        self._loop = loop
        self._watch = watch
        self._runtime = runtime
        loop.watch(watch, self._on_events)
        self._retry = loop.timer(self._relearn)
        self._listening = loop.timer(self._listen)

    def activate(self) -> None:
        """Switches the fast path on or off as the configuration in force says, and invalidates all entries.

        The process that should have switched it may have been killed, and events that arrived before this
        call have not invalidated entries of these maps.
        """
        fast_path.set_enabled(self._runtime.maps, on=self._runtime.wanted.fast_path)

    def _relearn(self) -> None:
        fast_path.invalidate(self._runtime.maps)

    def _on_events(self) -> None:
        """Invalidates at once for the first event; later ones stay unread for _REST seconds."""
        if not self._watch.drain():
            return
        self._loop.unwatch(self._watch)
        self._listening.start(_REST)
        if not self._loop.attempt(self._relearn):
            self._retry.start(_REST)

    def _listen(self) -> None:
        self._loop.watch(self._watch, self._on_events)
