"""Match tables: one look-up in each dimension gives a set of rules, and the AND of the sets the first match.

A look-up returns a class number; the class is the set of rules that match in this dimension. There are few
distinct classes, so the kernel holds each set once, and the trie's values stay small. Regions, clients and
hosts have predicates here, for which :mod:`enforcer.policy.resolver` finds the classes.
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
from enforcer.policy.reference import PolicyLike, in_order
from enforcer.policy.resolver import Bits, Resolver
from enforcer.policy.rules import MAX_RULES, Rule, TooManyRulesError, rules_of
from enforcer.policy.sets import ROOT4, ROOT6, AddressSet, PortSet, Prefix, ProtocolSet, covers

T = TypeVar("T")

MAX_PREFIXES = 1 << 20
"""Limit for one trie: about 100 MiB in the kernel."""

MAX_SETS = 1 << 16
"""Limit for distinct sets of rules, 2 KiB each in the kernel."""

Groups = tuple[tuple[Predicate, Bits], ...]
"""Distinct predicates of one dimension, each with the rules that use it."""

_MAPPED = int(MAPPED_NETWORK.network_address)  # ::ffff:0:0/96 holds IPv4 in the kernel's maps


@dataclass(frozen=True)
class MatchTables:
    """The contents of the kernel's tables; class 0 is the empty set of rules."""

    rules: tuple[int, ...]
    """Rule → index of its policy among all policies, disabled ones included, in ascending precedence."""
    sets: tuple[Bits, ...]
    """Class → rules."""
    source: tuple[tuple[IPv6Network, int], ...]
    """Prefix → class, for longest-prefix match; ::/0 and ::ffff:0:0/96 (all of IPv4) are always present."""
    destination: tuple[tuple[IPv6Network, int], ...]
    """As ``source``."""
    source_ports: tuple[tuple[int, int, int], ...]
    """First port, last port, class: sorted, without gaps from 0 to 65535."""
    ports: tuple[tuple[int, int, int], ...]
    """As ``source_ports``, for destination ports."""
    protocols: tuple[int, ...]
    """Class by protocol number: 256 entries."""

    groups: dict[Dimension, Groups]

    @property
    def uses(self) -> frozenset[str]:
        """The dimensions (fields of :class:`Rule`) that some rule restricts, without ``destination``."""
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
        """Resolvers of the dimensions that have predicates."""
        return {name: Resolver(groups) for name, groups in self.groups.items()}

    def decide(self, connection: Connection) -> int | None:
        """Look a connection up as the kernel does; return the policy's index as in ``rules``, or None."""
        found = self.matching(connection)
        return self.rules[(found & -found).bit_length() - 1] if found else None

    def matching(self, connection: Connection) -> Bits:
        """Return all rules that match a connection."""
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
        """Return the rules whose address sets match."""
        source, destination = self._tries
        return self.sets[source.find(src)] & self.sets[destination.find(dst)]

    def by_ports(self, src_port: int, dst_port: int) -> Bits:
        """Return the rules whose port sets match."""
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


def compile_tables(policies: Iterable[PolicyLike], lists: Lists = NO_LISTS) -> MatchTables:
    """Compile all enabled policies to match tables; ExpressionError, TooManyRulesError."""
    rules: list[Rule] = []
    owners: list[int] = []
    needs: list[tuple[int, str]] = []
    ordered: list[PolicyLike] = in_order(policies)
    for index, policy in enumerate(ordered):
        if policy.enabled:
            found = rules_of(expression_of(policy, lists))
            rules += found
            owners += [index] * len(found)
            needs.append((len(found), policy.name))
    if len(rules) > MAX_RULES:
        largest = ", ".join(f"{name} {count:,}" for count, name in sorted(needs, reverse=True)[:3])
        raise TooManyRulesError(f"{len(rules):,} rules, {MAX_RULES:,} at most; most are needed by: {largest}")
    classes = {0: 0}
    tables = MatchTables(
        rules=tuple(owners),
        source=_address_table(_grouped(rule.source for rule in rules), classes),
        destination=_address_table(_grouped(rule.destination for rule in rules), classes),
        source_ports=_port_table(_grouped(rule.source_ports for rule in rules), classes),
        ports=_port_table(_grouped(rule.ports for rule in rules), classes),
        protocols=_protocol_table(_grouped(rule.protocols for rule in rules), classes),
        groups={
            "source_region": tuple(_grouped(rule.source_region for rule in rules).items()),
            "destination_region": tuple(_grouped(rule.destination_region for rule in rules).items()),
            "client": tuple(_grouped(rule.client for rule in rules).items()),
            "host": tuple(_grouped(rule.host for rule in rules).items()),
        },
        sets=tuple(classes),
    )
    prefixes = max(len(tables.source), len(tables.destination))
    if prefixes > MAX_PREFIXES:
        raise TooManyRulesError(_too_large(f"{prefixes:,} prefixes", MAX_PREFIXES, rules, owners, ordered))
    if len(classes) > MAX_SETS:
        raise TooManyRulesError(
            _too_large(f"{len(classes):,} sets of rules", MAX_SETS, rules, owners, ordered)
        )
    return tables


def _too_large(what: str, most: int, rules: list[Rule], owners: list[int], ordered: list[PolicyLike]) -> str:
    """Return the message for a table limit, with the policies that have the most prefixes and ranges."""
    pieces: dict[int, int] = {}
    for rule, index in zip(rules, owners, strict=True):
        size = len(rule.source) + len(rule.destination) + len(rule.source_ports) + len(rule.ports)
        pieces[index] = pieces.get(index, 0) + size
    largest = sorted(pieces, key=lambda index: -pieces[index])[:3]
    names = ", ".join(f"{ordered[index].name} ({pieces[index]:,} prefixes and ranges)" for index in largest)
    return f"{what} in the match tables, {most:,} at most; most are of: {names}"


def _grouped(values: Iterable[T]) -> dict[T, Bits]:
    """Return the rules of each distinct value."""
    groups: dict[T, Bits] = {}
    for rule, value in enumerate(values):
        groups[value] = groups.get(value, 0) | 1 << rule
    return groups


def _class(bits: Bits, classes: dict[Bits, int]) -> int:
    return classes.setdefault(bits, len(classes))


def _address_table(
    groups: dict[AddressSet, Bits], classes: dict[Bits, int]
) -> tuple[tuple[IPv6Network, int], ...]:
    """Return the class of each prefix; a prefix inherits the rules that no entry of it changes."""
    members: dict[Prefix, Bits] = {}
    excluded: dict[Prefix, Bits] = {}
    for entries, rules in groups.items():
        for prefix, member in entries:
            named = members if member else excluded
            named[prefix] = named.get(prefix, 0) | rules
    table = []
    above: list[tuple[Prefix, Bits]] = []
    for prefix in sorted(members.keys() | excluded.keys() | {ROOT4, ROOT6}):
        while above and not covers(above[-1][0], prefix):
            above.pop()
        inherited = above[-1][1] if above else 0
        bits = (inherited & ~excluded.get(prefix, 0)) | members.get(prefix, 0)
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
