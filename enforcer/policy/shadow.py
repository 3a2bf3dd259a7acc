"""Policies that never apply: empty ones, and those that earlier policies hide.

A policy's rules are searched for a connection that no earlier rule matches. Where an earlier rule is in the
way, what it covers is cut off and the search goes on in what is left. What is reported is certain; a policy
that only a very long search would prove hidden is passed over.
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
from enforcer.policy.reference import Rule, in_order
from enforcer.policy.rules import Box, intersection, rules_of
from enforcer.policy.sets import AddressSet
from enforcer.policy.tables import MatchTables, compile_tables

_STEPS = 200  # connections tried for one policy
_CANDIDATES = 16  # earlier rules looked at where a connection is matched already
_OTHER = "\0"  # a value that no policy names
_PREDICATES = ("source_region", "destination_region", "client", "host")


@dataclass(frozen=True)
class Hidden:
    """A policy that never decides, and the earlier ones that decide instead; none of them: it is empty."""

    name: str
    by: tuple[str, ...]
    reason: str


def decidable(protocols: Iterable[int], private: Iterable[Network]) -> Box:
    """What policies are asked about: proxied protocols, no DNS, no private networks."""
    return Box(
        destination=sets.not_addresses(sets.addresses(private)),
        ports=sets.not_ports(((DNS_PORT, DNS_PORT),)),
        protocols=sets.protocols(protocols),
    )


def hidden(
    policies: Iterable[Rule],
    lists: Lists = NO_LISTS,
    asked: Box | None = None,
    tables: MatchTables | None = None,
) -> list[Hidden]:
    """Name the enabled policies that never apply.

    ``asked``: which connections policies are asked about; ``tables`` are those of the policies, if they are
    there already. ExpressionError, TooManyRulesError.
    """
    ordered = in_order(policies)
    search = _Search(
        tables or compile_tables(ordered, lists), [box for one in ordered for box in _boxes(one, lists)]
    )
    found = []
    rule = 0
    for policy in ordered:
        boxes = _boxes(policy, lists)
        inside = [box for one in boxes for box in _within(one, asked)]
        if policy.enabled and not boxes:
            found.append(Hidden(policy.name, (), "no connection can match it"))
        elif policy.enabled and not inside:
            found.append(Hidden(policy.name, (), "all of its traffic is shared, whatever policies say"))
        elif policy.enabled:
            by = search.hiders(inside, rule)
            if by is not None:
                names = tuple(ordered[index].name for index in by)
                reason = "others match all of its traffic first" if by else "no connection can match it"
                found.append(Hidden(policy.name, names, reason))
        rule += len(boxes)
    return found


def _boxes(policy: Rule, lists: Lists) -> tuple[Box, ...]:
    return rules_of(expression_of(policy, lists)) if policy.enabled else ()


def _within(box: Box, asked: Box | None) -> list[Box]:
    return [box] if asked is None else intersection(box, asked)


class _Search:
    def __init__(self, tables: MatchTables, boxes: list[Box]):
        self.tables = tables
        self.boxes = boxes

    def hiders(self, boxes: list[Box], before: int) -> list[int] | None:
        """The policies whose rules, all of a number below ``before``, cover the boxes; None if none do."""
        left = list(boxes)
        found: dict[int, None] = {}
        for _ in range(_STEPS):
            if not left:
                return sorted(found)
            box = left.pop()
            if not _families(box):
                continue  # longer prefixes take away all of the shorter ones
            cut = self._cut(box, before)
            if cut is None:
                return None
            rule, pieces = cut
            found[self.tables.rules[rule]] = None
            left += pieces
        return None

    def _cut(self, box: Box, before: int) -> tuple[int, list[Box]] | None:
        """An earlier rule that matches some of the box, and what it leaves of it."""
        connection = _example(box)
        if connection is None:
            return None
        matching = self.tables.matching(connection) & ((1 << before) - 1)
        for _ in range(_CANDIDATES):
            if not matching:
                return None
            rule = (matching & -matching).bit_length() - 1
            matching &= matching - 1
            pieces = _without(box, self.boxes[rule])
            if pieces is not None:
                return rule, pieces
        return None


def _without(box: Box, other: Box) -> list[Box] | None:
    """The box without another one; None if that cannot be said."""
    pieces: list[Box] = []
    rest = box
    for name in _PREDICATES:
        mine, theirs = getattr(box, name), getattr(other, name)
        if implies(mine, theirs):
            continue
        left = _values_without(mine, theirs)
        if left is None:
            return None
        pieces.append(_changed(rest, name, left[0]))
        rest = _changed(rest, name, left[1])
    complements: dict[str, Any] = {
        "source": sets.not_addresses(other.source),
        "destination": sets.not_addresses(other.destination),
        "source_ports": sets.not_ports(other.source_ports),
        "ports": sets.not_ports(other.ports),
        "protocols": sets.ALL_PROTOCOLS ^ other.protocols,
    }
    for name, outside in complements.items():
        pieces += intersection(rest, Box(**{name: outside}))
        inside = intersection(rest, Box(**{name: getattr(other, name)}))
        if not inside:
            break
        (rest,) = inside
    return pieces


def _changed(box: Box, name: str, value: Any) -> Box:
    return box._replace(**{name: value})


def _values_without(mine: Predicate, theirs: Predicate) -> tuple[Predicate, Predicate] | None:
    """Of `in A` and `in B`: `in A without B`, and `in A and B`."""
    match mine, theirs:
        case Literal(TextIn(field, values, "any"), False), Literal(TextIn(other, taken, "any"), False):
            if field == other and is_single(field) and values & taken and values - taken:
                return Literal(TextIn(field, values - taken)), Literal(TextIn(field, values & taken))
    return None


def implies(one: Predicate, two: Predicate) -> bool:
    """Whether all that one is true of, two is true of; False also if that is not plain to see."""
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


def _example(box: Box) -> Connection | None:
    """A connection in the box; None if none is found for its predicates."""
    families = _families(box)
    facts = [_facts(getattr(box, name)) for name in _PREDICATES]
    if not families or None in facts:
        return None
    source, destination = _address(box.source, families[0]), _address(box.destination, families[0])
    source_region, destination_region, client, host = (one or {} for one in facts)
    return Connection(
        source,  # type: ignore[arg-type]
        destination,  # type: ignore[arg-type]
        box.source_ports[0][0],
        box.ports[0][0],
        (box.protocols & -box.protocols).bit_length() - 1,
        source_region,
        destination_region,
        client,
        (host,),
    )


def _families(box: Box) -> list[int]:
    return [family for family in (4, 6) if _address(box.source, family) and _address(box.destination, family)]


def _address(entries: AddressSet, family: int) -> IPv4Address | IPv6Address | None:
    """An address of the set: the first of a prefix that no longer prefix at the same place takes away."""
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
    """Addresses of a prefix behind those that longer prefixes take out of it."""
    width = 32 if outer[0] == 4 else 128
    at, last = outer[1], outer[1] + (1 << (width - outer[2])) - 1
    for prefix, _ in entries:
        if prefix != outer and sets.covers(outer, prefix) and prefix[1] <= at:
            at = max(at, prefix[1] + (1 << (width - prefix[2])))
    if at <= last:
        yield at


def _facts(predicate: Predicate) -> Facts | None:
    """Facts that the predicate is true of, if they are easily found."""
    facts: dict[str, tuple[str, ...]] = {}
    _suppose(predicate, facts)
    return facts if is_true(predicate, facts) else None


def _suppose(predicate: Predicate, facts: dict[str, tuple[str, ...]]) -> None:
    match predicate:
        case Literal(TextIn(field, values), negated):
            value = _OTHER if negated else min(values, default=_OTHER)
            before = facts.get(field, ())
            facts[field] = (value,) if is_single(field) and not negated else (*before, value)
            if is_single(field) and negated and before:
                facts[field] = before
        case AllOf(parts):
            for part in sorted_parts(parts):
                _suppose(part, facts)
        case AnyOf(parts):
            for part in sorted_parts(parts)[:1]:
                _suppose(part, facts)
