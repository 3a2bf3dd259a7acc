"""Switches the fast path on and off and invalidates its entries, by the generation in the map `fast_path`."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from enforcer.datapath.jiffies import TICK
from enforcer.datapath.maps import Maps
from enforcer.errors import BusyError

LIFETIME = 4.0
"""Seconds for which an entry is valid. Then packets of the flow take the kernel's path until a new entry is
created, which refreshes conntrack's timers, the route and the neighbour."""

_GENERATIONS = 0xFFFF
# Seconds. Writing the map takes microseconds: a process that holds the lock for longer was stopped.
_PATIENCE, _PAUSE = 1.0, 0.001


def is_on(maps: Maps) -> bool:
    """Whether the fast path is on."""
    row = maps.fast_path.get(0)
    return row is not None and int(row["generation"]) != 0


def set_enabled(maps: Maps, *, on: bool) -> None:
    """Switches the fast path on or off; both invalidate all entries at once."""
    with _exclusive(maps):
        _start_generation(maps, on=on)


def invalidate(maps: Maps) -> bool:
    """Invalidates all entries; False if the fast path is off."""
    with _exclusive(maps):
        on = is_on(maps)
        if on:
            _start_generation(maps, on=True)
    return on


def _start_generation(maps: Maps, *, on: bool) -> None:
    row = maps.fast_path.get(0)
    last = 0 if row is None else max(int(row["last_generation"]), int(row["generation"]))
    last = last % _GENERATIONS + 1
    values = np.zeros((), dtype=maps.fast_path.value)
    values["generation"] = last if on else 0
    values["last_generation"] = last
    values["seed"] = secrets.randbits(64) if row is None or not row["seed"] else row["seed"]
    values["lifetime"] = round(LIFETIME / TICK)
    maps.fast_path.put(0, values)


def _locked(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _exclusive(maps: Maps) -> Iterator[None]:
    """Locks the map `fast_path`, which the daemon and an applying process may write at the same time."""
    try:
        directory = os.open(maps.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # other maps are in force; no other process opens these
        yield
        return
    deadline = time.monotonic() + _PATIENCE
    try:
        while not _locked(directory):
            if time.monotonic() > deadline:
                raise BusyError("the fast path is being switched by a process that hangs")
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(directory)
