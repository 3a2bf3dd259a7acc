"""Policy banks: two sets of match tables in the kernel, of which one is in force.

The other bank gets new inner maps, then one write of the map `settings` switches the banks. The program
reads the bank's number once per packet, so a packet never sees a mixture. While a bank is in force, rule sets
for new clients and hosts are added to it; existing sets never change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Network
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from enforcer.address import IPNetwork, mapped, words
from enforcer.constants import MAPPED_NETWORK
from enforcer.constants.bpf import RULES, BankBits
from enforcer.datapath import settings, syscall
from enforcer.datapath.maps import Map, Maps
from enforcer.errors import KernelError
from enforcer.policy.resolver import Bits

if TYPE_CHECKING:  # the language, and with it the parser, is not needed here
    from enforcer.policy.tables import MatchTables

NUMBERS = 1 << 20
"""Number of profile numbers and of name set numbers; 0 means that nothing is known."""

ROOM = 4096
"""Rule sets that can be added to a bank before it has to be rebuilt."""

_BANKS = 2
# By the dimensions' names in the match tables.
_USES = {
    "source": BankBits.USES_SOURCE,
    "source_ports": BankBits.USES_SOURCE_PORT,
    "ports": BankBits.USES_PORT,
    "protocols": BankBits.USES_PROTOCOL,
    "source_region": BankBits.USES_SOURCE_REGION,
    "destination_region": BankBits.USES_DESTINATION_REGION,
    "client": BankBits.USES_CLIENT,
    "host": BankBits.USES_HOST,
}
_U32 = np.dtype("<u4")
_PACKET = (
    "source_prefixes",
    "destination_prefixes",
    "source_port_sets",
    "port_sets",
    "protocol_sets",
    "rules",
)
_KNOWN = ("region_sets", "profile_sets", "name_sets", "rule_sets")


class FullTableError(KernelError):
    """A policy table is full."""


class Action(NamedTuple):
    """The action of a policy's rules: policy id, and (IPv4, IPv6) primary and fallback slots."""

    policy: int
    slot: tuple[int, int]
    fallback: tuple[int, int]


class RegionTable(NamedTuple):
    """Prefixes and their regions, as columns: ``length`` (u32), ``address`` (16 u8), ``region`` (u32)."""

    length: np.ndarray
    address: np.ndarray
    region: np.ndarray


NO_REGIONS = RegionTable(np.zeros(0, _U32), np.zeros((0, 16), np.uint8), np.zeros(0, _U32))


class Bank:
    """A filled bank, to which rule sets can be added.

    Rule sets are identified by digest. Several processes may add to a bank, each within a transaction of the
    store.
    """

    def __init__(self, maps: Maps, number: int):
        self.number = number
        self._maps = maps
        self._sets = maps.inner("rule_sets", number)
        self._profiles = maps.inner("profile_sets", number)
        self._names = maps.inner("name_sets", number)
        self._known: dict[bytes, int] = {}
        self._read = 0

    @property
    def is_in_force(self) -> bool:
        """Whether the programs decide by exactly these tables."""
        inner = self._maps.rule_sets.get(self.number)
        if inner is None or settings.read(self._maps).bank_number != self.number:
            return False
        return int(inner) == self._sets.info.id

    @property
    def _taken(self) -> int:
        return _count(self._maps, self.number)

    @property
    def room(self) -> int:
        """Number of rule sets that can still be added."""
        return self._sets.info.entries - self._taken

    def put_profiles(self, numbers: Sequence[int], rules: Sequence[Bits]) -> None:
        """Sets the rules that match the clients of each profile. Raises FullTableError."""
        self._put(self._profiles, numbers, rules)

    def put_names(self, numbers: Sequence[int], rules: Sequence[Bits]) -> None:
        """Sets the rules that match each name set. Raises FullTableError."""
        self._put(self._names, numbers, rules)

    def _put(self, table: Map, numbers: Sequence[int], rules: Sequence[Bits]) -> None:
        if len(numbers) and table.info.entries > 1:  # one entry: no rule uses this dimension
            sets = np.array(self.numbers_of(rules), dtype=_U32)
            table.put_many(np.array(numbers, dtype=_U32), sets)

    def numbers_of(self, rules: Sequence[Bits]) -> list[int]:
        """The numbers of rule sets; missing ones are added. Raises FullTableError."""
        self._catch_up()
        digests = {bits: _digest(bits.to_bytes(RULES // 8, "little")) for bits in dict.fromkeys(rules)}
        new = [bits for bits, digest in digests.items() if digest not in self._known]
        if new:
            first = self._taken
            room = self._sets.info.entries - first
            if len(new) > room:
                self._maps.sets_taken.put(_BANKS + self.number, len(new))
                raise FullTableError(
                    f"{len(new):,} more sets of rules are needed, {room:,} have room in the policy tables",
                    "The daemon rebuilds them with more room; try again then (see its log).",
                )
            keys = np.arange(first, first + len(new), dtype=_U32)
            self._sets.put_many(keys, rule_sets(new, self._sets.value))
            self._known.update(zip((digests[bits] for bits in new), keys.tolist(), strict=True))
            self._read = first + len(new)
            self._maps.sets_taken.put(self.number, self._read)
        return [self._known[digests[bits]] for bits in rules]

    def _catch_up(self) -> None:
        """Reads the digests of sets that other processes have added."""
        taken = self._taken
        if taken == self._read:
            return
        for keys, values in self._sets.chunks():
            for key, members in zip(keys.tolist(), values["words"], strict=True):
                if self._read <= key < taken:
                    self._known.setdefault(_digest(members.tobytes()), key)
        self._read = taken


def _digest(members: bytes) -> bytes:
    return hashlib.blake2b(members, digest_size=16).digest()


def _count(maps: Maps, index: int) -> int:
    found = maps.sets_taken.get(index)
    return int(found) if found is not None else 0


def wanted_room(maps: Maps) -> int:
    """Number of rule sets that the bank in force had no room for."""
    return _count(maps, _BANKS + settings.read(maps).bank_number)


def is_crowded(maps: Maps) -> bool:
    """Whether the bank in force should be rebuilt with more room."""
    return wanted_room(maps) > 0 or Bank(maps, settings.read(maps).bank_number).room < ROOM // 4


def word(bank: int, tables: MatchTables) -> int:
    """The value of ``settings.bank`` that puts a bank in force."""
    return bank | sum(_USES[name] for name in tables.uses)


def write(
    maps: Maps,
    bank: int,
    tables: MatchTables,
    actions: Sequence[Action],
    private: Iterable[IPNetwork],
    *,
    regions: RegionTable | int = NO_REGIONS,
    region_rules: Sequence[tuple[Bits, Bits]] = (),
    room: int = ROOM,
) -> Bank:
    """Fills ``bank`` (0 or 1), which must not be in force. ``actions`` is indexed by policy.

    ``regions`` is a table, or the number of the bank whose table is reused. ``region_rules`` are the rules by
    source and by destination of each region from number 1 on. ``room`` is the number of rule sets to reserve
    for profiles and name sets.
    """
    types = {name: maps.layout(f"{name}_inner") for name in (*_PACKET, *_KNOWN)}
    prefix = types["source_prefixes"][0]
    known = {bits: number for number, bits in enumerate(tables.sets)}
    resolvers = tables.resolvers
    by_region = [(resolvers["source_region"].unknown, resolvers["destination_region"].unknown), *region_rules]
    no_session, no_names = resolvers["client"].unknown, resolvers["host"].unknown
    for bits in (*(bits for pair in by_region for bits in pair), no_session, no_names):
        known.setdefault(bits, len(known))

    source = np.zeros(len(tables.source), dtype=prefix)
    _fill_prefixes(source, [network for network, _ in tables.source])
    source_sets = np.array([number for _, number in tables.source], dtype=_U32)

    merged = with_private(tables.destination, private)
    destination = np.zeros(len(merged), dtype=prefix)
    _fill_prefixes(destination, [network for network, _, _ in merged])
    destination_values = np.zeros(len(merged), dtype=types["destination_prefixes"][1])
    destination_values["set"] = [number for _, number, _ in merged]
    destination_values["private_network"] = [flag for _, _, flag in merged]

    actions_array = np.zeros(max(len(tables.rules), 1), dtype=types["rules"][1])
    for rule, index in enumerate(tables.rules):
        action = actions[index]
        actions_array[rule] = (action.policy, action.slot, action.fallback)

    region_sets = np.zeros(len(by_region), dtype=types["region_sets"][1])
    region_sets["source"] = [known[bits] for bits, _ in by_region]
    region_sets["destination"] = [known[bits] for _, bits in by_region]

    contents: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "source_prefixes": (source, source_sets),
        "destination_prefixes": (destination, destination_values),
        "source_port_sets": _indexed(_by_port(tables.source_ports)),
        "port_sets": _indexed(_by_port(tables.ports)),
        "protocol_sets": _indexed(np.array(tables.protocols, dtype=_U32)),
        "rules": _indexed(actions_array),
        "region_sets": _indexed(region_sets),
        "rule_sets": _indexed(rule_sets(list(known), types["rule_sets"][1])),
        "profile_sets": _indexed(np.array([known[no_session]], dtype=_U32)),
        "name_sets": _indexed(np.array([known[no_names]], dtype=_U32)),
    }
    entries = {
        "rule_sets": len(known) + room,
        "profile_sets": NUMBERS if "client" in tables.uses else 1,
        "name_sets": NUMBERS if "host" in tables.uses else 1,
    }
    made = {"regions": _regions(maps, regions)}
    for name, (keys, values) in contents.items():
        made[name] = _inner(name, *types[name], entries.get(name, max(len(keys), 1)))
        Map(made[name], *types[name], name).put_many(keys, values)
    _install(maps, bank, made)
    maps.sets_taken.put(bank, len(known))
    maps.sets_taken.put(_BANKS + bank, 0)
    return Bank(maps, bank)


def _regions(maps: Maps, regions: RegionTable | int) -> int:
    """The file descriptor of a region table: a new one, or that of a bank."""
    if isinstance(regions, int):
        there = maps.inner("regions", regions)
        return os.dup(there.fd)
    key, value = maps.layout("regions_inner")
    keys = np.zeros(len(regions.length), dtype=key)
    keys["length"] = regions.length
    keys["address"] = np.ascontiguousarray(regions.address).view(_U32).reshape(-1, 4)
    fd = _inner("regions", key, value, max(len(keys), 1))
    Map(fd, key, value, "regions").put_many(keys, regions.region)
    return fd


def _inner(name: str, key: np.dtype, value: np.dtype, entries: int) -> int:
    kind, flags = syscall.ARRAY, syscall.F_INNER_MAP
    if name == "regions" or name.endswith("_prefixes"):
        kind, flags = syscall.LPM_TRIE, syscall.F_NO_PREALLOC
    try:
        return syscall.create_map(kind, key.itemsize, value.itemsize, entries, flags)
    except OSError as error:
        raise syscall.explain_error(
            error, f"making the policy table {name} of {entries:,} entries"
        ) from error


def _install(maps: Maps, bank: int, made: dict[str, int]) -> None:
    """Puts the inner maps into the bank and pins them for processes that add to them or read them.

    Each replacement waits for RCU (map_update_elem of a map of maps), some 10 ms: threads wait together.
    """
    for name in made:
        getattr(maps, name)  # opened before the threads start
    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(lambda name: getattr(maps, name).put(bank, made[name]), made))
    for name, fd in made.items():
        maps.pin_inner(name, bank, fd)
        os.close(fd)


def _by_port(table: Iterable[tuple[int, int, int]]) -> np.ndarray:
    ports = np.zeros(65536, dtype=_U32)
    for first, last, number in table:
        ports[first : last + 1] = number
    return ports


def _indexed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(values), dtype=_U32), values


def _fill_prefixes(keys: np.ndarray, networks: list[IPv6Network]) -> None:
    keys["length"] = [network.prefixlen for network in networks]
    packed = b"".join(network.network_address.packed for network in networks)
    keys["address"] = np.frombuffer(packed, dtype=_U32).reshape(-1, 4)


def rule_sets(sets: Sequence[Bits], value: np.dtype) -> np.ndarray:
    """Bit sets as ``struct rule_set``: 64-bit words, and a summary bit for each word that is not zero."""
    packed = b"".join(bits.to_bytes(RULES // 8, "little") for bits in sets)
    result = np.zeros(len(sets), dtype=value)
    result["words"] = np.frombuffer(packed, dtype="<u8").reshape(len(sets), RULES // 64)
    used = np.packbits(result["words"] != 0, axis=1, bitorder="little")
    result["summary"] = used.view("<u8")
    return result


def with_private(
    destination: Sequence[tuple[IPv6Network, int]], private: Iterable[IPNetwork]
) -> list[tuple[IPv6Network, int, int]]:
    """(prefix, set, 1 within a private network), so that one longest-prefix match answers both."""
    sets = dict(destination)
    flagged = {mapped(network) for network in private}
    result: list[tuple[IPv6Network, int, int]] = []
    above: list[tuple[IPv6Network, int, int]] = []
    # Sorted by address, then by length, a prefix follows all prefixes that contain it.
    for network in sorted({*sets, *flagged}, key=lambda one: (int(one.network_address), one.prefixlen)):
        while above and not network.subnet_of(above[-1][0]):
            above.pop()
        inherited_set, inherited_flag = (above[-1][1], above[-1][2]) if above else (0, 0)
        if network == MAPPED_NETWORK:
            inherited_flag = 0  # no IPv6 network contains IPv4 addresses, however short its prefix
        entry = (network, sets.get(network, inherited_set), int(network in flagged or inherited_flag))
        above.append(entry)
        result.append(entry)
    return result


def prefix_of(network: IPNetwork, prefix: np.dtype) -> np.ndarray:
    """The key of an LPM trie."""
    wide = mapped(network)
    key = np.zeros((), dtype=prefix)
    key["length"] = wide.prefixlen
    key["address"] = words(wide.network_address)
    return key
