"""Countries and continents from a MaxMind DB file (format 2.0; GeoLite2 or GeoIP2, Country or City).

``country`` is where the database locates an address (``country.iso_code``), not where it is registered:
``registered_country`` is not looked at, and an address without ``country`` has none.

A file may alias IPv6 ranges to its IPv4 tree (::ffff:0:0/96, 2002::/16 of 6to4, 2001::/32 of Teredo). Here
an IPv4-mapped address is the IPv4 address, as in the maps, and no IPv6 address has a region by an alias: that
would be a claim which the sender wrote into its address. For the rest both families are looked up as
maxminddb does.
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
_SAMPLE = 1000  # records that are looked at for a country or continent when a file is opened
_SAMPLE_STEPS = 200_000
_COPY = 16 << 20
_MIXED = -1  # below this node there are several regions
_SEPARATOR = 16  # bytes between the search tree and the records
_MAPPED = int(MAPPED_NETWORK.network_address)  # where the maps keep IPv4

# What maxminddb raises, beside its own error, for a file that is not what it says.
_UNREADABLE = (ValueError, TypeError, LookupError, OverflowError, OSError, MemoryError)


class DatabaseError(EnforcerError):
    """A file that no regions can be taken from."""

    exit_code = 2


class RegionPrefixes(NamedTuple):
    """Prefixes as the maps' longest-prefix match has them, each with the number of its region.

    A prefix with the number 0 has no region: it stands in one that has.
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
        """Of each node at ``depth`` the left and the right child, in turn."""
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
    """One family's part of the search tree; ``top`` is the record that leads there.

    ``levels`` holds the two records of every node, level by level, in the order of addresses.
    """

    top: int
    depth: int
    base: int
    levels: list[np.ndarray] = field(default_factory=list)


class Database:
    """An open file. It is copied into memory first, so that what is open stays one and whole.

    A file that is overwritten in place is faulted while it is written: replace it by renaming, as
    geoipupdate does. DatabaseError for everything that is wrong with it. ``strict`` is that of
    enforcer/instance/trust.py.
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
        # A record that is no node is the number of nodes plus the offset from the tree's end.
        self._data = tree_size - self._nodes
        self._records = Records(self._buffer, tree_size + _SEPARATOR)
        self.ipv4_only: bool = metadata.ip_version == 4
        """The file has no IPv6 prefix: IPv6 addresses have no region."""
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
        """The record that ``count`` of 128 ``bits`` lead to, and whether the IPv4 tree's top is on the way.

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
        """See whether the first records have a country or continent; the others are read when asked for."""
        seen: set[int] = set()
        # Record and depth; the last is taken first.
        ways = [(self._ipv4_top, 96)] if self.ipv4_only else [(0, 0), (self._ipv4_top, 96)]
        for _ in range(_SAMPLE_STEPS):
            if not ways or len(seen) >= _SAMPLE:
                break
            record, depth = ways.pop()
            if record < self._nodes and depth < 128:
                ways += [(self._child(record, side), depth + 1) for side in (1, 0)]
            elif record > self._nodes and record not in seen:
                seen.add(record)
                if self._region(record) != UNKNOWN_REGION:
                    return
        raise self._of_no_use()

    def _of_no_use(self) -> DatabaseError:
        return DatabaseError(
            f"{self.path}: a MaxMind DB of the type {self._metadata.database_type}: its records have neither "
            "country nor continent",
            "Use GeoLite2-Country or GeoLite2-City, or GeoIP2 of the same kinds.",
        )

    def _broken(self, what: str) -> DatabaseError:
        return DatabaseError(f"{self.path}: a broken MaxMind DB file: {what}", "Download it again.")

    def close(self) -> None:
        """Gives the memory back."""
        self._buffer.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, address: IPv4Address | IPv6Address) -> Region:
        """Country and continent of an address, as :meth:`prefixes` has them."""
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
        """All prefixes whose region is ``wanted``; neighbours of one region are one prefix.

        Walks the tree a level at a time with numpy: 500,000 prefixes in 0.2 s, where maxminddb's own iterator
        takes 1.7 s.
        """
        children = self._children()
        trees = [_Tree(self._ipv4_top, 96, _MAPPED)]
        if not self.ipv4_only:
            trees.append(_Tree(0, 0, 0))
        found: dict[int, Region] = {}
        for tree in trees:
            self._descend(tree, children, found)
        if all(region == UNKNOWN_REGION for region in found.values()):
            raise self._of_no_use()
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
        """Both records of every node."""
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
        """Fills the tree's levels and reads each record that is new."""
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
        """Yields length, addresses and numbers of the tree's prefixes."""
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
            # A node's records on the next level stand where the nodes of this one are counted to.
            order = np.cumsum(records < self._nodes) - 1
            nodes = order[indices[mixed]]
            indices = np.stack([2 * nodes, 2 * nodes + 1], axis=1).reshape(-1)
            addresses = addresses[mixed].children(depth)

    def _resolve(
        self, levels: list[np.ndarray], pointers: np.ndarray, numbers: np.ndarray
    ) -> list[np.ndarray]:
        """Gives each record of each level the number of its region, 0 for none, _MIXED for several."""
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
    """Whether an IPv6 prefix lies over ::ffff:0:0/96, where IPv4 is, and IPv4 as a whole has no region."""
    whole = (length == 96) & (address[:, 10:12] == 0xFF).all(axis=1) & (address[:, :10] == 0).all(axis=1)
    if whole.any():
        return False
    # All others have a bit set before ::ffff:0:0 has one.
    low = np.flatnonzero((length < 96) & (address[:, 0] == 0))
    return any(
        int.from_bytes(address[index].tobytes(), "big") >> (128 - bits) == _MAPPED >> (128 - bits)
        for index, bits in zip(low.tolist(), length[low].tolist(), strict=True)
    )


def _copied(path: Path, strict: bool) -> tuple[int, os.stat_result]:
    """A copy of the file without a name, and what was known of the file; mapping it cannot raise SIGBUS."""
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
    """The file's metadata, by maxminddb's reader in Python."""
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
