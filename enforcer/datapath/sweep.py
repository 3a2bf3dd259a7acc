"""Finding flows that are idle beyond their timeout, and handing them to the program that deletes them.

User space only points at flows: the BPF program `reap` looks again, deletes and lowers the counter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from enforcer.constants.bpf import KEPT_AT_ONCE, REAP_EVERY, REAP_UNKNOWN, FlowFlag, State
from enforcer.datapath.maps import Map, Maps
from enforcer.datapath.program_runs import run_on, run_once
from enforcer.datapath.programs import Pins

# conntrack enters a connection when its first packet has left, microseconds after we do.
_SETTLED = 2.0
_QUIET = 5.0
_FORGET_AFTER = 600.0


@dataclass(frozen=True)
class Sweep:
    """What one sweep found."""

    flows: int
    reaped: int
    unanswered: np.ndarray
    """Keys of young unanswered flows: conntrack may never have taken them up."""
    idle: np.ndarray
    """Keys of some of the flows that were silent for a while: conntrack may have dropped them since."""
    outlived: np.ndarray
    """Keys of idle connections that conntrack takes for established, and would keep for longer: picked up
    midway and never answered, or of a state that it has not been told."""
    untold: Mapping[int, np.ndarray]
    """Keys of connections whose state conntrack can't know, by that state: after a reset that fits what only
    the fast path has seen, or traffic after one."""
    seconds: float


def sweep(
    maps: Maps,
    pins: Pins,
    timeouts: np.ndarray,
    asked_since: float,
    sample: int,
    *,
    look: Callable[[np.ndarray, np.ndarray], None] = lambda keys, flows: None,
) -> Sweep:
    """Reaps idle flows, and names those that conntrack should be asked about, or told of.

    ``timeouts`` are nanoseconds by state. Unanswered flows are named once: those created after
    ``asked_since`` (seconds of CLOCK_MONOTONIC). Of the silent ones a random ``sample`` is named, so that
    in time each has its turn. ``look`` is given all flows, some at a time.
    """
    began = time.monotonic()
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    total = reaped = 0
    nobody = np.empty(0, dtype=maps.flows.key)
    unanswered, idle, outlived = [nobody], [nobody], [nobody]
    untold = {State.ESTABLISHED: [nobody], State.CLOSE: [nobody]}
    limits = timeouts.astype(np.int64)
    for keys, flows in maps.flows.chunks():
        total += len(keys)
        look(keys, flows)
        silent = now - flows["last_seen"].astype(np.int64)
        expired = silent > limits[flows["timeout"]]
        tell = (flows["flags"] & FlowFlag.TELL_CONNTRACK) != 0
        for state, found in untold.items():
            found.append(keys[tell & ~expired & (flows["state"] == state)])
        if expired.any():
            reaped += reap(pins, keys[expired])
            midway = (flows["state"] == State.ESTABLISHED) & (flows["replied"] == 0)
            outlived.append(keys[expired & (midway | tell)])
        counted = ~expired & (flows["counted"] == 1)
        created = flows["created"].astype(np.int64)
        young = (created > asked_since * 1e9) & (now - created > _SETTLED * 1e9)
        unanswered.append(keys[counted & young & (flows["replied"] == 0)])
        idle.append(some(keys[counted & (silent > _QUIET * 1e9)], sample))
    asked = some(np.concatenate(idle), sample)
    return Sweep(
        total,
        reaped,
        np.concatenate(unanswered),
        asked,
        np.concatenate(outlived),
        {state: np.concatenate(found) for state, found in untold.items()},
        time.monotonic() - began,
    )


def some(keys: np.ndarray, number: int) -> np.ndarray:
    """All of the keys, or so many of them at random."""
    return keys if len(keys) <= number else np.random.default_rng().choice(keys, number, replace=False)


def reap(pins: Pins, keys: np.ndarray, *, unknown: bool = False) -> int:
    """Deletes those of these flows that are idle beyond their timeout; returns how many.

    ``unknown``: conntrack doesn't know them, so being unanswered or silent for a second is enough.
    """
    return run_on(pins, "reap", keys, REAP_UNKNOWN if unknown else 0)


def told(pins: Pins, keys: np.ndarray, state: int) -> int:
    """conntrack has been told that these flows are in this state; returns how many still are."""
    return run_on(pins, "told", keys, state)


def flows_of(flows: Map, slots: set[int]) -> np.ndarray:
    """The keys of these slots' flows."""
    found = [keys[np.isin(values["slot"], list(slots))] for keys, values in flows.chunks()]
    return np.concatenate(found) if found else np.zeros(0, dtype=flows.key)


def end_flows(flows: Map, pins: Pins, slots: set[int]) -> int:
    """Deletes the flows of these slots, whatever their state; returns how many."""
    return run_on(pins, "reap", flows_of(flows, slots), REAP_EVERY)


def keep_evictable(pins: Pins, most: int) -> None:
    """Leaves only flows that may make room in the queue where room is looked for (bpf/eviction.h).

    The queue has ``most`` elements at most. What is new in it since the last time is all that this costs.
    """
    for taken in range(0, most + 1, KEPT_AT_ONCE):
        if run_once(pins, "keep_evictable", mark=not taken) < KEPT_AT_ONCE:
            break


def forget_origins(origins: Map, pins: Pins) -> int:
    """Deletes origins without a live flow: after ten minutes, or at once if the map is half full.

    Returns how many are left.
    """
    keys, rows = origins.items()
    unused = keys[(rows["active"] == 0) & _is_old(rows, origins)]
    return len(keys) - run_on(pins, "forget", unused)


def forget_clients(client_prefixes: Map, pins: Pins) -> int:
    """Deletes client prefixes without a live flow, likewise."""
    keys, rows = client_prefixes.items()
    unused = keys[(rows["flows"] == 0) & (rows["unanswered"] == 0) & _is_old(rows, client_prefixes)]
    return len(keys) - run_on(pins, "forget_clients", unused)


def _is_old(rows: np.ndarray, table: Map) -> np.ndarray:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    patience = 0 if len(rows) > table.info.entries / 2 else _FORGET_AFTER * 1e9
    return np.asarray(now - rows["used"].astype(np.int64) > patience)
