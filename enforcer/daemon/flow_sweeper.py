"""Sweeps: removes flows that have ended, and origins and client prefixes without flows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np

from enforcer.constants.bpf import State
from enforcer.daemon.conntrack_zones import ConntrackZones
from enforcer.daemon.fill_monitor import FillMonitor
from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.datapath import sweep
from enforcer.datapath.programs import Pins
from enforcer.datapath.recount import Recount
from enforcer.datapath.table_usage import Fill
from enforcer.gateway import availability
from enforcer.kernel import conntrack

_log = logging.getLogger(__name__)

# A sweep may use one percent of a core: the next one follows after this many times its duration.
_REST = 100
# Seconds between sweeps, at least.
_AT_LEAST = 1.0
# The number of flows that a sweep looks up in conntrack, or whose state it sets there, at about 10 µs each.
_ASK_UNANSWERED = 2000
_ASK_IDLE = 250
_TELL = 20_000


class FlowSweeper:
    """Sweeps at intervals, but not while ``reloading()`` is true.

    ``timeouts`` returns conntrack's timeouts. ``look`` gets the keys and values of all flows that a sweep
    reads.
    """

    def __init__(
        self,
        loop: Loop,
        runtime: Runtime,
        reloading: Callable[[], bool],
        timeouts: Callable[[], np.ndarray],
        *,
        look: Callable[[np.ndarray, np.ndarray], None] = lambda keys, flows: None,
    ):
        self._runtime = runtime
        self._reloading = reloading
        self._timeouts = timeouts
        self._look = look
        self._asked_since = 0.0
        self._delayed = False
        self._recount = Recount()
        self._fill = FillMonitor()
        self._conntrack = ConntrackZones()
        self._next_sweep = loop.timer(self._sweep, _AT_LEAST)

    @property
    def warnings(self) -> list[str]:
        """Warnings for `status` about conntrack and the flows."""
        return self._conntrack.warnings

    def catch_up(self) -> None:
        """Starts a sweep that a reload has delayed, so that it comes before the next reload."""
        if self._delayed:
            self._next_sweep.start()

    def _sweep(self) -> float:
        self._delayed = self._reloading()
        if self._delayed:
            return _AT_LEAST
        began = time.monotonic()
        self._reap()
        return max(_AT_LEAST, _REST * (time.monotonic() - began))

    def _reap(self) -> None:
        """Removes idle flows and flows without a conntrack entry.

        conntrack never had an entry if a later hook dropped the packet or no port was free; it has none any
        more if `conntrack -D` deleted it or its table was full.
        """
        maps, pins = self._runtime.maps, self._runtime.pins
        began = time.monotonic()
        self._recount.begin(maps)
        found = sweep.sweep(maps, pins, self._timeouts(), self._asked_since, _ASK_IDLE, look=self._look_at)
        corrected = self._recount.finish(maps, pins)
        if corrected:
            _log.warning(f"corrected {corrected} counters that differed from the number of flows they count")
        unanswered = sweep.some(found.unanswered, _ASK_UNANSWERED)
        sweep.reap(pins, self._conntrack.gone(unanswered, found.idle, found.flows), unknown=True)
        # Their conntrack entries would hold the ports for hours. A flow that has had a packet meanwhile is
        # still in the map.
        over = [key for key in found.outlived if maps.flows.get(key) is None]
        if over:
            self._conntrack.forget(over)
        if len(found.unanswered) <= _ASK_UNANSWERED:
            self._asked_since = began - 2.5
        sweep.keep_evictable(pins, int(maps.flows.info.entries))
        origins = sweep.forget_origins(maps.origins, pins)
        clients = sweep.forget_clients(maps.client_prefixes, pins)
        for table, used in (
            (maps.flows, found.flows),
            (maps.origins, origins),
            (maps.client_prefixes, clients),
        ):
            self._fill.note(table.name, Fill(used, int(table.info.entries)))
        self._fill.note("conntrack", Fill(*conntrack.fill()))
        self._tell(pins, found.untold)

    def _look_at(self, keys: np.ndarray, flows: np.ndarray) -> None:
        self._recount.add(keys, flows)
        self._look(keys, flows)

    def _tell(self, pins: Pins, untold: Mapping[int, np.ndarray]) -> None:
        """Sets in conntrack the states that it does not know; else these connections hold ports for hours."""
        for state, keys in untold.items():
            some = keys[:_TELL]
            if len(some):
                timeout = round(self._timeouts()[state] / 1e9 - availability.GRACE)
                self._conntrack.tell(some, State(state).name, timeout)
                sweep.told(pins, some, state)
