"""Finds flows in conntrack's zones, and decides when a failed look-up is not trusted.

Rules of other software may put connections into zones (`ct zone set`, iptables' CT target, Open vSwitch),
and a flow's key does not contain the zone of its conntrack entry. A flow without an entry in the known zones
is looked up in the zones of a sample of conntrack's entries.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from enforcer.kernel import conntrack

_log = logging.getLogger(__name__)

# Entries that a sample reads when a flow was not found, at about 4 µs each.
_SAMPLE = 2000
# Zones in which flows are looked up, at about 10 µs for each flow and zone.
MOST_ZONES = 16
# If fewer idle flows than this are missing, they count as gone, whatever their share of the idle flows is.
MANY = 16


class ConntrackZones:
    """The zones in use. Logs when conntrack's answer is no longer trusted, and when it is again."""

    def __init__(self) -> None:
        self._zones: list[int] = []
        self._distrust = ""
        """Why conntrack's answer is not trusted; empty if it is."""
        self._crowded = False
        """Whether there are more zones than MOST_ZONES."""

    @property
    def warnings(self) -> list[str]:
        """Warnings for `status`."""
        return [self._distrust] if self._distrust else []

    def gone(self, unanswered: np.ndarray, idle: np.ndarray, flows: int) -> np.ndarray:
        """The keys of those flows that conntrack does not have; none while its answer is not trusted.

        ``unanswered`` and ``idle`` are keys; ``flows`` is the number of all flows. An unanswered flow may
        never have had a conntrack entry, if a later hook dropped its packet; an idle flow has had one. So the
        answer is not trusted if most idle flows are missing although conntrack has at least ``flows``
        entries: theirs may be in a zone that is not searched. For the same reason it is not trusted while
        there are more than MOST_ZONES zones.
        """
        asked = np.concatenate([unanswered, idle])
        missing = self._missing([conntrack.Tuple.of(key) for key in asked])
        idle_ones = sum(position >= len(unanswered) for position in missing)
        if self._distrust:
            if self._is_clear(idle_ones, len(idle), flows):
                self._distrust = ""
                _log.info("conntrack finds the connections of flows again: its answer is trusted")
        else:
            self._doubt(self._why(len(missing), idle_ones, len(idle), flows), len(missing), len(asked))
        return asked[:0] if self._distrust else asked[missing]

    def forget(self, keys: Sequence[np.ndarray]) -> None:
        """Deletes these flows' entries from conntrack."""
        conntrack.delete([conntrack.Tuple.of(key) for key in keys], [0, *self._zones])

    def tell(self, keys: np.ndarray, state: str, timeout: int) -> None:
        """Sets the TCP state of these flows' entries in conntrack, and their timeout in seconds."""
        originals = [conntrack.Tuple.of(key) for key in keys]
        conntrack.set_tcp_state(originals, state, timeout, [0, *self._zones])

    def _missing(self, originals: list[conntrack.Tuple]) -> list[int]:
        missing = conntrack.missing(originals, [0, *self._zones]) if originals else []
        if not missing and not self._distrust:
            return missing
        seen = conntrack.zones(_SAMPLE)
        self._crowded = len(seen) > MOST_ZONES
        fresh = [zone for zone in seen if zone not in self._zones]
        # The newest first: the list loses the zones that were seen longest ago.
        self._zones = [*fresh, *self._zones][:MOST_ZONES]
        tried = fresh[:MOST_ZONES]
        if not missing or not tried:
            return missing
        still = conntrack.missing([originals[position] for position in missing], tried)
        return [missing[position] for position in still]

    def _why(self, missing: int, idle_ones: int, idle: int, flows: int) -> str:
        """The reason why missing flows may still have an entry; empty if conntrack's answer is trusted."""
        if missing and self._crowded:
            return f"it has connections in more than {MOST_ZONES} zones"
        if idle_ones >= MANY and 2 * idle_ones > idle and conntrack.fill()[0] >= flows:
            return "it has entries enough for all of them"
        return ""

    def _is_clear(self, idle_ones: int, idle: int, flows: int) -> bool:
        return not self._crowded and (not flows or 0 < idle >= 2 * idle_ones)

    def _doubt(self, why: str, missing: int, asked: int) -> None:
        if why:
            self._distrust = (
                f"conntrack does not find {missing} of {asked} connections, and its answer is not trusted: "
                f"flows without an entry stay counted until they are idle ({why})"
            )
            _log.warning(self._distrust)
