"""A gateway's pinned programs and maps: load, upgrade, open, take away."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enforcer.datapath import syscall
from enforcer.datapath.maps import Map, Maps

IN_FORCE = "programs"
"""A link to the load in force, for people and their tools; the state file says which it is. Programs were
pinned in a directory of this name before each load had one of its own."""
_STAGES = "stages"
_LOAD, _MAPS = "load-", "maps-"
# Maps whose content is carried over to a new layout; the rest is written before the programs are attached.
_CARRIED = ("clients", "policy_hits", "reasons")


@dataclass(frozen=True)
class Pins:
    """Where a gateway's programs and maps are pinned."""

    directory: Path
    loaded: str = IN_FORCE
    """The directory of one load: its programs and their table of tail calls, which no other load shares."""

    @property
    def programs(self) -> Path:
        """The programs of this load, by name."""
        return self.directory / self.loaded

    @property
    def links(self) -> Path:
        """The links that hold programs at interfaces (enforcer/datapath/tcx.py)."""
        return self.directory / "links"

    def maps(self, layout_digest: str) -> Path:
        """The maps of one layout, by name."""
        return self.directory / f"{_MAPS}{layout_digest[:16]}"

    def program(self, name: str) -> int:
        """A file descriptor of a pinned program."""
        try:
            return syscall.get(str(self.programs / name))
        except OSError as error:
            raise syscall.explain_error(error, f"opening the program {name}") from error

    @contextmanager
    def open(self, name: str) -> Iterator[int]:
        """The same, closed afterwards."""
        fd = self.program(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def program_ids(self) -> dict[str, int]:
        """Ids of the pinned programs by name."""
        found = {}
        for path in self.program_paths():
            fd = syscall.get(str(path))
            found[path.name] = syscall.program_info(fd)[0]
            os.close(fd)
        return found

    def program_paths(self) -> list[Path]:
        """Where each program is pinned."""
        if not self.programs.is_dir():
            return []
        return [path for path in self.programs.iterdir() if path.name != _STAGES]

    def show_in_force(self) -> None:
        """Makes the link IN_FORCE lead to this load."""
        link, new = self.directory / IN_FORCE, self.directory / f"{IN_FORCE}-new"
        if self.loaded == IN_FORCE or (link.is_dir() and not link.is_symlink()):
            return
        new.unlink(missing_ok=True)
        new.symlink_to(self.loaded)
        new.rename(link)

    def remove(self) -> bool:
        """Unpins everything; True if there was anything."""
        if not self.directory.is_dir():
            return False
        for path in self.directory.iterdir():
            _remove(path)
        self.directory.rmdir()
        return True

    def remove_maps(self, layout_digest: str) -> None:
        """Unpins the maps of a layout that is not in force: a load that was not completed has left them."""
        if self.maps(layout_digest).is_dir():
            _remove(self.maps(layout_digest))

    def remove_others(self, layout_digest: str) -> None:
        """Unpins other loads and the maps of other layouts. Not before this load is all that is attached.

        Without a pin the kernel empties a table of tail calls, whatever still calls it.
        """
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            if path not in (self.programs, self.maps(layout_digest), self.links) and not path.is_symlink():
                _remove(path)
        self.show_in_force()


def _remove(path: Path) -> None:
    """A directory of pins, or a link, which is not followed."""
    if path.is_symlink():
        path.unlink()
        return
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()


def layout_digest(definition: str, flows: int, origins: int) -> str:
    """What a set of maps is known by: equal digests mean that programs can share the maps."""
    return hashlib.sha256(f"{definition} {flows} {origins}".encode()).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the maps' layouts, and where the programs are pinned."""

    layouts: dict[str, Any]
    pins: Pins


def load(pins: Pins, digest: str, flows: int, origins: int) -> Loaded:
    """Compiles and loads the programs on the maps of this layout, and pins both.

    Nothing is attached, and nothing that is pinned is replaced: programs that are attached already keep
    running on their maps, and calling their own tails.
    """
    from enforcer.datapath import compiler  # BCC: only in a process that ends

    directory = pins.maps(digest)
    fresh = not directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    own = replace(pins, loaded=f"{_LOAD}{os.urandom(4).hex()}")
    own.programs.mkdir()
    stages = own.programs / _STAGES
    try:
        compiled = compiler.compile_programs(directory, stages, flows, origins)
        _link(stages, compiled.programs["decide"])
        for name, fd in compiled.programs.items():
            syscall.pin(fd, str(own.programs / name))
    except BaseException:
        _remove(own.programs)
        if fresh:
            _remove(directory)
        raise
    return Loaded(compiled.layouts, own)


def _link(stages: Path, program: int) -> None:
    """Makes a program the first, and only, stage that others call."""
    table = syscall.get(str(stages))
    Map(table, np.dtype("<u4"), np.dtype("<u4"), "stages").put(0, program)
    os.close(table)


def carry_over(old: Maps, new: Maps) -> None:
    """Copies live flows and counts into maps of another layout or size, field by field by name."""
    for name in _CARRIED:
        source, target = getattr(old, name), getattr(new, name)
        for keys, values in source.chunks():
            target.put_many(_converted(keys, target.key), _converted(values, target.value))
    _carry_flows(old, new)


def catch_up(old: Maps, new: Maps) -> int:
    """Copies flows that were opened on the old maps since, while programs were exchanged; returns how many.

    The new maps are in use. An origin's count that a program changes at this very moment may be one off.
    """
    keys, values = old.flows.items()
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


def _carry_flows(old: Maps, new: Maps) -> None:
    """Flows, and origins with the counts that these flows add up to: both change while they are read."""
    live: Counter[bytes] = Counter()
    slots: dict[bytes, int] = {}
    for keys, values in old.flows.chunks():
        new.flows.put_many(_converted(keys, new.flows.key), _converted(values, new.flows.value))
        _count(keys, values, new, live, slots)
    for keys, values in old.origins.chunks():
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
