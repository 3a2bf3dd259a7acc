"""Policies in the kernel: two banks of match tables, of which one is in force.

The bank that is not in force gets new inner maps, then one 4-byte write switches. A packet reads the
bank's number once, so it never sees half of two generations.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Network
from typing import NamedTuple

import numpy as np

from enforcer.datapath import syscall
from enforcer.datapath.address import IPNetwork, mapped, words
from enforcer.datapath.maps import Map, Maps
from enforcer.policy.tables import MatchTables

NO_SLOT = 0xFFFFFFFF
RULES = 4096
_U32 = np.dtype("<u4")
_OUTER = ("source_prefixes", "destination_prefixes", "port_sets", "protocol_sets", "rule_sets", "rules")


class Action(NamedTuple):
    """What a policy's rules lead to: its id, and per family (IPv4, IPv6) primary and fallback slot."""

    policy: int
    slot: tuple[int, int]
    fallback: tuple[int, int]


def _inner(name: str, key: np.dtype, value: np.dtype, entries: int) -> int:
    kind, flags = syscall.ARRAY, syscall.F_INNER_MAP
    if name.endswith("_prefixes"):
        kind, flags = syscall.LPM_TRIE, syscall.F_NO_PREALLOC
    return syscall.create_map(kind, key.itemsize, value.itemsize, entries, flags)


def write(
    maps: Maps, bank: int, tables: MatchTables, actions: Sequence[Action], private: Iterable[IPNetwork]
) -> None:
    """Fills ``bank`` (0 or 1), which must not be in force. ``actions`` are by the tables' policy index."""
    types = {name: maps.layout(f"{name}_inner") for name in _OUTER}
    prefix = types["source_prefixes"][0]

    source = np.zeros(len(tables.source), dtype=prefix)
    _fill_prefixes(source, [network for network, _ in tables.source])
    source_sets = np.array([number for _, number in tables.source], dtype=_U32)

    merged = with_private(tables.destination, private)
    destination = np.zeros(len(merged), dtype=prefix)
    _fill_prefixes(destination, [network for network, _, _ in merged])
    destination_values = np.zeros(len(merged), dtype=types["destination_prefixes"][1])
    destination_values["set"] = [number for _, number, _ in merged]
    destination_values["private_network"] = [flag for _, _, flag in merged]

    ports = np.zeros(65536, dtype=_U32)
    for first, last, number in tables.ports:
        ports[first : last + 1] = number
    actions_array = np.zeros(max(len(tables.rules), 1), dtype=types["rules"][1])
    for rule, index in enumerate(tables.rules):
        action = actions[index]
        actions_array[rule] = (action.policy, action.slot, action.fallback)

    contents: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "source_prefixes": (source, source_sets),
        "destination_prefixes": (destination, destination_values),
        "port_sets": _indexed(ports),
        "protocol_sets": _indexed(np.array(tables.protocols, dtype=_U32)),
        "rule_sets": _indexed(rule_sets(tables.sets, types["rule_sets"][1])),
        "rules": _indexed(actions_array),
    }
    for name, (keys, values) in contents.items():
        key, value = types[name]
        fd = _inner(name, key, value, max(len(keys), 1))
        Map(fd, key, value, name).put_many(keys, values)
        getattr(maps, name).put(bank, fd)
        os.close(fd)


def _indexed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(values), dtype=_U32), values


def _fill_prefixes(keys: np.ndarray, networks: list[IPv6Network]) -> None:
    keys["length"] = [network.prefixlen for network in networks]
    packed = b"".join(network.network_address.packed for network in networks)
    keys["address"] = np.frombuffer(packed, dtype=_U32).reshape(-1, 4)


def rule_sets(sets: Sequence[int], value: np.dtype) -> np.ndarray:
    """Bit sets as ``struct rule_set``: 64-bit words, and a summary of which are not zero."""
    packed = b"".join(bits.to_bytes(RULES // 8, "little") for bits in sets)
    result = np.zeros(len(sets), dtype=value)
    result["words"] = np.frombuffer(packed, dtype="<u8").reshape(len(sets), RULES // 64)
    used = (result["words"] != 0).astype(np.uint64)
    result["summary"] = (used << np.arange(RULES // 64, dtype=np.uint64)).sum(axis=1)
    return result


def with_private(
    destination: Sequence[tuple[IPv6Network, int]], private: Iterable[IPNetwork]
) -> list[tuple[IPv6Network, int, int]]:
    """(prefix, set, 1 if it lies in a private network), for one longest-prefix match of both."""
    sets = dict(destination)
    flagged = {mapped(network) for network in private}
    result: list[tuple[IPv6Network, int, int]] = []
    above: list[tuple[IPv6Network, int, int]] = []
    # Sorted by address, then shorter first, a prefix follows all those that contain it.
    for network in sorted({*sets, *flagged}, key=lambda one: (int(one.network_address), one.prefixlen)):
        while above and not network.subnet_of(above[-1][0]):
            above.pop()
        inherited_set, inherited_flag = (above[-1][1], above[-1][2]) if above else (0, 0)
        entry = (network, sets.get(network, inherited_set), int(network in flagged or inherited_flag))
        above.append(entry)
        result.append(entry)
    return result


def prefix_of(network: IPNetwork, prefix: np.dtype) -> np.ndarray:
    """A key of a longest-prefix-match trie."""
    wide = mapped(network)
    key = np.zeros((), dtype=prefix)
    key["length"] = wide.prefixlen
    key["address"] = words(wide.network_address)
    return key
