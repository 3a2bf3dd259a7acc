"""The fast path's switch: what was learnt is good for a while, and while its generation is the present one."""

from __future__ import annotations

import secrets
import time

import numpy as np

from enforcer.datapath.maps import Maps

LIFETIME = 4.0
"""Seconds that what was learnt is good for. Then a packet of the flow goes the kernel's way again: conntrack's
timers, the route and the neighbour are refreshed by it."""

_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h
_GENERATIONS = 0xFFFF


def is_on(maps: Maps) -> bool:
    """Whether anything is learnt and replayed just now."""
    row = maps.fast.get(0)
    return row is not None and int(row["generation"]) != 0


def switch(maps: Maps, *, on: bool) -> None:
    """Switches the fast path on or off; either makes all that was learnt stale at once."""
    row = maps.fast.get(0)
    last = 0 if row is None else max(int(row["last"]), int(row["generation"]))
    last = last % _GENERATIONS + 1
    values = np.zeros((), dtype=maps.fast.value)
    values["generation"] = last if on else 0
    values["last"] = last
    values["seed"] = secrets.randbits(64) if row is None or not row["seed"] else row["seed"]
    # The clock that is as coarse as the tick tells how long a jiffy is.
    values["lifetime"] = round(LIFETIME / time.clock_getres(_CLOCK_MONOTONIC_COARSE))
    maps.fast.put(0, values)


def relearn(maps: Maps) -> None:
    """Makes all that was learnt stale; a fast path that is off stays off."""
    if is_on(maps):
        switch(maps, on=True)
