"""Counters against the flows that they count: what stays different is corrected.

Admission and release are exact, so there should be nothing to correct. A counter that has drifted all the
same would deny an origin its connections, or void a limit, for ever.

Flows are opened and closed while they are read, so a difference is not yet an error. Of a counter that was
`a` before the reading and `b` after it, while `n` flows were admitted, `m = a + n - b` were released; and
if `c` live flows were read, then between `c - n` and `c + m` were alive before. What lies outside these
bounds is an error, whatever happened meanwhile. It is corrected when two sweeps in sequence prove it, since
a flow is counted a moment before it is created.
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
"""By how much counters are too high (or, negative, too low), by their key."""


class Look(NamedTuple):
    """Counters at one moment."""

    keys: np.ndarray
    numbers: np.ndarray
    """A row for each key, a column for each counter."""
    admitted: np.ndarray
    """How many flows were ever admitted."""


def look(table: Map, *names: str) -> Look:
    """The counters of these names in a map whose values have a ``total``."""
    keys, rows = table.items()
    numbers = np.stack([rows[name].astype(np.int64) for name in names], axis=1)
    return Look(keys, numbers, rows["total"].astype(np.int64))


def proven(before: Look, after: Look, counted: Counts) -> Errors:
    """The errors that no flow which came or went meanwhile explains."""
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
    """The part of errors that two sweeps have both proven."""
    found = {key: tuple(map(_common, one[key], other[key])) for key in one.keys() & other.keys()}
    return {key: errors for key, errors in found.items() if any(errors)}


def _common(one: int, other: int) -> int:
    if one > 0 and other > 0:
        return min(one, other)
    return max(one, other) if one < 0 and other < 0 else 0


class Recount:
    """A comparison with each sweep: :meth:`begin`, :meth:`add` for all flows, :meth:`finish`."""

    def __init__(self) -> None:
        self._origins: Errors = {}
        self._clients: Errors = {}

    def begin(self, maps: Maps) -> None:
        """Before the flows are read."""
        self._kinds = maps.origins.key, maps.client_prefixes.key
        self._before = _looks(maps)
        self._by_origin: list[Counts] = []
        self._by_client: list[Counts] = []

    def add(self, keys: np.ndarray, flows: np.ndarray) -> None:
        """Some of the flows."""
        origin, client = self._kinds
        self._by_origin.append(counts.of_origins(keys, flows, origin))
        self._by_client.append(counts.of_clients(keys, flows, client))

    def finish(self, maps: Maps, pins: Pins) -> int:
        """All flows have been read; returns how many counters were corrected."""
        origin, client = self._kinds
        after = _looks(maps)
        origins = proven(self._before[0], after[0], counts.merged(self._by_origin, origin, 1))
        clients = proven(self._before[1], after[1], counts.merged(self._by_client, client, 2))
        wrong, wrong_clients = lasting(self._origins, origins), lasting(self._clients, clients)
        run_on(pins, "recount", _corrections(wrong, [("key", origin), ("slot", "<u4"), ("by", "<i4")]))
        fields = [("key", client), ("flows", "<i4"), ("unanswered", "<i4")]
        run_on(pins, "recount_clients", _corrections(wrong_clients, fields))
        # What was corrected is right now; the next sweep finds what is left.
        self._origins = {key: errors for key, errors in origins.items() if key not in wrong}
        self._clients = {key: errors for key, errors in clients.items() if key not in wrong_clients}
        return len(wrong) + len(wrong_clients)


def _looks(maps: Maps) -> tuple[Look, Look]:
    return look(maps.origins, "active"), look(maps.client_prefixes, "flows", "unanswered")


def _corrections(errors: Errors, fields: list[tuple[str, Any]]) -> np.ndarray:
    """What `recount` and `recount_clients` of bpf/sweep.h take: a key, and differences in the last fields."""
    rows = np.zeros(len(errors), dtype=fields)
    rows["key"] = np.frombuffer(b"".join(errors), dtype=fields[0][1])
    for position, values in enumerate(errors.values()):
        for (name, _), value in zip(fields[-len(values) :], values, strict=True):
            rows[position][name] = -value
    return rows
