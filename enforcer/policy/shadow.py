"""Policies that never apply: their expression is empty, or earlier policies match all of their traffic.

The search looks for a connection that a rule of the policy matches and no earlier rule does. Where an earlier
rule matches the example, the search removes what that rule covers and continues with the remainder. Every
reported policy is certainly shadowed; a policy whose proof would take a very long search is not reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from enforcer.constants import DNS_PORT
from enforcer.policy import sets
from enforcer.policy.expression import Network, TextIn
from enforcer.policy.facts import Connection, Facts
from enforcer.policy.language import NO_LISTS, Lists, expression_of
from enforcer.policy.predicate import (
    FALSE,
    TRUE,
    AllOf,
    AnyOf,
    Literal,
    Predicate,
    is_single,
    is_true,
    sorted_parts,
)
from enforcer.policy.reference import PolicyLike, in_order
from enforcer.policy.rules import Rule, intersection, rules_of
from enforcer.policy.sets import AddressSet
from enforcer.policy.tables import MatchTables, compile_tables

_STEPS = 200  # example connections per policy
_CANDIDATES = 16  # earlier rules tried for one example connection
_OTHER = "\0"  # a value that no policy names
_PREDICATES = ("source_region", "destination_region", "client", "host")


@dataclass(frozen=True)
class ShadowedPolicy:
    """A policy that never applies."""

    name: str
    by: tuple[str, ...]
    """Names of the earlier policies that match all of its traffic; empty if no connection can match it."""
    reason: str


def scope_of_policies(protocols: Iterable[int], private: Iterable[Network]) -> Rule:
    """Return the traffic that policies decide: proxied protocols, without DNS and private networks."""
    return Rule(
        destination=sets.complement_addresses(sets.addresses(private)),
        ports=sets.complement_ports(((DNS_PORT, DNS_PORT),)),
        protocols=sets.protocols(protocols),
    )


def shadowed(
    policies: Iterable[PolicyLike],
    lists: Lists = NO_LISTS,
    scope: Rule | None = None,
    tables: MatchTables | None = None,
) -> list[ShadowedPolicy]:
    """Return the enabled policies that never apply; ExpressionError, TooManyRulesError.

    ``scope`` is the traffic that policies decide (None: all). ``tables`` are the policies' match tables, if
    the caller has compiled them.
    """
    ordered = in_order(policies)
    search = _Search(
        tables or compile_tables(ordered, lists), [rule for one in ordered for rule in _rules(one, lists)]
    )
    found = []
    first = 0
    for policy in ordered:
        rules = _rules(policy, lists)
        inside = [part for rule in rules for part in _within(rule, scope)]
        if policy.enabled and not rules:
            found.append(ShadowedPolicy(policy.name, (), "no connection can match it"))
        elif policy.enabled and not inside:
            reason = "all of its traffic is shared, whatever policies say"
            found.append(ShadowedPolicy(policy.name, (), reason))
        elif policy.enabled:
            by = search.covering_policies(inside, first)
            if by is not None:
                names = tuple(ordered[index].name for index in by)
                reason = "others match all of its traffic first" if by else "no connection can match it"
                found.append(ShadowedPolicy(policy.name, names, reason))
        first += len(rules)
    return found


def _rules(policy: PolicyLike, lists: Lists) -> tuple[Rule, ...]:
    return rules_of(expression_of(policy, lists)) if policy.enabled else ()


def _within(rule: Rule, scope: Rule | None) -> list[Rule]:
    return [rule] if scope is None else intersection(rule, scope)


class _Search:
    def __init__(self, tables: MatchTables, rules: list[Rule]):
        self.tables = tables
        self.rules = rules

    def covering_policies(self, rules: list[Rule], before: int) -> list[int] | None:
        """Return the indexes of the policies whose rules below ``before`` cover ``rules``, or None."""
        left = list(rules)
        found: dict[int, None] = {}
        for _ in range(_STEPS):
            if not left:
                return sorted(found)
            rule = left.pop()
            if not _families(rule):
                continue  # longer prefixes exclude every address of the shorter ones
            cut = self._cut(rule, before)
            if cut is None:
                return None
            number, remainder = cut
            found[self.tables.rules[number]] = None
            left += remainder
        return None

    def _cut(self, rule: Rule, before: int) -> tuple[int, list[Rule]] | None:
        """Return the number of an earlier rule that overlaps ``rule``, and ``rule`` without it, or None."""
        connection = _example(rule)
        if connection is None:
            return None
        matching = self.tables.matching(connection) & ((1 << before) - 1)
        for _ in range(_CANDIDATES):
            if not matching:
                return None
            number = (matching & -matching).bit_length() - 1
            matching &= matching - 1
            remainder = _without(rule, self.rules[number])
            if remainder is not None:
                return number, remainder
        return None


def _without(rule: Rule, other: Rule) -> list[Rule] | None:
    """Subtract ``other`` from ``rule``; None if rules cannot express the difference."""
    remainder: list[Rule] = []
    rest = rule
    for name in _PREDICATES:
        mine, theirs = getattr(rule, name), getattr(other, name)
        if implies(mine, theirs):
            continue
        split = _split_values(mine, theirs)
        if split is None:
            return None
        remainder.append(_changed(rest, name, split[0]))
        rest = _changed(rest, name, split[1])
    complements: dict[str, Any] = {
        "source": sets.complement_addresses(other.source),
        "destination": sets.complement_addresses(other.destination),
        "source_ports": sets.complement_ports(other.source_ports),
        "ports": sets.complement_ports(other.ports),
        "protocols": sets.ALL_PROTOCOLS ^ other.protocols,
    }
    for name, outside in complements.items():
        remainder += intersection(rest, Rule(**{name: outside}))
        inside = intersection(rest, Rule(**{name: getattr(other, name)}))
        if not inside:
            break
        (rest,) = inside
    return remainder


def _changed(rule: Rule, name: str, value: Any) -> Rule:
    return rule._replace(**{name: value})


def _split_values(mine: Predicate, theirs: Predicate) -> tuple[Predicate, Predicate] | None:
    """Split `in A` by `in B`: into `in A minus B` and `in A and B`."""
    match mine, theirs:
        case Literal(TextIn(field, values, "any"), False), Literal(TextIn(other, taken, "any"), False):
            if field == other and is_single(field) and values & taken and values - taken:
                return Literal(TextIn(field, values - taken)), Literal(TextIn(field, values & taken))
    return None


def implies(one: Predicate, two: Predicate) -> bool:
    """Return whether ``two`` is true wherever ``one`` is; False also if the forms do not show it."""
    if two == TRUE or one in (FALSE, two):
        return True
    if isinstance(two, AllOf):
        return all(implies(one, part) for part in two.parts)
    if isinstance(one, AnyOf):
        return all(implies(part, two) for part in one.parts)
    if isinstance(two, AnyOf) and any(implies(one, part) for part in two.parts):
        return True
    if isinstance(one, AllOf):
        return any(implies(part, two) for part in one.parts)
    return isinstance(two, Literal) and _literal_implies(one, two)


def _literal_implies(one: Predicate, two: Literal) -> bool:
    match one, two:
        case Literal(TextIn(field, values, "any"), negated), Literal(TextIn(other, more, "any"), not_in):
            if field != other:
                return False
            if negated:
                return not_in and more <= values
            return values <= more if not not_in else is_single(field) and not values & more
    return False


def _example(rule: Rule) -> Connection | None:
    """Return a connection that the rule matches; None if no facts are found for its predicates."""
    families = _families(rule)
    facts = [_facts(getattr(rule, name)) for name in _PREDICATES]
    if not families or None in facts:
        return None
    source, destination = _address(rule.source, families[0]), _address(rule.destination, families[0])
    source_region, destination_region, client, host = (one or {} for one in facts)
    return Connection(
        source,  # type: ignore[arg-type]
        destination,  # type: ignore[arg-type]
        rule.source_ports[0][0],
        rule.ports[0][0],
        (rule.protocols & -rule.protocols).bit_length() - 1,
        source_region,
        destination_region,
        client,
        (host,),
    )


def _families(rule: Rule) -> list[int]:
    sides = rule.source, rule.destination
    return [family for family in (4, 6) if all(_address(side, family) for side in sides)]


def _address(entries: AddressSet, family: int) -> IPv4Address | IPv6Address | None:
    """Return an address of the set; None if the set has none of this family."""
    kind = IPv4Address if family == 4 else IPv6Address
    members = {prefix[1]: member for prefix, member in entries if prefix[0] == family}
    for first, member in members.items():
        if member:
            return kind(first)
    for prefix, member in entries:
        if prefix[0] == family and member:
            for first in _gaps(entries, prefix):
                return kind(first)
    return None


def _gaps(entries: AddressSet, outer: sets.Prefix) -> Iterator[int]:
    """Yield an address of a prefix behind the longer prefixes inside it, if there is one."""
    width = 32 if outer[0] == 4 else 128
    free, last = outer[1], outer[1] + (1 << (width - outer[2])) - 1
    for prefix, _ in entries:
        if prefix != outer and sets.covers(outer, prefix) and prefix[1] <= free:
            free = max(free, prefix[1] + (1 << (width - prefix[2])))
    if free <= last:
        yield free


def _facts(predicate: Predicate) -> Facts | None:
    """Return facts that make the predicate true; None if the simple choice of values does not."""
    facts: dict[str, tuple[str, ...]] = {}
    _choose_values(predicate, facts)
    return facts if is_true(predicate, facts) else None


def _choose_values(predicate: Predicate, facts: dict[str, tuple[str, ...]]) -> None:
    match predicate:
        case Literal(TextIn(field, values), negated):
            value = _OTHER if negated else min(values, default=_OTHER)
            before = facts.get(field, ())
            facts[field] = (value,) if is_single(field) and not negated else (*before, value)
            if is_single(field) and negated and before:
                facts[field] = before
        case AllOf(parts):
            for part in sorted_parts(parts):
                _choose_values(part, facts)
        case AnyOf(parts):
            for part in sorted_parts(parts)[:1]:
                _choose_values(part, facts)
