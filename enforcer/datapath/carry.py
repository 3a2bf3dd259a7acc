"""What of a gateway's maps goes into new ones: after a change of layout or size, and after a loss.

Flows come from the maps before, or where these are lost from conntrack (enforcer/datapath/adopt.py). Origins
get the counts that the flows add up to, whatever the maps before say of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from enforcer.datapath.maps import Map, Maps
from enforcer.errors import LayoutError, LostPinError

# Maps that are copied; the rest, flows and origins aside, is written before the programs are attached.
_COPIED = ("clients", "policy_hits", "reasons")
Rows = tuple[np.ndarray, np.ndarray]


def carry_over(old: Maps | None, new: Maps, adopted: Callable[[], Rows]) -> None:
    """Copies what there is of ``old``, field by field by name. ``adopted`` gives the flows if it has none."""
    for name in _COPIED:
        target = getattr(new, name)
        for keys, values in _chunks(_find(old, name)):
            target.put_many(_converted(keys, target.key), _converted(values, target.value))
    flows = _find(old, "flows")
    _carry_flows([adopted()] if flows is None else flows.chunks(), _find(old, "origins"), new)


def _find(old: Maps | None, name: str) -> Map | None:
    """A map, unless its pin is lost."""
    if old is None:
        return None
    try:
        found: Map = getattr(old, name)
    except (LostPinError, LayoutError):
        return None
    return found


def _chunks(source: Map | None) -> Iterable[Rows]:
    return () if source is None else source.chunks()


def catch_up(old: Maps, new: Maps) -> int:
    """Copies flows that were opened on the old maps since, while programs were exchanged; returns how many.

    The new maps are in use. An origin's count that a program changes at this very moment may be one off.
    """
    flows = _find(old, "flows")
    if flows is None:
        return 0
    keys, values = flows.items()
    keys, values = _converted(keys, new.flows.key), _converted(values, new.flows.value)
    missing = ~np.isin(_raw(keys), _raw(new.flows.items()[0]))
    keys, values = keys[missing], values[missing]
    new.flows.put_many(keys, values)
    live: Counter[bytes] = Counter()
    slots: dict[bytes, int] = {}
    _count(keys, values, new, live, slots)
    for key, number in live.items():
        where = np.frombuffer(key, dtype=new.origins.key)[0]
        row = new.origins.get(where)
        if row is None:
            _put_origins(new, {key: number}, slots)
            continue
        row["active"] += number
        row["total"] += number
        row["peak"] = max(row["peak"], row["active"])
        new.origins.put(where, row)
    return len(keys)


def _raw(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view(f"V{keys.dtype.itemsize}").reshape(-1)


def _count(
    keys: np.ndarray, values: np.ndarray, new: Maps, live: Counter[bytes], slots: dict[bytes, int]
) -> None:
    """Adds these flows to the counts by origin."""
    counted = values["counted"] == 1
    origins = np.zeros(int(counted.sum()), dtype=new.origins.key)
    origins["source"] = values["source"][counted]
    for name in ("origin", "origin_port", "protocol"):
        origins[name] = keys[name][counted]
    for key, slot in zip(origins, values["slot"][counted], strict=True):
        live[key.tobytes()] += 1
        slots[key.tobytes()] = int(slot)


def _put_origins(new: Maps, live: Mapping[bytes, int], slots: Mapping[bytes, int]) -> None:
    """Enters origins that the new maps don't have."""
    keys = np.frombuffer(b"".join(live), dtype=new.origins.key)
    rows = np.zeros(len(keys), dtype=new.origins.value)
    rows["active"] = rows["peak"] = rows["total"] = list(live.values())
    rows["slot"] = [slots[key] for key in live]
    rows["used"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    new.origins.put_many(keys, rows)


def _carry_flows(flows: Iterable[Rows], origins: Map | None, new: Maps) -> None:
    """Flows, and origins with the counts that these flows add up to: both change while they are read."""
    live: Counter[bytes] = Counter()
    slots: dict[bytes, int] = {}
    for keys, values in flows:
        new.flows.put_many(_converted(keys, new.flows.key), _converted(values, new.flows.value))
        _count(keys, values, new, live, slots)
    for keys, values in _chunks(origins):
        carried, rows = _converted(keys, new.origins.key), _converted(values, new.origins.value)
        rows["active"] = [live.pop(key.tobytes(), 0) for key in carried]
        rows["dead"] = 0
        new.origins.put_many(carried, rows)
    if live:
        _put_origins(new, live, slots)


def _converted(array: np.ndarray, to: np.dtype) -> np.ndarray:
    if array.dtype == to or to.names is None:
        return array.astype(to)
    result = np.zeros(array.shape, dtype=to)
    for name in set(to.names) & set(array.dtype.names or ()):
        if name != "lock":
            result[name] = array[name]
    return result
