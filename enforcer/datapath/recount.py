"""Compares counters with the flows that they count and corrects lasting differences.

Admission and release are exact, so nothing should need correction. A counter that drifted nevertheless would
refuse an origin's connections, or void a limit, permanently.

Flows are opened and closed while they are read, so a difference is not yet an error. If a counter was `a`
before reading and `b` afterwards and `n` flows were admitted meanwhile, then `m = a + n - b` were released;
and if `c` live flows were read, between `c - n` and `c + m` were alive before. A counter outside these bounds
is wrong. It is corrected when two consecutive sweeps prove the error, because a flow is counted a moment
before it is created.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from enforcer.datapath import counts
from enforcer.datapath.counts import Counts
from enforcer.datapath.maps import Map, Maps
from enforcer.datapath.program_runs import run_on
from enforcer.datapath.programs import Pins

Errors = dict[bytes, tuple[int, ...]]
"""Excess of each counter (negative: deficit) by key."""


class Look(NamedTuple):
    """Counters at one moment."""

    keys: np.ndarray
    numbers: np.ndarray
    """One row per key, one column per counter."""
    admitted: np.ndarray
    """Number of flows ever admitted, by key."""


def look(table: Map, *names: str) -> Look:
    """The counters of these names, in a map whose values have a field ``total``."""
    keys, rows = table.items()
    numbers = np.stack([rows[name].astype(np.int64) for name in names], axis=1)
    return Look(keys, numbers, rows["total"].astype(np.int64))


def proven(before: Look, after: Look, counted: Counts) -> Errors:
    """The errors that flows opened or closed meanwhile cannot explain."""
    keys = np.concatenate([before.keys, after.keys, counted.keys])
    _, first, groups = np.unique(counts.hashed(keys), return_index=True, return_inverse=True)
    groups = groups.reshape(-1)
    width = counted.numbers.shape[1]
    a, b, c = (np.zeros((len(first), width), dtype=np.int64) for _ in range(3))
    admitted = np.zeros(len(first), dtype=np.int64)
    of_before, of_after, of_counted = np.split(groups, [len(before.keys), len(before.keys) + len(after.keys)])
    a[of_before], b[of_after], c[of_counted] = before.numbers, after.numbers, counted.numbers
    admitted[of_after] = after.admitted
    admitted[of_before] -= before.admitted
    came = np.maximum(admitted, 0)[:, None]
    went = np.maximum(a + came - b, 0)
    least, most = a - c - went, a - c + came
    errors = np.where(least > 0, least, np.where(most < 0, most, 0))
    wrong = np.flatnonzero(errors.any(axis=1))
    return {keys[first[one]].tobytes(): tuple(errors[one].tolist()) for one in wrong}


def lasting(one: Errors, other: Errors) -> Errors:
    """The part of the errors that both sweeps have proven."""
    found = {key: tuple(map(_common, one[key], other[key])) for key in one.keys() & other.keys()}
    return {key: errors for key, errors in found.items() if any(errors)}


def _common(one: int, other: int) -> int:
    if one > 0 and other > 0:
        return min(one, other)
    return max(one, other) if one < 0 and other < 0 else 0


class Recount:
    """The comparison during a sweep: :meth:`begin`, :meth:`add` for all flows, :meth:`finish`."""

    def __init__(self) -> None:
        self._origins: Errors = {}
        self._clients: Errors = {}

    def begin(self, maps: Maps) -> None:
        """Reads the counters before the flows are read."""
        self._kinds = maps.origins.key, maps.client_prefixes.key
        self._before = _looks(maps)
        self._by_origin: list[Counts] = []
        self._by_client: list[Counts] = []

    def add(self, keys: np.ndarray, flows: np.ndarray) -> None:
        """Counts some of the flows."""
        origin, client = self._kinds
        self._by_origin.append(counts.of_origins(keys, flows, origin))
        self._by_client.append(counts.of_clients(keys, flows, client))

    def finish(self, maps: Maps, pins: Pins) -> int:
        """Compares and corrects after all flows were read; returns the number of corrected counters."""
        origin, client = self._kinds
        after = _looks(maps)
        origins = proven(self._before[0], after[0], counts.merged(self._by_origin, origin, 1))
        clients = proven(self._before[1], after[1], counts.merged(self._by_client, client, 2))
        wrong, wrong_clients = lasting(self._origins, origins), lasting(self._clients, clients)
        run_on(pins, "recount", _corrections(wrong, [("key", origin), ("slot", "<u4"), ("by", "<i4")]))
        fields = [("key", client), ("flows", "<i4"), ("unanswered", "<i4")]
        run_on(pins, "recount_clients", _corrections(wrong_clients, fields))
        # The errors of corrected counters are dropped; the next sweep finds remaining ones.
        self._origins = {key: errors for key, errors in origins.items() if key not in wrong}
        self._clients = {key: errors for key, errors in clients.items() if key not in wrong_clients}
        return len(wrong) + len(wrong_clients)


def _looks(maps: Maps) -> tuple[Look, Look]:
    return look(maps.origins, "active"), look(maps.client_prefixes, "flows", "unanswered")


def _corrections(errors: Errors, fields: list[tuple[str, Any]]) -> np.ndarray:
    """The arguments of `recount` and `recount_clients` (bpf/sweep.h): a key, then the corrections."""
    rows = np.zeros(len(errors), dtype=fields)
    rows["key"] = np.frombuffer(b"".join(errors), dtype=fields[0][1])
    for position, values in enumerate(errors.values()):
        for (name, _), value in zip(fields[-len(values) :], values, strict=True):
            rows[position][name] = -value
    return rows
