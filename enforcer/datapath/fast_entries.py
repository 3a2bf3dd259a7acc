"""Fast-path entries: the map `fast_buckets`, read in place (mmap) while programs write into it."""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np

from enforcer.constants.bpf import IPV6_KIND
from enforcer.datapath.jiffies import TICK, jiffies
from enforcer.datapath.maps import Maps


class EntryUse(NamedTuple):
    """Traffic of a flow's fast-path entries since their creation, both directions together."""

    packets: int
    bytes: int
    valid: bool
    """Whether an entry is valid, so that packets take the fast path."""
    idle: float | None
    """Lower bound of the seconds since the last packet; None: there was none."""


def by_flow(maps: Maps) -> dict[bytes, EntryUse]:
    """The use of entries by the bytes of the flow's key; flows without entries are missing."""
    rows = _rows(maps)
    now = jiffies()
    # An expired entry forwards no packets, so the time since its expiry is a lower bound.
    idle = np.maximum(0, -_left(rows, now)) * TICK
    columns = (rows["packets"], rows["bytes"], _are_valid(maps, rows, now), idle)
    found: dict[bytes, EntryUse] = {}
    for key, packets, size, valid, since in zip(
        _keys(maps, rows), *(column.tolist() for column in columns), strict=True
    ):
        one = EntryUse(packets, size, valid, since if packets else None)
        found[key] = _sum(found[key], one) if key in found else one
    return found


def count_fast(maps: Maps) -> int:
    """The number of flows with a valid entry."""
    rows = _rows(maps)
    return len(set(_keys(maps, rows[_are_valid(maps, rows, jiffies())])))


def _sum(one: EntryUse, other: EntryUse) -> EntryUse:
    idle = [each.idle for each in (one, other) if each.idle is not None]
    return EntryUse(
        one.packets + other.packets,
        one.bytes + other.bytes,
        one.valid or other.valid,
        min(idle, default=None),
    )


def _rows(maps: Maps) -> np.ndarray:
    """A copy of the entries in use; an entry that is being rewritten may be missing."""
    table = maps.fast_buckets
    size = table.info.entries * table.info.value_size
    with mmap.mmap(table.fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        every = np.frombuffer(memory, dtype=table.value)["entry"].reshape(-1)
        used = np.flatnonzero(every["until"])
        rows = every[used]
        # A writer makes the entry invalid first and valid last.
        rows = rows[(rows["until"] == every["until"][used]) & (rows["until"] != 0)]
        del every  # a reference would prevent unmapping
    return rows


def _left(rows: np.ndarray, now: int) -> np.ndarray:
    """Jiffies until each entry expires; jiffies wrap at 32 bits."""
    return (rows["until"] - np.uint32(now)).astype(np.int32)


def _are_valid(maps: Maps, rows: np.ndarray, now: int) -> np.ndarray:
    """Mask of valid entries: as is_valid() of bpf/fast_table.h, and of the present generation."""
    fast = maps.fast_path.get(0)
    if fast is None or not fast["generation"]:
        return np.zeros(len(rows), dtype=bool)
    left = _left(rows, now)
    return (left > 0) & (left <= int(fast["lifetime"]) + 1) & (rows["generation"] == fast["generation"])


def _keys(maps: Maps, rows: np.ndarray) -> list[bytes]:
    """The flow key of each entry, as bytes."""
    keys = np.zeros(len(rows), dtype=maps.flows.key)
    for name in ("client", "origin", "client_port", "origin_port"):
        keys[name] = rows[name]
    keys["protocol"] = rows["kind"] & ~np.uint8(IPV6_KIND)
    raw, size = keys.tobytes(), keys.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
