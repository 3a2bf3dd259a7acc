"""Usage of the tables that traffic fills, evictions, and corrected counters."""

from __future__ import annotations

from typing import NamedTuple

from enforcer.constants.bpf import Event
from enforcer.datapath.maps import Map, Maps

_NEARLY = 0.95


class Fill(NamedTuple):
    """Elements of a table, and its size."""

    used: int
    size: int

    @property
    def full(self) -> bool:
        """Whether 95 % are used: new elements require evictions, or soon will."""
        return self.used >= _NEARLY * self.size


def fill(table: Map) -> Fill:
    """Counts the elements of a map; the kernel does not report their number."""
    return Fill(sum(len(keys) for keys, _ in table.chunks()), int(table.info.entries))


def evicted(maps: Maps) -> int:
    """Number of evicted flows."""
    return _event(maps, Event.EVICTED_FLOWS)


def corrected(maps: Maps) -> int:
    """Sum of the corrections of counters (enforcer/datapath/recount.py)."""
    return _event(maps, Event.CORRECTED_ORIGINS) + _event(maps, Event.CORRECTED_CLIENTS)


def _event(maps: Maps, number: Event) -> int:
    found = maps.events.get(number)
    return 0 if found is None else int(found)
