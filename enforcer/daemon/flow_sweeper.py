"""Sweeps: flows that are over are reaped, and origins without flows forgotten."""

from __future__ import annotations

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

# A sweep takes a share of one core: it waits for this many times what the last one took.
_REST = 100
_AT_LEAST = 1.0
# How many flows a sweep asks conntrack about, or tells it of, at some 10 µs each.
_ASK_UNANSWERED = 2000
_ASK_IDLE = 250
_TELL = 20_000


class FlowSweeper:
    """``timeouts`` gives conntrack's timeouts; while ``reloading`` nothing is swept.

    ``look`` is given the keys and values of all flows that a sweep reads.
    """

    def __init__(
        self,
        loop: Loop,
        runtime: Runtime,
        reloading: Callable[[], bool],
        timeouts: Callable[[], np.ndarray],
        say: Callable[[str], None],
        *,
        look: Callable[[np.ndarray, np.ndarray], None] = lambda keys, flows: None,
    ):
        self._runtime = runtime
        self._reloading = reloading
        self._timeouts = timeouts
        self._say = say
        self._look = look
        self._asked_since = 0.0
        self._put_off = False
        self._recount = Recount()
        self._fill = FillMonitor(say)
        self._conntrack = ConntrackZones(say)
        self._next_sweep = loop.timer(self._sweep, _AT_LEAST)

    @property
    def warnings(self) -> list[str]:
        """What an administrator should know of conntrack and our flows."""
        return self._conntrack.warnings

    def catch_up(self) -> None:
        """A sweep that a reload put off comes before the next reload."""
        if self._put_off:
            self._next_sweep.start()

    def _sweep(self) -> float:
        self._put_off = self._reloading()
        if self._put_off:
            return _AT_LEAST
        began = time.monotonic()
        self._reap()
        return max(_AT_LEAST, _REST * (time.monotonic() - began))

    def _reap(self) -> None:
        """Reaps idle flows, and those that conntrack doesn't have: never had (dropped behind us, no port
        free) or no more (deleted by somebody, or when its table was full).
        """
        maps, pins = self._runtime.maps, self._runtime.pins
        began = time.monotonic()
        self._recount.begin(maps)
        found = sweep.sweep(maps, pins, self._timeouts(), self._asked_since, _ASK_IDLE, look=self._look_at)
        corrected = self._recount.finish(maps, pins)
        if corrected:
            self._say(f"corrected {corrected} counters that had drifted from the flows they count")
        unanswered = sweep.some(found.unanswered, _ASK_UNANSWERED)
        sweep.reap(pins, self._conntrack.gone(unanswered, found.idle, found.flows), unknown=True)
        # They would hold their ports for hours. One that has spoken just now is still there.
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
        """Tells conntrack of states that it cannot know, or their ports would stay taken for hours."""
        for state, keys in untold.items():
            some = keys[:_TELL]
            if len(some):
                timeout = round(self._timeouts()[state] / 1e9 - availability.GRACE)
                self._conntrack.tell(some, State(state).name, timeout)
                sweep.told(pins, some, state)
