"""Carries the contents of former maps over into new ones, after a change of layout or size or a loss.

Flows come from the former map, or from conntrack if it is lost (enforcer/datapath/adopt.py). The live
counts of origins and clients are computed from the flows, not copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from enforcer.datapath import counts
from enforcer.datapath.counts import Counts
from enforcer.datapath.maps import Map, Maps
from enforcer.errors import LayoutError, LostPinError

# Maps that are copied. All others except flows and counts are written before the programs are attached.
_COPIED = ("clients", "policy_hits", "reasons", "events")
Rows = tuple[np.ndarray, np.ndarray]


def carry_over(old: Maps | None, new: Maps, adopted: Callable[[], Rows]) -> None:
    """Copies the maps of ``old`` field by field. ``adopted`` provides the flows if ``old`` has none."""
    for name in _COPIED:
        target = getattr(new, name)
        for keys, values in _chunks(_find(old, name)):
            target.put_many(_converted(keys, target.key), _converted(values, target.value))
    flows = _find(old, "flows")
    _enter([adopted()] if flows is None else flows.chunks(), new)
    _carry_origins(_chunks(_find(old, "origins")), new.origins)


def catch_up(old: Maps, new: Maps) -> int:
    """Copies flows that the former programs opened while programs were replaced; returns how many.

    The new maps are in use: a count that a program changes at the same moment may be wrong until the next
    sweeps correct it (enforcer/datapath/recount.py).
    """
    flows = _find(old, "flows")
    if flows is None:
        return 0
    keys, values = flows.items()
    keys = _converted(keys, new.flows.key)
    missing = ~np.isin(counts.hashed(keys), counts.hashed(new.flows.items()[0]))
    _enter([(keys[missing], values[missing])], new)
    return int(missing.sum())


def _find(old: Maps | None, name: str) -> Map | None:
    """A map; None if its pin is lost or an earlier version lacks the map."""
    if old is None:
        return None
    try:
        found: Map = getattr(old, name)
    except (LostPinError, LayoutError):
        return None
    return found


def _chunks(table: Map | None) -> Iterable[Rows]:
    return () if table is None else table.chunks()


def _enter(flows: Iterable[Rows], new: Maps) -> None:
    """Writes flows, which change while they are read, and counts them for their origins and clients."""
    by_origin: list[Counts] = []
    by_client: list[Counts] = []
    slots: dict[bytes, int] = {}
    for old_keys, old_values in flows:
        keys, values = _converted(old_keys, new.flows.key), _converted(old_values, new.flows.value)
        keys, values = keys[values["deleting"] == 0], values[values["deleting"] == 0]
        new.flows.put_many(keys, values)
        by_origin.append(counts.of_origins(keys, values, new.origins.key))
        by_client.append(counts.of_clients(keys, values, new.client_prefixes.key))
        origins = counts.origin_keys(keys, values, new.origins.key)
        slots.update(zip((key.tobytes() for key in origins), values["slot"].tolist(), strict=True))
    _add_origins(new.origins, counts.merged(by_origin, new.origins.key, 1), slots)
    _add_clients(new.client_prefixes, counts.merged(by_client, new.client_prefixes.key, 2))


def _add_origins(origins: Map, counted: Counts, slots: Mapping[bytes, int]) -> None:
    rows = _rows(origins, counted.keys)
    flows = counted.numbers[:, 0]
    rows["active"] += flows.astype(rows["active"].dtype)
    rows["total"] += flows.astype(rows["total"].dtype)
    rows["peak"] = np.maximum(rows["peak"], rows["active"])
    rows["slot"] = [slots[key.tobytes()] for key in counted.keys]
    origins.put_many(counted.keys, rows)


def _add_clients(client_prefixes: Map, counted: Counts) -> None:
    # Clients for which the map has no room are not counted (bpf/client.h, count_client).
    fit = int(client_prefixes.info.entries)
    keys, numbers = counted.keys[:fit], counted.numbers[:fit]
    rows = _rows(client_prefixes, keys)
    for name, column in (("flows", 0), ("total", 0), ("unanswered", 1)):
        rows[name] += numbers[:, column].astype(rows[name].dtype)
    client_prefixes.put_many(keys, rows)


def _rows(table: Map, keys: np.ndarray) -> np.ndarray:
    """The present values of these keys, or zeros; ``used`` is set to now."""
    there = {key.tobytes(): row for key, row in zip(*table.items(), strict=True)}
    rows = np.zeros(len(keys), dtype=table.value)
    for position, key in enumerate(keys):
        if key.tobytes() in there:
            rows[position] = there[key.tobytes()]
    rows["used"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return rows


def _carry_origins(old: Iterable[Rows], new: Map) -> None:
    """Copies the other counters of each origin; ``active`` has been written already."""
    live = {key.tobytes(): int(row["active"]) for key, row in zip(*new.items(), strict=True)}
    for keys, values in old:
        carried, rows = _converted(keys, new.key), _converted(values, new.value)
        rows["active"] = [live.get(key.tobytes(), 0) for key in carried]
        rows["deleting"] = 0
        new.put_many(carried, rows)


def _converted(array: np.ndarray, to: np.dtype) -> np.ndarray:
    if array.dtype == to or to.names is None:
        return array.astype(to)
    result = np.zeros(array.shape, dtype=to)
    for name in set(to.names) & set(array.dtype.names or ()):
        if name != "lock":
            result[name] = array[name]
    return result
