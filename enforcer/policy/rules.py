"""Compiles an expression to rules. A rule has one set, or one predicate, in each dimension.

An expression is the union of its rules. Negation is pushed down to the comparisons, where it is a complement
in one dimension; `and` intersects rules pairwise; rules that differ in one dimension only are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from enforcer.constants.bpf import POLICIES, RULES
from enforcer.policy import predicate, sets
from enforcer.policy.expression import (
    AddressIn,
    And,
    Comparison,
    Everything,
    Expression,
    Not,
    Or,
    PortIn,
    ProtocolIn,
    TextIn,
    TextMatches,
)
from enforcer.policy.facts import dimension
from enforcer.policy.predicate import FALSE, TRUE, Literal, Predicate

MAX_RULES: Final = RULES
"""Limit for the rules of all enabled policies: the width of the kernel's bit sets."""

MAX_POLICIES: Final = POLICIES - 1
"""Limit for the policies of a file, disabled ones included: each has its own number in the kernel."""

# Set entries (prefixes, ranges) that compiling one expression may visit: about two seconds.
_MAX_ENTRIES = 2_000_000
_VALUES_PER_ENTRY = 4  # text values that cost as much as one entry: hashing merges them


class TooManyRulesError(ValueError):
    """One expression, or all policies together, need more rules than the tables hold."""


class Rule(NamedTuple):
    """Matches a connection whose values lie in the set of each dimension and make each predicate true."""

    source: sets.AddressSet = sets.ALL_ADDRESSES
    destination: sets.AddressSet = sets.ALL_ADDRESSES
    source_ports: sets.PortSet = sets.ALL_PORTS
    ports: sets.PortSet = sets.ALL_PORTS
    protocols: sets.ProtocolSet = sets.ALL_PROTOCOLS
    source_region: Predicate = TRUE
    destination_region: Predicate = TRUE
    client: Predicate = TRUE
    host: Predicate = TRUE


_EMPTY = Rule(sets.NO_ADDRESSES, sets.NO_ADDRESSES, (), (), 0, FALSE, FALSE, FALSE, FALSE)
_EVERYTHING = Rule()


def _unite_ports(one: sets.PortSet, two: sets.PortSet) -> sets.PortSet:
    return sets.ports(one + two)


def _unite_protocols(one: sets.ProtocolSet, two: sets.ProtocolSet) -> sets.ProtocolSet:
    return one | two


def _intersect_protocols(one: sets.ProtocolSet, two: sets.ProtocolSet) -> sets.ProtocolSet:
    return one & two


_Operation = Callable[[Any, Any], Any]
_UNION: tuple[_Operation, ...] = (
    sets.unite_addresses,
    sets.unite_addresses,
    _unite_ports,
    _unite_ports,
    _unite_protocols,
    *[predicate.disjunction] * 4,
)
_INTERSECTION: tuple[_Operation, ...] = (
    sets.intersect_addresses,
    sets.intersect_addresses,
    sets.intersect_ports,
    sets.intersect_ports,
    _intersect_protocols,
    *[predicate.conjunction] * 4,
)


_FIRST_PREDICATE = Rule._fields.index("source_region")
_CHEAPEST_FIRST = sorted(
    range(len(Rule._fields)),
    key=lambda index: (index >= _FIRST_PREDICATE, Rule._fields[index] != "protocols"),
)


class _Budget:
    """The work left for one expression, in set entries; TooManyRulesError when it is used up."""

    def __init__(self) -> None:
        self.left = _MAX_ENTRIES
        self._literals: dict[Literal, Literal] = {}

    def spend(self, entries: int) -> None:
        self.left -= entries
        if self.left < 0:
            raise _too_many_rules()

    def literal(self, literal: Literal) -> Literal:
        """Return one object for equal literals: `is` then replaces comparing the values of a long list."""
        return self._literals.setdefault(literal, literal)


@lru_cache(maxsize=8192)
def rules_of(expression: Expression) -> tuple[Rule, ...]:
    """Return the non-empty rules of an expression; TooManyRulesError."""
    return tuple(_rules(expression, False, _Budget()))


def _rules(expression: Expression, negated: bool, budget: _Budget) -> list[Rule]:
    match expression:
        case Everything():
            return [] if negated else [_EVERYTHING]
        case Not(operand):
            return _rules(operand, not negated, budget)
        case And(operands) | Or(operands):
            parts = []
            for operand in operands:  # a loop: one frame per level of nesting
                parts.append(_rules(operand, negated, budget))
            conjunction = isinstance(expression, And) is not negated
            return _intersect_all(parts, budget) if conjunction else _unite_all(parts, budget)
        case _:
            return _unless_empty(_EVERYTHING._replace(**_restriction(expression, negated, budget)))


def _restriction(comparison: Comparison, negated: bool, budget: _Budget) -> dict[str, Any]:
    """Return the comparison's dimension with the set or predicate that it requires there."""
    match comparison:
        case AddressIn(side, networks):
            chosen = sets.addresses(networks)
            return {side: sets.complement_addresses(chosen) if negated else chosen}
        case PortIn(side, ranges):
            ports = sets.complement_ports(sets.ports(ranges)) if negated else sets.ports(ranges)
            return {"source_ports" if side == "source" else "ports": ports}
        case ProtocolIn(numbers):
            protocols = sets.protocols(numbers)
            return {"protocols": sets.ALL_PROTOCOLS ^ protocols if negated else protocols}
        case TextIn(field) | TextMatches(field):
            return {dimension(field): budget.literal(Literal(comparison, negated))}


def _unless_empty(rule: Rule) -> list[Rule]:
    return [] if any(map(_same, rule, _EMPTY)) else [rule]


def _same(one: object, two: object) -> bool:
    return one == two


def intersection(one: Rule, two: Rule) -> list[Rule]:
    """Return a list of one rule that matches what both match; an empty list if nothing does."""
    return _intersect(one, two, _Budget())


def _intersect(one: Rule, two: Rule, budget: _Budget) -> list[Rule]:
    """Intersect the cheapest dimensions first, and stop at an empty one."""
    if one is _EVERYTHING or two is _EVERYTHING:
        return [two if one is _EVERYTHING else one]
    found: dict[int, Any] = {}
    for index in _CHEAPEST_FIRST:
        mine: Any = one[index]
        theirs: Any = two[index]
        if mine is theirs:
            found[index] = mine
            continue
        if index >= _FIRST_PREDICATE:
            budget.spend(_join_cost(mine, theirs))
        found[index] = _INTERSECTION[index](mine, theirs)
        if found[index] == _EMPTY[index]:
            return []
    return [Rule._make(found[index] for index in range(len(_EMPTY)))]


def _size(rule: Rule) -> int:
    """Count the entries of the sets of packet fields; :func:`_join_cost` counts predicates."""
    return len(rule.source) + len(rule.destination) + len(rule.source_ports) + len(rule.ports)


def _join_cost(one: Predicate, two: Predicate) -> int:
    """Return the cost of joining two predicates: their comparisons, and the values of common fields."""
    if one is TRUE or two is TRUE:
        return 0
    mine, theirs = _count_by_field(one), _count_by_field(two)
    values = sum(mine[field] + theirs[field] for field in mine.keys() & theirs.keys())
    return len(mine) + len(theirs) + values // _VALUES_PER_ENTRY


def _count_by_field(predicate: Predicate) -> dict[str, int]:
    """Count the comparisons and values of each field."""
    found: dict[str, int] = {}
    left = [predicate]
    while left:
        one = left.pop()
        if isinstance(one, Literal):
            values = len(one.test.values) if isinstance(one.test, TextIn) else 0
            found[one.test.field] = found.get(one.test.field, 0) + 1 + values
        else:
            left += one.parts
    return found


def _intersect_all(parts: list[list[Rule]], budget: _Budget) -> list[Rule]:
    """Intersect unions of rules, the small ones first, so that an empty result ends the work early."""
    rules = [_EVERYTHING]
    for part in sorted(parts, key=len):
        budget.spend(sum(map(_size, rules)) * len(part) + sum(map(_size, part)) * len(rules))
        found = [rule for one in rules for two in part for rule in _intersect(one, two, budget)]
        rules = _merge(found, budget)
    return rules


def _unite_all(parts: list[list[Rule]], budget: _Budget) -> list[Rule]:
    return _merge([rule for part in parts for rule in part], budget)


def _merge(found: list[Rule], budget: _Budget) -> list[Rule]:
    """Merge rules that differ in one dimension only, until none do; keep the order of the others."""
    rules = list(dict.fromkeys(found))
    before = 0
    while len(rules) != before and len(rules) > 1:
        before = len(rules)
        budget.spend(sum(map(_size, rules)))
        for index in range(len(Rule._fields)):
            groups: dict[tuple[Any, ...], list[Any]] = {}
            for rule in rules:
                groups.setdefault(rule[:index] + rule[index + 1 :], []).append(rule[index])
            rules = [
                Rule._make((*others[:index], _union(index, values, budget), *others[index:]))
                for others, values in groups.items()
            ]
    if len(rules) > MAX_RULES:
        raise _too_many_rules()
    return rules


def _union(index: int, values: list[Any], budget: _Budget) -> Any:
    """Unite in pairs, then pairs of pairs: addresses joined by `or` cost little more than one set of them."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        odd = values[-1:] if len(values) % 2 else []
        united = []
        for one, two in pairs:
            if index >= _FIRST_PREDICATE:
                budget.spend(_join_cost(one, two))
            united.append(_UNION[index](one, two))
        values = united + odd
    return values[0]


def _too_many_rules() -> TooManyRulesError:
    return TooManyRulesError(
        f"needs more than {MAX_RULES:,} rules, or too long to budget out; expected a simpler expression, or "
        "several policies: every `or` inside an `and` multiplies, unless one `in {…}` can stand for it"
    )
