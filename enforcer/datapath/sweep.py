"""Finds flows that are idle beyond their timeout and has the BPF program `reap` delete them.

User space only proposes flows: `reap` checks again, deletes the flow and decrements the counters.
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

# Seconds. conntrack confirms a connection when its first packet has left, microseconds after the program
# creates the flow.
_SETTLED = 2.0
_QUIET = 5.0
_FORGET_AFTER = 600.0


@dataclass(frozen=True)
class Sweep:
    """The results of one sweep."""

    flows: int
    reaped: int
    unanswered: np.ndarray
    """Keys of young unanswered flows, which conntrack may never have confirmed."""
    idle: np.ndarray
    """A sample of the keys of silent flows, whose conntrack entries may have been deleted."""
    outlived: np.ndarray
    """Keys of expired flows that conntrack would keep for longer, as established: picked up midway and never
    answered, or of a state that conntrack does not know."""
    untold: Mapping[int, np.ndarray]
    """By state, the keys of connections in a state that conntrack does not know: after a reset whose sequence
    number only the fast path could check, or traffic after one."""
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
    """Reaps idle flows; returns those to look up in conntrack, and those whose state conntrack must get.

    ``timeouts`` are nanoseconds by state. Unanswered flows are returned once: those created after
    ``asked_since`` (seconds of CLOCK_MONOTONIC). Silent flows are returned as a random ``sample``, so that
    each is looked up eventually. ``look`` is called with all flows, chunk by chunk.
    """
    began = time.monotonic()
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    total = reaped = 0
    no_keys = np.empty(0, dtype=maps.flows.key)
    unanswered, idle, outlived = [no_keys], [no_keys], [no_keys]
    untold = {State.ESTABLISHED: [no_keys], State.CLOSE: [no_keys]}
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
    """All keys, or a random sample of ``number`` of them."""
    return keys if len(keys) <= number else np.random.default_rng().choice(keys, number, replace=False)


def reap(pins: Pins, keys: np.ndarray, *, unknown: bool = False) -> int:
    """Deletes the flows that are idle beyond their timeout; returns how many.

    ``unknown``: conntrack does not know them, so those unanswered or silent for a second are deleted.
    """
    return run_on(pins, "reap", keys, REAP_UNKNOWN if unknown else 0)


def told(pins: Pins, keys: np.ndarray, state: int) -> int:
    """Records that conntrack has this state of the flows; returns how many are still in it."""
    return run_on(pins, "told", keys, state)


def flows_of(flows: Map, slots: set[int]) -> np.ndarray:
    """The keys of the flows of these slots."""
    found = [keys[np.isin(values["slot"], list(slots))] for keys, values in flows.chunks()]
    return np.concatenate(found) if found else np.zeros(0, dtype=flows.key)


def end_flows(flows: Map, pins: Pins, slots: set[int]) -> int:
    """Deletes the flows of these slots in any state; returns how many."""
    return run_on(pins, "reap", flows_of(flows, slots), REAP_EVERY)


def keep_evictable(pins: Pins, most: int) -> None:
    """Removes flows that must not be evicted from the eviction queue (bpf/eviction.h).

    The queue has up to ``most`` elements. The cost depends on the elements added since the last call.
    """
    for taken in range(0, most + 1, KEPT_AT_ONCE):
        if run_once(pins, "keep_evictable", mark=not taken) < KEPT_AT_ONCE:
            break


def forget_origins(origins: Map, pins: Pins) -> int:
    """Deletes origins without a live flow, after ten minutes or at once if the map is half full.

    Returns the number of remaining origins.
    """
    keys, rows = origins.items()
    unused = keys[(rows["active"] == 0) & _is_old(rows, origins)]
    return len(keys) - run_on(pins, "forget", unused)


def forget_clients(client_prefixes: Map, pins: Pins) -> int:
    """Deletes client prefixes without a live flow by the same rule; returns the number of remaining ones."""
    keys, rows = client_prefixes.items()
    unused = keys[(rows["flows"] == 0) & (rows["unanswered"] == 0) & _is_old(rows, client_prefixes)]
    return len(keys) - run_on(pins, "forget_clients", unused)


def _is_old(rows: np.ndarray, table: Map) -> np.ndarray:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    patience = 0 if len(rows) > table.info.entries / 2 else _FORGET_AFTER * 1e9
    return np.asarray(now - rows["used"].astype(np.int64) > patience)
