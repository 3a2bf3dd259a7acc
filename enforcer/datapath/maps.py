"""Typed access to pinned maps: numpy structures, batch operations by bpf(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from enforcer.datapath import former_names, layout, syscall
from enforcer.errors import LayoutError, LostPinError

_CHUNK = 65536
# Bytes of a batch cursor: a u32 bucket number for hash maps, the last key for others.
_CURSOR = 64
_PINS_AGAIN = "A running daemon pins again within seconds, see its log; else start it: enforcer run"


def _pointer(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def lost_pin(what: str) -> LostPinError:
    """The error for a missing pin that the state file names."""
    return LostPinError(f"{what} is out of reach: its pin is lost", _PINS_AGAIN)


def no_file_system() -> LostPinError:
    """The error for maps while no bpffs is mounted."""
    return LostPinError("the maps are out of reach: no BPF file system is mounted", _PINS_AGAIN)


class Map:
    """A map by file descriptor; keys and values are numpy structures of the given types."""

    def __init__(self, fd: int, key: np.dtype, value: np.dtype, name: str = "map"):
        self.fd = fd
        self.key = key
        self.value = value
        self.name = name
        self.info = syscall.map_info(fd)
        if self.info.key_size != key.itemsize or self.info.value_size != value.itemsize:
            raise LayoutError(
                f"the pinned map {name} has keys of {self.info.key_size} and values of "
                f"{self.info.value_size} bytes; {key.itemsize} and {value.itemsize} are described",
                "Another version of the enforcer made it: `enforcer down`, then `enforcer run`.",
            )

    @cached_property
    def _copies(self) -> int:
        """Number of values per look-up: one for each possible CPU in per-CPU maps."""
        if self.info.kind != syscall.PERCPU_ARRAY:
            return 1
        last = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition("-")[2]
        return int(last) + 1

    def _element(self, key: np.ndarray, value: np.ndarray, flags: int) -> bytes:
        return struct.pack("<IIQQQ", self.fd, 0, _pointer(key), _pointer(value), flags)

    def get(self, key: Any) -> np.ndarray | None:
        """The value as a zero-dimensional array (per-CPU maps: one element per CPU), or None."""
        where = np.array(key, dtype=self.key)
        found = np.zeros(self._copies if self._copies > 1 else (), dtype=self.value)
        try:
            syscall.call(syscall.MAP_LOOKUP, self._element(where, found, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise syscall.explain_error(error, f"reading {self.name}") from error
        return found

    def put(self, key: Any, value: Any, flags: int = syscall.ANY) -> None:
        """Writes one element; NOEXIST and EXIST as in bpf(2)."""
        where, what = np.array(key, dtype=self.key), np.array(value, dtype=self.value)
        try:
            syscall.call(syscall.MAP_UPDATE, self._element(where, what, flags))
        except OSError as error:
            raise syscall.explain_error(error, f"writing {self.name}") from error

    def delete(self, key: Any) -> bool:
        """True if the key was there."""
        where = np.array(key, dtype=self.key)
        try:
            syscall.call(syscall.MAP_DELETE, struct.pack("<IIQ", self.fd, 0, _pointer(where)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise syscall.explain_error(error, f"deleting from {self.name}") from error
        return True

    def put_many(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Writes many elements in chunks of one system call each."""
        keys = np.ascontiguousarray(keys, dtype=self.key)
        values = np.ascontiguousarray(values, dtype=self.value)
        for start in range(0, len(keys), _CHUNK):
            part, what = keys[start : start + _CHUNK], values[start : start + _CHUNK]
            attributes = struct.pack(
                "<QQQQIIQQ", 0, 0, _pointer(part), _pointer(what), len(part), self.fd, syscall.ANY, 0
            )
            try:
                syscall.call(syscall.MAP_UPDATE_BATCH, attributes)
            except OSError as error:
                raise syscall.explain_error(error, f"writing {len(keys)} elements of {self.name}") from error

    def chunks(self, size: int = _CHUNK) -> Any:
        """All elements, as pairs of arrays (keys, values) of up to ``size`` elements.

        Elements written or deleted meanwhile may be included or not.
        """
        size = min(size, max(self.info.entries, 64))
        cursor = (ctypes.c_char * _CURSOR)()
        after = (ctypes.c_char * _CURSOR)()
        first = True
        while True:
            keys = np.empty(size, dtype=self.key)
            values = np.empty((size, self._copies) if self._copies > 1 else size, dtype=self.value)
            attributes = bytearray(144)
            struct.pack_into(
                "<QQQQIIQQ", attributes, 0,
                0 if first else ctypes.addressof(cursor), ctypes.addressof(after),
                _pointer(keys), _pointer(values), size, self.fd, 0, 0,
            )  # fmt: skip
            done = False
            try:
                syscall.call(syscall.MAP_LOOKUP_BATCH, attributes)
            except OSError as error:
                if error.errno == errno.ENOSPC and size < self.info.entries * 2:
                    size *= 2  # one hash bucket holds more than the whole buffer
                    continue
                if error.errno != errno.ENOENT:
                    raise syscall.explain_error(error, f"reading {self.name}") from error
                done = True
            (count,) = struct.unpack_from("<I", attributes, 32)
            if count:
                yield keys[:count], values[:count]
            if done:
                return
            cursor, after, first = after, cursor, False

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys and all values."""
        parts = list(self.chunks())
        if not parts:
            return np.empty(0, dtype=self.key), np.empty(0, dtype=self.value)
        return np.concatenate([keys for keys, _ in parts]), np.concatenate([values for _, values in parts])


class Maps:
    """A gateway's maps by name, opened when they are first used.

    Maps and fields of an earlier version have this version's names here; their pins keep the former names.
    """

    def __init__(self, directory: Path, layouts: dict[str, Any]):
        self.directory = directory
        self._layouts = former_names.described(layouts)
        self._pinned = {former_names.present(name): name for name in layouts}
        self._open: dict[str, Map] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Map:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._open:
            try:
                fd = syscall.get(str(self.pin(name)))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    if self._layouts:
                        self.layout(name)  # LayoutError: not lost, an earlier version has none
                    raise lost_pin(f"the map {name}") from error
                raise syscall.explain_error(error, f"opening the map {name}") from error
            self._open[name] = Map(fd, *self.layout(name), name)
        return self._open[name]

    def names(self) -> list[str]:
        """The maps that are pinned, without the tables of policy banks."""
        return [name for name in self._layouts if not name.endswith(former_names.INNER)]

    def tables(self) -> list[str]:
        """The maps that hold a table for each policy bank."""
        inner = former_names.INNER
        return [name.removesuffix(inner) for name in self._layouts if name.endswith(inner)]

    def pin(self, name: str, bank: int | None = None) -> Path:
        """Where a map is pinned, or one policy bank's table."""
        pinned = self._pinned.get(name, name)
        return self.directory / (pinned if bank is None else f"{pinned}_{bank}")

    def __contains__(self, name: str) -> bool:
        """Whether the programs in force have a map of this name; earlier versions may lack it."""
        return name in self._layouts

    def inner(self, name: str, bank: int) -> Map:
        """A bank's present inner map; a rebuilt bank has another one. Closed when it is garbage collected."""
        pinned = f"{name}_{bank}"
        try:
            fd = syscall.get(str(self.pin(name, bank)))
        except FileNotFoundError as error:
            raise lost_pin(f"the map {pinned}") from error
        except OSError as error:
            raise syscall.explain_error(error, f"opening the map {pinned}") from error
        opened = Map(fd, *self.layout(f"{name}_inner"), pinned)
        weakref.finalize(opened, os.close, fd)
        return opened

    def pin_inner(self, name: str, bank: int, fd: int) -> None:
        """Pins a bank's inner map in place of the former one."""
        path = self.pin(name, bank)
        path.unlink(missing_ok=True)
        try:
            syscall.pin(fd, str(path))
        except OSError as error:
            raise syscall.explain_error(error, f"pinning the map {path.name}") from error

    def layout(self, name: str) -> tuple[np.dtype, np.dtype]:
        """The key and value types of a map. Raises LayoutError if the programs in force lack it."""
        if name not in self._layouts:
            raise LayoutError(
                f"the programs in force are of an earlier version and have no map {name}",
                "The daemon upgrades them when it starts: systemctl restart enforcer",
            )
        described = self._layouts[name]
        return layout.dtype(described["key"]), layout.dtype(described["value"])

    def close(self) -> None:
        """Closes the opened maps."""
        for opened in self._open.values():
            os.close(opened.fd)
        self._open.clear()
