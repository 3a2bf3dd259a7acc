"""What a rule asks of a client, a host or a region: comparisons joined by `and` and `or`.

Negation stands only before a comparison, so that an unknown field makes it false in either form: what is
left of three-valued logic is whether a predicate is true. Therefore `x or not x` is not everything here.
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
    """A comparison, or its negation; neither is true of an unknown field."""

    test: Test
    negated: bool = False


@dataclass(frozen=True, slots=True)
class AllOf:
    """True if all parts are."""

    parts: frozenset[Predicate]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True if any part is."""

    parts: frozenset[Predicate]


Predicate = Literal | AllOf | AnyOf

TRUE: Predicate = AllOf(frozenset())
FALSE: Predicate = AnyOf(frozenset())


def both(one: Predicate, two: Predicate) -> Predicate:
    """Join by `and`."""
    if one in (TRUE, two):
        return two
    if two == TRUE:
        return one
    if FALSE in (one, two):
        return FALSE
    return _joined(AllOf, _merged([*_parts(AllOf, one), *_parts(AllOf, two)], conjunction=True), FALSE)


def either(one: Predicate, two: Predicate) -> Predicate:
    """Join by `or`."""
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
    """Whether a field has one value at most; a SAML attribute can have several."""
    return field in FIELDS and not FIELDS[field].many


def _merged(parts: list[Predicate], *, conjunction: bool) -> set[Predicate]:
    """Unite sets of one field where that says the same: `== a or == b` is `in {a b}`."""
    values: dict[tuple[str, bool], frozenset[str]] = {}
    kept: set[Predicate] = set()
    for part in parts:
        if not (
            isinstance(part, Literal) and isinstance(part.test, TextIn) and part.test.quantifier == "any"
        ):
            kept.add(part)
            continue
        field, negated = part.test.field, part.negated
        # A field of several values can have one in each of two sets that share none.
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
            # What is in one set and not in the other is in what is left of the one.
            values[field, False] -= values.pop((field, True), frozenset())
    for (field, negated), together in values.items():
        # Of a known field nothing is in the empty set; "none is in it" is true, but only of a known one.
        if not together and not negated:
            kept.add(FALSE)
        else:
            kept.add(Literal(TextIn(field, together), negated))
    return kept


def is_true(predicate: Predicate, facts: Facts) -> bool:
    """Evaluate on one subject."""
    match predicate:
        case Literal(test, negated):
            values = facts.get(test.field)
            return values is not None and holds(test, values) is not negated
        case AllOf(parts):
            return all(is_true(part, facts) for part in parts)
        case AnyOf(parts):
            return any(is_true(part, facts) for part in parts)


def triggers(predicate: Predicate) -> frozenset[Test] | None:
    """Comparisons of which one must be true for the predicate to be; None if it can be without any."""
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
    """Sort the parts of a predicate: a set of them has another order in every process."""
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
    """Compare by size, then by the first value that only one of them has: without sorting 100,000."""
    if len(one) != len(two) or one == two:
        return len(one) - len(two)
    return -1 if min(one ^ two) in one else 1


_by_values = cmp_to_key(_compare_values)
