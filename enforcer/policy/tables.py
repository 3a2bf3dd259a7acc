"""Match tables: all policies as look-ups whose bit sets, AND-ed, name the first rule that matches.

A look-up of one dimension gives a class number, and the class the set of rules that match there. Few classes
are distinct, so the kernel holds each set once, and the trie's values stay small. What no packet carries
(regions, clients, hosts) has predicates here, which :mod:`enforcer.policy.resolver` turns into classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TypeVar

from enforcer.constants import MAPPED_NETWORK
from enforcer.policy.facts import NOTHING, Connection, Dimension
from enforcer.policy.language import NO_LISTS, Lists, expression_of
from enforcer.policy.predicate import TRUE, Predicate
from enforcer.policy.reference import Rule, in_order
from enforcer.policy.resolver import Bits, Resolver
from enforcer.policy.rules import MAX_RULES, Box, TooManyRulesError, rules_of
from enforcer.policy.sets import ROOT4, ROOT6, AddressSet, PortSet, Prefix, ProtocolSet, covers

T = TypeVar("T")

MAX_PREFIXES = 1 << 20
"""Of one trie: some 100 MiB in the kernel."""

MAX_SETS = 1 << 16
"""Distinct sets of rules, 2 KiB each in the kernel."""

Groups = tuple[tuple[Predicate, Bits], ...]
"""Distinct predicates of one dimension, each with the rules that have it."""

_MAPPED = int(MAPPED_NETWORK.network_address)  # where the kernel's maps keep IPv4


@dataclass(frozen=True)
class MatchTables:
    """What the kernel looks up; class 0 is the empty set of rules."""

    rules: tuple[int, ...]
    """Rule → index of its policy among all policies (the disabled ones included) in ascending precedence."""
    sets: tuple[Bits, ...]
    """Class → rules."""
    source: tuple[tuple[IPv6Network, int], ...]
    """Prefix → class, for longest-prefix match; ::/0 and ::ffff:0:0/96 (all of IPv4) are always there."""
    destination: tuple[tuple[IPv6Network, int], ...]
    """As ``source``."""
    source_ports: tuple[tuple[int, int, int], ...]
    """First port, last port, class: in order, without gaps from 0 to 65535."""
    ports: tuple[tuple[int, int, int], ...]
    """As ``source_ports``, of the destination."""
    protocols: tuple[int, ...]
    """Protocol number → class: 256 entries."""

    groups: dict[Dimension, Groups]

    @property
    def uses(self) -> frozenset[str]:
        """The dimensions, as :class:`Box` names them, that some rule asks about."""
        used: set[str] = set()
        used |= {name for name, groups in self.groups.items() if any(one != TRUE for one, _ in groups)}
        if len({number for _, _, number in self.source_ports}) > 1:
            used.add("source_ports")
        if len({number for _, _, number in self.ports}) > 1:
            used.add("ports")
        if len(set(self.protocols)) > 1:
            used.add("protocols")
        if len({number for _, number in self.source}) > 1:
            used.add("source")
        return frozenset(used)

    @cached_property
    def _tries(self) -> tuple[_Trie, _Trie]:
        return _Trie(self.source), _Trie(self.destination)

    @cached_property
    def resolvers(self) -> dict[Dimension, Resolver]:
        """One for each dimension that no packet carries."""
        return {name: Resolver(groups) for name, groups in self.groups.items()}

    def decide(self, connection: Connection) -> int | None:
        """Walk the tables as the kernel does; the index of the policy as in ``rules``, None for no match."""
        found = self.matching(connection)
        return self.rules[(found & -found).bit_length() - 1] if found else None

    def matching(self, connection: Connection) -> Bits:
        """All rules that match."""
        hosts = 0
        for host in connection.hosts or (NOTHING,):
            hosts |= self.resolvers["host"].rules(host)
        return (
            self.by_addresses(connection.src, connection.dst)
            & self.by_ports(connection.src_port, connection.dst_port)
            & self.sets[self.protocols[connection.protocol]]
            & self.resolvers["source_region"].rules(connection.source_region)
            & self.resolvers["destination_region"].rules(connection.destination_region)
            & self.resolvers["client"].rules(connection.client)
            & hosts
        )

    def by_addresses(self, src: IPv4Address | IPv6Address, dst: IPv4Address | IPv6Address) -> Bits:
        """Rules that match there, as far as addresses go."""
        source, destination = self._tries
        return self.sets[source.find(src)] & self.sets[destination.find(dst)]

    def by_ports(self, src_port: int, dst_port: int) -> Bits:
        """Rules that match there, as far as ports go."""
        return self.sets[_class_of(self.source_ports, src_port)] & self.sets[_class_of(self.ports, dst_port)]


def _class_of(table: Sequence[tuple[int, int, int]], port: int) -> int:
    return next(number for first, last, number in table if first <= port <= last)


class _Trie:
    def __init__(self, entries: Sequence[tuple[IPv6Network, int]]):
        self.lengths: dict[int, dict[int, int]] = {}
        for network, number in sorted(entries, key=lambda entry: -entry[0].prefixlen):
            shift = 128 - network.prefixlen
            self.lengths.setdefault(shift, {})[int(network.network_address) >> shift] = number

    def find(self, address: IPv4Address | IPv6Address) -> int:
        value = int(address) | (_MAPPED if address.version == 4 else 0)
        return next(table[value >> shift] for shift, table in self.lengths.items() if value >> shift in table)


def compile_tables(policies: Iterable[Rule], lists: Lists = NO_LISTS) -> MatchTables:
    """Compile all enabled policies; ExpressionError, TooManyRulesError."""
    boxes: list[Box] = []
    rules: list[int] = []
    needs: list[tuple[int, str]] = []
    ordered: list[Rule] = in_order(policies)
    for index, policy in enumerate(ordered):
        if policy.enabled:
            found = rules_of(expression_of(policy, lists))
            boxes += found
            rules += [index] * len(found)
            needs.append((len(found), policy.name))
    if len(boxes) > MAX_RULES:
        largest = ", ".join(f"{name} {count:,}" for count, name in sorted(needs, reverse=True)[:3])
        raise TooManyRulesError(f"{len(boxes):,} rules, {MAX_RULES:,} at most; most are needed by: {largest}")
    classes = {0: 0}
    tables = MatchTables(
        rules=tuple(rules),
        source=_address_table(_grouped(box.source for box in boxes), classes),
        destination=_address_table(_grouped(box.destination for box in boxes), classes),
        source_ports=_port_table(_grouped(box.source_ports for box in boxes), classes),
        ports=_port_table(_grouped(box.ports for box in boxes), classes),
        protocols=_protocol_table(_grouped(box.protocols for box in boxes), classes),
        groups={
            "source_region": tuple(_grouped(box.source_region for box in boxes).items()),
            "destination_region": tuple(_grouped(box.destination_region for box in boxes).items()),
            "client": tuple(_grouped(box.client for box in boxes).items()),
            "host": tuple(_grouped(box.host for box in boxes).items()),
        },
        sets=tuple(classes),
    )
    prefixes = max(len(tables.source), len(tables.destination))
    if prefixes > MAX_PREFIXES:
        raise TooManyRulesError(_too_large(f"{prefixes:,} prefixes", MAX_PREFIXES, boxes, rules, ordered))
    if len(classes) > MAX_SETS:
        raise TooManyRulesError(
            _too_large(f"{len(classes):,} sets of rules", MAX_SETS, boxes, rules, ordered)
        )
    return tables


def _too_large(what: str, most: int, boxes: list[Box], rules: list[int], ordered: list[Rule]) -> str:
    """Name the policies whose addresses and ports cut the tables into most pieces."""
    pieces: dict[int, int] = {}
    for box, index in zip(boxes, rules, strict=True):
        size = len(box.source) + len(box.destination) + len(box.source_ports) + len(box.ports)
        pieces[index] = pieces.get(index, 0) + size
    largest = sorted(pieces, key=lambda index: -pieces[index])[:3]
    names = ", ".join(f"{ordered[index].name} ({pieces[index]:,} prefixes and ranges)" for index in largest)
    return f"{what} in the match tables, {most:,} at most; most are of: {names}"


def _grouped(values: Iterable[T]) -> dict[T, Bits]:
    """Give each distinct set and the rules that have it."""
    groups: dict[T, Bits] = {}
    for rule, value in enumerate(values):
        groups[value] = groups.get(value, 0) | 1 << rule
    return groups


def _class(bits: Bits, classes: dict[Bits, int]) -> int:
    return classes.setdefault(bits, len(classes))


def _address_table(
    groups: dict[AddressSet, Bits], classes: dict[Bits, int]
) -> tuple[tuple[IPv6Network, int], ...]:
    """Resolve inheritance: a prefix has what the one above has, but for the rules that name it."""
    members: dict[Prefix, Bits] = {}
    strangers: dict[Prefix, Bits] = {}
    for entries, rules in groups.items():
        for prefix, member in entries:
            named = members if member else strangers
            named[prefix] = named.get(prefix, 0) | rules
    table = []
    above: list[tuple[Prefix, Bits]] = []
    for prefix in sorted(members.keys() | strangers.keys() | {ROOT4, ROOT6}):
        while above and not covers(above[-1][0], prefix):
            above.pop()
        inherited = above[-1][1] if above else 0
        bits = (inherited & ~strangers.get(prefix, 0)) | members.get(prefix, 0)
        if not above or bits != inherited:
            above.append((prefix, bits))
            table.append((_network(prefix), _class(bits, classes)))
    return tuple(table)


def _network(prefix: Prefix) -> IPv6Network:
    family, first, length = prefix
    return IPv6Network((first, length) if family == 6 else (_MAPPED | first, 96 + length))


def _port_table(groups: dict[PortSet, Bits], classes: dict[Bits, int]) -> tuple[tuple[int, int, int], ...]:
    toggles: dict[int, Bits] = {0: 0}
    for ranges, rules in groups.items():
        for first, last in ranges:
            toggles[first] = toggles.get(first, 0) ^ rules
            toggles[last + 1] = toggles.get(last + 1, 0) ^ rules
    toggles.pop(0x10000, None)
    starts = sorted(toggles)
    table: list[tuple[int, int, int]] = []
    bits = 0
    for start, following in zip(starts, [*starts[1:], 0x10000], strict=True):
        bits ^= toggles[start]
        number = _class(bits, classes)
        first = table.pop()[0] if table and table[-1][2] == number else start
        table.append((first, following - 1, number))
    return tuple(table)


def _protocol_table(groups: dict[ProtocolSet, Bits], classes: dict[Bits, int]) -> tuple[int, ...]:
    table = []
    for protocol in range(256):
        bits = 0
        for numbers, rules in groups.items():
            if numbers >> protocol & 1:
                bits |= rules
        table.append(_class(bits, classes))
    return tuple(table)
