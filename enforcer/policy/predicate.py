"""Predicates: a rule's condition on a client, a host or a region, as comparisons joined by `and` and `or`.

Only comparisons are negated. An unknown field makes a comparison false, and its negation as well: of
three-valued logic, predicates keep whether the result is true. So `x or not x` is not always true.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from enforcer.policy.evaluation import holds
from enforcer.policy.expression import Test, TextIn
from enforcer.policy.facts import Facts
from enforcer.policy.fields import FIELDS


@dataclass(frozen=True, slots=True)
class Literal:
    """A comparison or its negation; neither is true for an unknown field."""

    test: Test
    negated: bool = False


@dataclass(frozen=True, slots=True)
class AllOf:
    """True if all parts are true."""

    parts: frozenset[Predicate]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True if any part is true."""

    parts: frozenset[Predicate]


Predicate = Literal | AllOf | AnyOf

TRUE: Predicate = AllOf(frozenset())
FALSE: Predicate = AnyOf(frozenset())


def conjunction(one: Predicate, two: Predicate) -> Predicate:
    """Join two predicates by `and`."""
    if one in (TRUE, two):
        return two
    if two == TRUE:
        return one
    if FALSE in (one, two):
        return FALSE
    return _joined(AllOf, _merged([*_parts(AllOf, one), *_parts(AllOf, two)], conjunction=True), FALSE)


def disjunction(one: Predicate, two: Predicate) -> Predicate:
    """Join two predicates by `or`."""
    if one in (FALSE, two):
        return two
    if two == FALSE:
        return one
    if TRUE in (one, two):
        return TRUE
    return _joined(AnyOf, _merged([*_parts(AnyOf, one), *_parts(AnyOf, two)], conjunction=False), TRUE)


def _parts(kind: type[AllOf] | type[AnyOf], predicate: Predicate) -> Iterable[Predicate]:
    return predicate.parts if isinstance(predicate, kind) else (predicate,)


def _joined(kind: type[AllOf] | type[AnyOf], parts: set[Predicate], absorbing: Predicate) -> Predicate:
    if absorbing in parts:
        return absorbing
    return next(iter(parts)) if len(parts) == 1 else kind(frozenset(parts))


def is_single(field: str) -> bool:
    """Return whether a field has at most one value; a SAML attribute can have several."""
    return field in FIELDS and not FIELDS[field].many


def _merged(parts: list[Predicate], *, conjunction: bool) -> set[Predicate]:
    """Merge sets of one field where the meaning stays: `== a or == b` is `in {a b}`."""
    values: dict[tuple[str, bool], frozenset[str]] = {}
    kept: set[Predicate] = set()
    for part in parts:
        if not (
            isinstance(part, Literal) and isinstance(part.test, TextIn) and part.test.quantifier == "any"
        ):
            kept.add(part)
            continue
        field, negated = part.test.field, part.negated
        # A multi-valued field can have a value in each of two disjoint sets.
        unite = conjunction is negated
        if not unite and not is_single(field):
            kept.add(part)
            continue
        before = values.get((field, negated))
        if before is None:
            now = part.test.values
        else:
            now = before | part.test.values if unite else before & part.test.values
        values[field, negated] = now
    if conjunction:
        for field in [field for field, negated in values if not negated and is_single(field)]:
            # `in A and not in B` is `in A minus B`.
            values[field, False] -= values.pop((field, True), frozenset())
    for (field, negated), together in values.items():
        # `in {}` is false; `not in {}` is true of a known field, so it stays.
        if not together and not negated:
            kept.add(FALSE)
        else:
            kept.add(Literal(TextIn(field, together), negated))
    return kept


def is_true(predicate: Predicate, facts: Facts) -> bool:
    """Return whether the predicate is true for these facts."""
    match predicate:
        case Literal(test, negated):
            values = facts.get(test.field)
            return values is not None and holds(test, values) is not negated
        case AllOf(parts):
            return all(is_true(part, facts) for part in parts)
        case AnyOf(parts):
            return any(is_true(part, facts) for part in parts)


def triggers(predicate: Predicate) -> frozenset[Test] | None:
    """Return comparisons of which one must be true for the predicate to be true, or None."""
    match predicate:
        case Literal(test, negated):
            return None if negated else frozenset((test,))
        case AllOf(parts):
            found = [each for each in map(triggers, parts) if each is not None]
            return min(found, key=len) if found else None
        case AnyOf(parts):
            united: frozenset[Test] = frozenset()
            for each in map(triggers, parts):
                if each is None:
                    return None
                united |= each
            return united


def sorted_parts(parts: Iterable[Predicate]) -> list[Predicate]:
    """Sort the parts of a predicate: the order of a set differs between processes."""
    return sorted(parts, key=_sort_key)


def _sort_key(predicate: Predicate) -> tuple[Any, ...]:
    match predicate:
        case Literal(test, negated):
            if isinstance(test, TextIn):
                return 0, test.field, test.quantifier, negated, _by_values(test.values)
            return 1, test.field, test.quantifier, negated, test.pattern
        case AllOf(parts):
            return 2, *sorted(map(_sort_key, parts))
        case AnyOf(parts):
            return 3, *sorted(map(_sort_key, parts))


def _compare_values(one: frozenset[str], two: frozenset[str]) -> int:
    """Compare by size, then by the smallest value that only one set has; needs no sorting of large sets."""
    if len(one) != len(two) or one == two:
        return len(one) - len(two)
    return -1 if min(one ^ two) in one else 1


_by_values = cmp_to_key(_compare_values)
