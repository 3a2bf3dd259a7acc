"""Sets of addresses, ports and protocols, with union, intersection and complement.

An address set is a list of prefixes, each with a membership flag; the flag of the longest prefix that
contains an address decides. So the complement of a set has the same prefixes. Every set has the root of each
family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from enforcer.policy.expression import Network

Prefix = tuple[int, int, int]
"""Family (4 or 6), first address as a number, length. Sorted, a prefix comes before those inside it."""

AddressSet = tuple[tuple[Prefix, bool], ...]
"""Sorted prefixes with both roots, each with its membership, which differs from the enclosing prefix's."""

PortSet = tuple[tuple[int, int], ...]
"""Sorted ranges, ends included, that neither overlap nor adjoin."""

ProtocolSet = int
"""Bit n stands for protocol n."""

ROOT4: Prefix = (4, 0, 0)
ROOT6: Prefix = (6, 0, 0)
_WIDTH = {4: 32, 6: 128}

ALL_ADDRESSES: AddressSet = ((ROOT4, True), (ROOT6, True))
NO_ADDRESSES: AddressSet = ((ROOT4, False), (ROOT6, False))
ALL_PORTS: PortSet = ((0, 0xFFFF),)
ALL_PROTOCOLS: ProtocolSet = (1 << 256) - 1


def covers(outer: Prefix, inner: Prefix) -> bool:
    """Return whether ``outer`` contains ``inner`` or equals it."""
    family, first, length = outer
    shift = _WIDTH[family] - length
    return family == inner[0] and length <= inner[2] and inner[1] >> shift == first >> shift


def addresses(networks: Iterable[Network]) -> AddressSet:
    """Return the set of all addresses in ``networks``."""
    entries = dict(NO_ADDRESSES)
    for network in networks:
        entries[network.version, int(network.network_address), network.prefixlen] = True
    return _minimal(sorted(entries.items()))


def _minimal(entries: list[tuple[Prefix, bool]]) -> AddressSet:
    kept = []
    above: list[tuple[Prefix, bool]] = []
    for entry in entries:
        prefix, member = entry
        while above and not covers(above[-1][0], prefix):
            above.pop()
        if not above or above[-1][1] != member:
            kept.append(entry)
            above.append(entry)
    return tuple(kept)


def complement_addresses(entries: AddressSet) -> AddressSet:
    """Return the complement over both families."""
    return tuple((prefix, not member) for prefix, member in entries)


def _join(first: AddressSet, second: AddressSet, combine: Callable[[bool, bool], bool]) -> AddressSet:
    """Combine two sets along the tree of their prefixes."""
    one, two = dict(first), dict(second)
    above: list[tuple[Prefix, bool, bool]] = []
    merged = []
    for prefix in sorted(one.keys() | two.keys()):
        while above and not covers(above[-1][0], prefix):
            above.pop()
        inherited = above[-1] if above else (prefix, False, False)
        member1, member2 = one.get(prefix, inherited[1]), two.get(prefix, inherited[2])
        above.append((prefix, member1, member2))
        merged.append((prefix, combine(member1, member2)))
    return _minimal(merged)


def intersect_addresses(first: AddressSet, second: AddressSet) -> AddressSet:
    """Intersection."""
    if first in (ALL_ADDRESSES, second):
        return second
    return first if second == ALL_ADDRESSES else _join(first, second, lambda one, two: one and two)


def unite_addresses(first: AddressSet, second: AddressSet) -> AddressSet:
    """Union."""
    return first if first == second else _join(first, second, lambda one, two: one or two)


def ports(ranges: Iterable[tuple[int, int]]) -> PortSet:
    """Return the set of all ports in ``ranges``."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def complement_ports(ranges: PortSet) -> PortSet:
    """Return the complement within 0 to 65535."""
    gaps, start = [], 0
    for first, last in ranges:
        if first > start:
            gaps.append((start, first - 1))
        start = last + 1
    if start <= 0xFFFF:
        gaps.append((start, 0xFFFF))
    return tuple(gaps)


def intersect_ports(first: PortSet, second: PortSet) -> PortSet:
    """Intersection."""
    if first == ALL_PORTS:
        return second
    return complement_ports(ports(complement_ports(first) + complement_ports(second)))


def protocols(numbers: Iterable[int]) -> ProtocolSet:
    """Return the set of these protocol numbers."""
    return sum(1 << number for number in set(numbers))
