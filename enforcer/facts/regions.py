"""Reads countries and continents from a MaxMind DB file (format 2.0; GeoLite2 or GeoIP2, Country or City).

The country is the location of an address (``country.iso_code``), not its registration: the reader ignores
``registered_country``, and an address without ``country`` has no country.

A file may alias IPv6 ranges to its IPv4 tree (::ffff:0:0/96, 2002::/16 of 6to4, 2001::/32 of Teredo). The
reader treats an IPv4-mapped address as the IPv4 address, as the maps do, and ignores the other aliases: the
sender chooses the IPv4 address in such an address. Apart from that, look-ups give maxminddb's results.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import maxminddb
import numpy as np

from enforcer.constants import MAPPED_NETWORK
from enforcer.errors import EnforcerError, UntrustedError
from enforcer.facts.records import UNKNOWN_REGION, BrokenRecordError, Records, Region
from enforcer.instance import trust

Wanted = Callable[[str | None, str | None], bool]

MAX_BYTES = 1 << 30
_SAMPLE = 1000  # records that the check at opening reads
_SAMPLE_STEPS = 200_000
_COPY = 16 << 20
_MIXED = -1  # the records below this node have several regions
_SEPARATOR = 16  # bytes between the search tree and the records
_MAPPED = int(MAPPED_NETWORK.network_address)  # ::ffff:0:0/96 holds IPv4 in the maps

# What maxminddb raises for a broken file, besides its own error.
_UNREADABLE = (ValueError, TypeError, LookupError, OverflowError, OSError, MemoryError)


class DatabaseError(EnforcerError):
    """The file has no usable countries or continents."""

    exit_code = 2


class RegionPrefixes(NamedTuple):
    """Prefixes for the maps' longest-prefix match, each with the number of its region.

    Number 0: the prefix has no region, but lies in one that has.
    """

    length: np.ndarray
    """u32; IPv4 counts from 96."""
    address: np.ndarray
    """u8, 16 a prefix, in network order; IPv4 as ::ffff:a.b.c.d."""
    number: np.ndarray
    """u32: ``regions[number - 1]``."""
    regions: list[Region]


class _Addresses:
    """128-bit numbers, as two arrays of 64 bits."""

    def __init__(self, high: np.ndarray, low: np.ndarray):
        self.high, self.low = high, low

    @classmethod
    def one(cls, low: int) -> _Addresses:
        return cls(np.zeros(1, np.uint64), np.array([low], np.uint64))

    def __getitem__(self, index: Any) -> _Addresses:
        return _Addresses(self.high[index], self.low[index])

    def children(self, depth: int) -> _Addresses:
        """Return left and right child of each node at ``depth``, in turn."""
        high, low = np.repeat(self.high, 2), np.repeat(self.low, 2)
        if depth < 64:
            high[1::2] |= np.uint64(1 << (63 - depth))
        else:
            low[1::2] |= np.uint64(1 << (127 - depth))
        return _Addresses(high, low)

    def packed(self) -> np.ndarray:
        words = np.stack([self.high, self.low], axis=1).astype(">u8")
        return words.view(np.uint8).reshape(-1, 16)


@dataclass
class _Tree:
    """One family's part of the search tree; ``top`` is its first record.

    ``levels`` holds the two records of every node, level by level, in the order of addresses.
    """

    top: int
    depth: int
    base: int
    levels: list[np.ndarray] = field(default_factory=list)


class Database:
    """An open file, copied into memory first: later writes to the file do not affect it.

    A file that changes during the copy is an error: replace it by renaming, as geoipupdate does.
    DatabaseError for every fault of a file. ``strict`` is that of enforcer/instance/trust.py.
    """

    def __init__(self, path: Path, *, strict: bool = True):
        self.path = path
        copy, stat = _copied(path, strict)
        try:
            self._metadata = metadata = _header(path, copy)
            self._buffer = mmap.mmap(copy, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(copy)
        self._nodes: int = metadata.node_count
        self._record_size: int = metadata.record_size
        tree_size = self._nodes * self._record_size // 4
        self._last_record = self._nodes + len(self._buffer) - tree_size - 1
        # The value of a data record is the number of nodes plus the offset from the end of the tree.
        self._data = tree_size - self._nodes
        self._records = Records(self._buffer, tree_size + _SEPARATOR)
        self.ipv4_only: bool = metadata.ip_version == 4
        """The file has IPv4 prefixes only: IPv6 addresses have no region."""
        self._ipv4_top = 0
        if not self.ipv4_only:
            self._ipv4_top, _ = self._walk(0, 96)
        parts = (metadata.database_type, metadata.build_epoch, self._nodes, stat.st_size, stat.st_mtime_ns)
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        """Differs for another file or another content of it, by build time, type, size and change time."""
        try:
            self._check_kind()
        except BaseException:
            self.close()
            raise

    def _walk(self, bits: int, count: int) -> tuple[int, bool]:
        """Follow ``count`` of 128 ``bits``; return the record, and whether the path meets the IPv4 tree.

        Ends at the first record that is no node.
        """
        record, top = 0, False
        for depth in range(count):
            if record >= self._nodes:
                break
            record = self._child(record, bits >> (127 - depth) & 1)
            top = top or record == self._ipv4_top
        return record, top and self._ipv4_top < self._nodes

    def _child(self, node: int, side: int) -> int:
        size = self._record_size // 4
        pair = int.from_bytes(self._buffer[node * size : (node + 1) * size], "big")
        if self._record_size != 28:
            return pair >> (0 if side else self._record_size) & ((1 << self._record_size) - 1)
        if side:
            return pair & 0xFFFFFFF
        return (pair >> 28 & 0xF) << 24 | pair >> 32

    def _check_kind(self) -> None:
        """Check that one of the first records has a country or continent; a look-up reads the others."""
        seen: set[int] = set()
        # Record and depth; the search takes the last entry first.
        pending = [(self._ipv4_top, 96)] if self.ipv4_only else [(0, 0), (self._ipv4_top, 96)]
        for _ in range(_SAMPLE_STEPS):
            if not pending or len(seen) >= _SAMPLE:
                break
            record, depth = pending.pop()
            if record < self._nodes and depth < 128:
                pending += [(self._child(record, side), depth + 1) for side in (1, 0)]
            elif record > self._nodes and record not in seen:
                seen.add(record)
                if self._region(record) != UNKNOWN_REGION:
                    return
        raise self._without_regions()

    def _without_regions(self) -> DatabaseError:
        return DatabaseError(
            f"{self.path}: a MaxMind DB of the type {self._metadata.database_type}: its records have neither "
            "country nor continent",
            "Use GeoLite2-Country or GeoLite2-City, or GeoIP2 of the same kinds.",
        )

    def _broken(self, what: str) -> DatabaseError:
        return DatabaseError(f"{self.path}: a broken MaxMind DB file: {what}", "Download it again.")

    def close(self) -> None:
        """Release the memory."""
        self._buffer.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, address: IPv4Address | IPv6Address) -> Region:
        """Return the region of an address, as :meth:`prefixes` has it."""
        if isinstance(address, IPv6Address):
            if address.ipv4_mapped is None:
                record, aliased = self._walk(int(address), 128)
                return UNKNOWN_REGION if self.ipv4_only or aliased else self._leaf(record)
            address = address.ipv4_mapped
        record = self._ipv4_top
        for depth in range(32):
            if record >= self._nodes:
                break
            record = self._child(record, int(address) >> (31 - depth) & 1)
        return self._leaf(record)

    def _leaf(self, record: int) -> Region:
        if record < self._nodes:
            raise self._broken("its search tree is deeper than an address is long")
        return UNKNOWN_REGION if record == self._nodes else self._region(record)

    def _region(self, record: int) -> Region:
        if not self._nodes + _SEPARATOR <= record <= self._last_record:
            raise self._broken("its search tree leads out of the file")
        try:
            return self._records.region(self._data + record)
        except BrokenRecordError as error:
            raise self._broken(f"a record cannot be read: {error}") from None

    def prefixes(self, wanted: Wanted) -> RegionPrefixes:
        """Return the prefixes whose region is ``wanted``; adjacent ones of one region become one prefix.

        The walk handles the tree level by level with numpy: 500,000 prefixes take 0.2 s, and 1.7 s with
        maxminddb's iterator.
        """
        children = self._children()
        trees = [_Tree(self._ipv4_top, 96, _MAPPED)]
        if not self.ipv4_only:
            trees.append(_Tree(0, 0, 0))
        found: dict[int, Region] = {}
        for tree in trees:
            self._descend(tree, children, found)
        if all(region == UNKNOWN_REGION for region in found.values()):
            raise self._without_regions()
        del children
        regions = list(
            dict.fromkeys(region for region in found.values() if region != UNKNOWN_REGION and wanted(*region))
        )
        numbers = {region: number for number, region in enumerate(regions, 1)}
        pointers = np.array(sorted(found), np.uint32)
        resolved = np.array([numbers.get(found[pointer], 0) for pointer in sorted(found)], np.int32)
        parts = [part for tree in trees for part in self._emit(tree, pointers, resolved)]
        return _joined(parts, regions)

    def _children(self) -> np.ndarray:
        """Return both records of every node."""
        if not self._nodes:
            return np.zeros((0, 2), np.uint32)
        raw = np.frombuffer(self._buffer, np.uint8, self._nodes * self._record_size // 4)
        if self._record_size == 32:
            return raw.view(">u4").astype(np.uint32).reshape(-1, 2)
        rows = raw.reshape(self._nodes, -1)
        first = (0, 1, 2), (3, 4, 5) if self._record_size == 24 else (4, 5, 6)
        children = np.empty((self._nodes, 2), np.uint32)
        for side, columns in enumerate(first):
            record: np.ndarray = np.zeros(self._nodes, np.uint32)
            for column in columns:
                record = record << 8 | rows[:, column]
            children[:, side] = record
        if self._record_size == 28:
            children[:, 0] |= rows[:, 3].astype(np.uint32) >> 4 << 24
            children[:, 1] |= (rows[:, 3].astype(np.uint32) & 0xF) << 24
        return children

    def _descend(self, tree: _Tree, children: np.ndarray, found: dict[int, Region]) -> None:
        """Fill the tree's levels, and read each data record once."""
        records: np.ndarray = np.array([tree.top], np.uint32)
        addresses = _Addresses.one(tree.base)
        self._read_regions(records, found)
        visited = 0
        for depth in range(tree.depth, 128):
            inner = records < self._nodes
            nodes = records[inner]
            visited += len(nodes)
            if not len(nodes):
                return
            if visited > 2 * self._nodes + 128:
                raise self._broken("its search tree runs in circles")
            records = children[nodes].reshape(-1)
            if tree.depth == 0:
                if depth < 96:
                    addresses = addresses[inner].children(depth)
                records[self._aliases(records, addresses, depth + 1)] = self._nodes
            tree.levels.append(records)
            self._read_regions(records, found)
        if (records < self._nodes).any():
            raise self._broken("its search tree is deeper than an address is long")

    def _aliases(self, records: np.ndarray, addresses: _Addresses, depth: int) -> np.ndarray:
        aliases = records == self._ipv4_top if self._ipv4_top < self._nodes else np.zeros(len(records), bool)
        if depth == 96:
            aliases |= (addresses.high == 0) & (addresses.low == _MAPPED)
        return aliases

    def _read_regions(self, records: np.ndarray, found: dict[int, Region]) -> None:
        for record in np.unique(records[records > self._nodes]).tolist():
            if record not in found:
                found[record] = self._region(record)

    def _emit(
        self, tree: _Tree, pointers: np.ndarray, numbers: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield length, addresses and region numbers of the tree's prefixes."""
        levels: list[np.ndarray] = [np.array([tree.top], np.uint32), *tree.levels]
        resolved = self._resolve(levels, pointers, numbers)
        addresses = _Addresses.one(tree.base)
        indices: np.ndarray = np.zeros(1, np.intp)
        for step, (records, regions) in enumerate(zip(levels, resolved, strict=True)):
            depth = tree.depth + step
            here = regions[indices]
            placed = here > 0
            if placed.any():
                yield depth, addresses[placed].packed(), here[placed]
            mixed = here == _MIXED
            if not mixed.any():
                return
            # The records of a level's n-th node are number 2n and 2n + 1 of the next level.
            order = np.cumsum(records < self._nodes) - 1
            nodes = order[indices[mixed]]
            indices = np.stack([2 * nodes, 2 * nodes + 1], axis=1).reshape(-1)
            addresses = addresses[mixed].children(depth)

    def _resolve(
        self, levels: list[np.ndarray], pointers: np.ndarray, numbers: np.ndarray
    ) -> list[np.ndarray]:
        """Return the region number of each record on each level; 0: none, _MIXED: several below it."""
        resolved: list[np.ndarray] = []
        below: np.ndarray = np.zeros(0, np.int32)
        for records in reversed(levels):
            here = np.zeros(len(records), np.int32)
            leaves = records > self._nodes
            here[leaves] = numbers[np.searchsorted(pointers, records[leaves])]
            inner = records < self._nodes
            if inner.any():
                here[inner] = np.where(below[0::2] == below[1::2], below[0::2], _MIXED)
            resolved.append(here)
            below = here
        return resolved[::-1]


def _joined(parts: list[tuple[int, np.ndarray, np.ndarray]], regions: list[Region]) -> RegionPrefixes:
    mapped = np.frombuffer(IPv6Address(_MAPPED).packed, np.uint8).reshape(1, 16)
    lengths = [np.full(len(numbers), length, np.uint32) for length, _, numbers in parts]
    length = np.concatenate([*lengths, np.zeros(0, np.uint32)])
    address = np.concatenate([*(part[1] for part in parts), np.zeros((0, 16), np.uint8)])
    number = np.concatenate([*(part[2] for part in parts), np.zeros(0, np.int32)]).astype(np.uint32)
    if _covers_ipv4(length, address):
        length = np.append(length, np.uint32(96))
        address = np.concatenate([address, mapped])
        number = np.append(number, np.uint32(0))
    return RegionPrefixes(length, address, number, regions)


def _covers_ipv4(length: np.ndarray, address: np.ndarray) -> bool:
    """Return whether an IPv6 prefix covers ::ffff:0:0/96 (IPv4) and no entry is for IPv4 as a whole."""
    whole = (length == 96) & (address[:, 10:12] == 0xFF).all(axis=1) & (address[:, :10] == 0).all(axis=1)
    if whole.any():
        return False
    # Prefixes with a non-zero first byte cannot cover ::ffff:0:0/96.
    low = np.flatnonzero((length < 96) & (address[:, 0] == 0))
    return any(
        int.from_bytes(address[index].tobytes(), "big") >> (128 - bits) == _MAPPED >> (128 - bits)
        for index, bits in zip(low.tolist(), length[low].tolist(), strict=True)
    )


def _copied(path: Path, strict: bool) -> tuple[int, os.stat_result]:
    """Copy the file into memory, where its mapping cannot raise SIGBUS; return it with the file's status."""
    try:
        with open(trust.open_file(path, strict=strict), "rb", buffering=0) as file:  # noqa: PTH123
            stat = os.fstat(file.fileno())
            if not 0 < stat.st_size <= MAX_BYTES:
                size = "empty" if not stat.st_size else f"larger than {MAX_BYTES >> 30} GiB"
                raise DatabaseError(f"{path}: {size}; expected a MaxMind DB file (.mmdb)")
            copy = os.memfd_create("regions", os.MFD_CLOEXEC)
            try:
                while os.sendfile(copy, file.fileno(), None, _COPY):
                    pass
                after = os.fstat(file.fileno())
                if (after.st_size, after.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
                    raise DatabaseError(
                        f"{path}: changed while it was read", "Write a new file and rename it to this name."
                    )
            except BaseException:
                os.close(copy)
                raise
    except FileNotFoundError:
        raise DatabaseError(
            f"{path}: there is no such file",
            "Download GeoLite2-Country.mmdb (geoipupdate does), or name the file that you have.",
        ) from None
    except trust.NotRegularError as error:
        raise DatabaseError(f"{path}: not a file; expected a MaxMind DB file (.mmdb)") from error
    except OSError as error:
        raise DatabaseError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UntrustedError as error:
        raise DatabaseError(f"{path}: not read: {error.message}", error.hint) from error
    return copy, stat


def _header(path: Path, copy: int) -> Any:
    """Return the file's metadata, as maxminddb's Python reader decodes it."""
    try:
        with maxminddb.open_database(f"/proc/self/fd/{copy}", maxminddb.MODE_MMAP) as reader:
            metadata = reader.metadata()
        if metadata.ip_version not in (4, 6):
            raise ValueError(f"it is for IP version {metadata.ip_version}")
    except (maxminddb.InvalidDatabaseError, *_UNREADABLE) as error:
        said = str(error).replace(f"/proc/self/fd/{copy}", path.name)
        raise DatabaseError(
            f"{path}: not a MaxMind DB file, or a broken one: {said}", "Download it again (.mmdb)."
        ) from error
    return metadata
