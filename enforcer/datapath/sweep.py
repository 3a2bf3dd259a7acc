"""Finding flows that are idle beyond their timeout, and handing them to the program that deletes them.

User space only points at flows: the BPF program `reap` looks again, deletes and lowers the counter.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from enforcer.datapath import syscall
from enforcer.datapath.maps import Map, Maps
from enforcer.datapath.programs import Pins

BATCH = 16
"""Keys a run of `reap` or `forget` takes (REAP_BATCH in bpf/egress.c)."""
UNKNOWN = 1
"""Mark of a run of `reap` for flows that conntrack doesn't know (REAP_UNKNOWN)."""
_KEYS_AT = 14
# conntrack enters a connection when its first packet has left, microseconds after we do.
_SETTLED = 2.0
_QUIET = 5.0
_FORGET_AFTER = 600.0
EVERY = 2
"""Mark of a run of `reap` that asks nothing (REAP_EVERY)."""
_ESTABLISHED, _CLOSE = 4, 9  # enum state of bpf/maps.h


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
    """Keys of idle connections that conntrack may keep for longer: picked up midway and never answered, or
    ended by a reset that fits what only the fast path has seen. It takes either for established."""
    seconds: float


def sweep(maps: Maps, pins: Pins, timeouts: np.ndarray, asked_since: float, sample: int) -> Sweep:
    """Reaps idle flows, and names those that conntrack should be asked about.

    ``timeouts`` are nanoseconds by state. Unanswered flows are named once: those created after
    ``asked_since`` (seconds of CLOCK_MONOTONIC). Of the silent ones a random ``sample`` is named, so that
    in time each has its turn.
    """
    began = time.monotonic()
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    total = reaped = 0
    nobody = np.empty(0, dtype=maps.flows.key)
    unanswered, idle, outlived = [nobody], [nobody], [nobody]
    limits = timeouts.astype(np.int64)
    for keys, flows in maps.flows.chunks():
        total += len(keys)
        silent = now - flows["seen"].astype(np.int64)
        expired = silent > limits[flows["timeout"]]
        if expired.any():
            reaped += reap(pins, keys[expired])
            midway = (flows["state"] == _ESTABLISHED) & (flows["replied"] == 0)
            reset = (flows["state"] == _CLOSE) & flows["fast_packets"].any(axis=1)
            outlived.append(keys[expired & (midway | reset)])
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
        time.monotonic() - began,
    )


def some(keys: np.ndarray, number: int) -> np.ndarray:
    """All of the keys, or so many of them at random."""
    return keys if len(keys) <= number else np.random.default_rng().choice(keys, number, replace=False)


def reap(pins: Pins, keys: np.ndarray, *, unknown: bool = False) -> int:
    """Deletes those of these flows that are idle beyond their timeout; returns how many.

    ``unknown``: conntrack doesn't know them, so being unanswered or silent for a second is enough.
    """
    return _run(pins, "reap", keys, UNKNOWN if unknown else 0)


def flows_of(flows: Map, slots: set[int]) -> np.ndarray:
    """The keys of these slots' flows."""
    found = [keys[np.isin(values["slot"], list(slots))] for keys, values in flows.chunks()]
    return np.concatenate(found) if found else np.zeros(0, dtype=flows.key)


def end_flows(flows: Map, pins: Pins, slots: set[int]) -> int:
    """Deletes the flows of these slots, whatever their state; returns how many."""
    return _run(pins, "reap", flows_of(flows, slots), EVERY)


def forget_origins(origins: Map, pins: Pins) -> int:
    """Deletes origins without a live flow: after ten minutes, or at once if the map is half full."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    keys, rows = origins.items()
    patience = 0 if len(keys) > origins.info.entries / 2 else _FORGET_AFTER * 1e9
    unused = (rows["active"] == 0) & (now - rows["used"].astype(np.int64) > patience)
    return _run(pins, "forget", keys[unused], 0)


def _run(pins: Pins, program: str, keys: np.ndarray, mark: int) -> int:
    fd = pins.program(program)
    try:
        done = 0
        for start in range(0, len(keys), BATCH):
            data = bytes(_KEYS_AT) + keys[start : start + BATCH].tobytes()
            done += syscall.test_run(fd, data, mark=mark)[0]
        return done
    except OSError as error:
        raise syscall.explain_error(error, f"running the program {program}") from error
    finally:
        os.close(fd)
