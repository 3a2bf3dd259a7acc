"""How full the tables are that traffic fills, and what has happened to them."""

from __future__ import annotations

from typing import NamedTuple

from enforcer.constants.bpf import Event
from enforcer.datapath.maps import Map, Maps

_NEARLY = 0.95


class Fill(NamedTuple):
    """One table: how many elements it has, and how many fit."""

    used: int
    size: int

    @property
    def full(self) -> bool:
        """Whether new elements need room that others must make, or soon will."""
        return self.used >= _NEARLY * self.size


def fill(table: Map) -> Fill:
    """By counting: the kernel tells no map's number of elements."""
    return Fill(sum(len(keys) for keys, _ in table.chunks()), int(table.info.entries))


def evicted(maps: Maps) -> int:
    """Flows that have made room for others."""
    return _event(maps, Event.EVICTED_FLOWS)


def corrected(maps: Maps) -> int:
    """By how much counters had drifted from the flows that they count (enforcer/datapath/recount.py)."""
    return _event(maps, Event.CORRECTED_ORIGINS) + _event(maps, Event.CORRECTED_CLIENTS)


def _event(maps: Maps, number: Event) -> int:
    found = maps.events.get(number)
    return 0 if found is None else int(found)
