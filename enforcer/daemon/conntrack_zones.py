"""What conntrack knows of our flows, in whatever zone, and when it is not believed.

Rules of other software may put connections into zones (`ct zone set`, iptables' CT target, Open vSwitch),
and a flow does not say in which its entry is. What is not found in the known zones is looked for in those of
a sample of conntrack's entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from enforcer.kernel import conntrack

# Entries whose zones are looked at when a flow was not found, at some 4 µs each.
_SAMPLE = 2000
# Zones that are looked in, at some 10 µs for each flow that is in none of those before.
MOST_ZONES = 16
# Fewer flows that conntrack does not know are believed to be gone, whatever their share.
MANY = 16


class ConntrackZones:
    """``say`` hears when conntrack is no longer believed, and when it is again."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._zones: list[int] = []
        self._hidden = ""
        """Why conntrack is not believed."""
        self._crowded = False
        """Whether there are more zones than are looked in."""

    @property
    def warnings(self) -> list[str]:
        """What an administrator should know."""
        return [self._hidden] if self._hidden else []

    def gone(self, unanswered: np.ndarray, idle: np.ndarray, flows: int) -> np.ndarray:
        """Those of these flows, by their keys, that conntrack does not have; none while it is not believed.

        ``unanswered`` may never have become connections: another firewall drops them behind us. Each of
        the ``idle`` has been one, so if most of them seem to be gone although conntrack has entries enough
        for all ``flows``, they may be where they are not found; so may any while there are more zones than
        are looked in.
        """
        asked = np.concatenate([unanswered, idle])
        missing = self._missing([conntrack.Tuple.of(key) for key in asked])
        idle_ones = sum(position >= len(unanswered) for position in missing)
        if self._hidden:
            if self._is_clear(idle_ones, len(idle), flows):
                self._hidden = ""
                self._say("conntrack finds the connections that it is asked about, and is believed")
        else:
            self._doubt(self._why(len(missing), idle_ones, len(idle), flows), len(missing), len(asked))
        return asked[:0] if self._hidden else asked[missing]

    def forget(self, keys: Sequence[np.ndarray]) -> None:
        """Has conntrack forget these flows."""
        conntrack.delete([conntrack.Tuple.of(key) for key in keys], [0, *self._zones])

    def tell(self, keys: np.ndarray, state: str, timeout: int) -> None:
        """Tells conntrack of these flows' state, to be forgotten after so many seconds."""
        originals = [conntrack.Tuple.of(key) for key in keys]
        conntrack.set_tcp_state(originals, state, timeout, [0, *self._zones])

    def _missing(self, originals: list[conntrack.Tuple]) -> list[int]:
        missing = conntrack.missing(originals, [0, *self._zones]) if originals else []
        if not missing and not self._hidden:
            return missing
        seen = conntrack.zones(_SAMPLE)
        self._crowded = len(seen) > MOST_ZONES
        fresh = [zone for zone in seen if zone not in self._zones]
        # The newest first: zones that are not used any more are the first to be forgotten.
        self._zones = [*fresh, *self._zones][:MOST_ZONES]
        tried = fresh[:MOST_ZONES]
        if not missing or not tried:
            return missing
        still = conntrack.missing([originals[position] for position in missing], tried)
        return [missing[position] for position in still]

    def _why(self, missing: int, idle_ones: int, idle: int, flows: int) -> str:
        """Why those that are missing are not believed to be gone; empty: they are."""
        if missing and self._crowded:
            return f"it has connections in more than {MOST_ZONES} zones"
        if idle_ones >= MANY and 2 * idle_ones > idle and conntrack.fill()[0] >= flows:
            return "it has entries enough for all of them"
        return ""

    def _is_clear(self, idle_ones: int, idle: int, flows: int) -> bool:
        return not self._crowded and (not flows or 0 < idle >= 2 * idle_ones)

    def _doubt(self, why: str, missing: int, asked: int) -> None:
        if why:
            self._hidden = (
                f"conntrack does not find {missing} of {asked} connections, and is not believed: what it may "
                f"have forgotten is counted until it is idle ({why})"
            )
            self._say(self._hidden)
