"""What lives on when the maps are replaced by others of another layout or size: flows and their counts."""

from __future__ import annotations

import time

import numpy as np

from enforcer.datapath import counts
from enforcer.datapath.counts import Counts
from enforcer.datapath.maps import Map, Maps

# Maps whose content is carried over as it is; the rest is written at every start.
_CARRIED = ("clients", "policy_hits", "reasons", "events")


def carry_over(old: Maps, new: Maps) -> None:
    """Copies live flows and counts into maps of another layout or size, field by field by name."""
    for name in _CARRIED:
        if name in old:
            source, target = getattr(old, name), getattr(new, name)
            for keys, values in source.chunks():
                target.put_many(_converted(keys, target.key), _converted(values, target.value))
    _carry_flows(old, new)
    zero = np.zeros((), dtype=new.settings.value)
    settings = old.settings.get(0)
    if settings is not None:
        new.settings.put(0, _converted(settings.reshape(1), zero.dtype)[0])


def _carry_flows(old: Maps, new: Maps) -> None:
    """Flows, and the counters that these flows add up to: both change while they are read."""
    by_origin: list[Counts] = []
    by_client: list[Counts] = []
    slots: dict[bytes, int] = {}
    for old_keys, old_values in old.flows.chunks():
        keys, values = _converted(old_keys, new.flows.key), _converted(old_values, new.flows.value)
        keys, values = keys[values["deleting"] == 0], values[values["deleting"] == 0]
        new.flows.put_many(keys, values)
        origins = counts.of_origins(keys, values, new.origins.key)
        by_origin.append(origins)
        by_client.append(counts.of_clients(keys, values, new.client_prefixes.key))
        of_flows = counts.origin_keys(keys, values, new.origins.key)
        slots.update(zip((key.tobytes() for key in of_flows), values["slot"].tolist(), strict=True))
    write_counts(
        new,
        counts.merged(by_origin, new.origins.key, 1),
        counts.merged(by_client, new.client_prefixes.key, 2),
        slots,
    )
    _carry_origins(old.origins, new.origins)


def write_counts(maps: Maps, origins: Counts, clients: Counts, slots: dict[bytes, int]) -> None:
    """The counters of flows that user space has entered; ``slots`` of the origins, by their keys."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    rows = np.zeros(len(origins.keys), dtype=maps.origins.value)
    rows["active"] = rows["peak"] = rows["total"] = origins.numbers[:, 0]
    rows["slot"] = [slots[key.tobytes()] for key in origins.keys]
    rows["used"] = now
    maps.origins.put_many(origins.keys, rows)
    rows = np.zeros(len(clients.keys), dtype=maps.client_prefixes.value)
    rows["flows"] = rows["total"] = clients.numbers[:, 0]
    rows["unanswered"] = clients.numbers[:, 1]
    rows["used"] = now
    # Of clients for which there is no room nothing is counted (bpf/client.h, count_client).
    fit = int(maps.client_prefixes.info.entries)
    maps.client_prefixes.put_many(clients.keys[:fit], rows[:fit])


def _carry_origins(old: Map, new: Map) -> None:
    """What else was counted for each origin; how many flows are live has been written."""
    live = {key.tobytes(): int(row["active"]) for key, row in zip(*new.items(), strict=True)}
    for keys, values in old.chunks():
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
