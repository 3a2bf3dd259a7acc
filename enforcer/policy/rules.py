"""From an expression to rules: boxes that are one set, or one predicate, in each dimension.

An expression is the union of its rules. Negation is pushed down to the comparisons, where it is a complement
in one dimension; `and` intersects boxes pairwise; boxes that differ in one dimension are joined.
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
"""Rules of all enabled policies together: the width of the kernel's bit sets."""

MAX_POLICIES: Final = POLICIES - 1
"""Policies of a file, the disabled ones too: each has a number of its own in the kernel."""

# Entries of sets (prefixes, ranges) that one expression may make the compiler look at: about two seconds.
_MAX_WORK = 2_000_000
_VALUES_PER_ENTRY = 4  # texts in sets count for so much less: they are joined by hash


class TooManyRulesError(ValueError):
    """An expression, or all policies together, need more rules than the tables have room for."""


class Box(NamedTuple):
    """The connections whose values each lie in the dimension's set, and of which each predicate is true."""

    source: sets.AddressSet = sets.ALL_ADDRESSES
    destination: sets.AddressSet = sets.ALL_ADDRESSES
    source_ports: sets.PortSet = sets.ALL_PORTS
    ports: sets.PortSet = sets.ALL_PORTS
    protocols: sets.ProtocolSet = sets.ALL_PROTOCOLS
    source_region: Predicate = TRUE
    destination_region: Predicate = TRUE
    client: Predicate = TRUE
    host: Predicate = TRUE


_EMPTY = Box(sets.NO_ADDRESSES, sets.NO_ADDRESSES, (), (), 0, FALSE, FALSE, FALSE, FALSE)
_WHOLE = Box()


def _either_ports(one: sets.PortSet, two: sets.PortSet) -> sets.PortSet:
    return sets.ports(one + two)


def _either_protocols(one: sets.ProtocolSet, two: sets.ProtocolSet) -> sets.ProtocolSet:
    return one | two


def _both_protocols(one: sets.ProtocolSet, two: sets.ProtocolSet) -> sets.ProtocolSet:
    return one & two


_Operation = Callable[[Any, Any], Any]
_UNION: tuple[_Operation, ...] = (
    sets.any_addresses,
    sets.any_addresses,
    _either_ports,
    _either_ports,
    _either_protocols,
    *[predicate.either] * 4,
)
_INTERSECTION: tuple[_Operation, ...] = (
    sets.both_addresses,
    sets.both_addresses,
    sets.both_ports,
    sets.both_ports,
    _both_protocols,
    *[predicate.both] * 4,
)


_FIRST_PREDICATE = Box._fields.index("source_region")
_CHEAP_FIRST = sorted(
    range(len(Box._fields)), key=lambda index: (index >= _FIRST_PREDICATE, Box._fields[index] != "protocols")
)


class _Work:
    """What one expression may cost yet."""

    def __init__(self) -> None:
        self.left = _MAX_WORK
        self._literals: dict[Literal, Literal] = {}

    def spend(self, entries: int) -> None:
        self.left -= entries
        if self.left < 0:
            raise _too_many()

    def literal(self, literal: Literal) -> Literal:
        """The same object for equal ones: so a list that is named often is neither compared nor joined."""
        return self._literals.setdefault(literal, literal)


@lru_cache(maxsize=8192)
def rules_of(expression: Expression) -> tuple[Box, ...]:
    """Give the rules of an expression; TooManyRulesError. None of them is empty."""
    return tuple(_boxes(expression, False, _Work()))


def _boxes(expression: Expression, negated: bool, work: _Work) -> list[Box]:
    match expression:
        case Everything():
            return [] if negated else [_WHOLE]
        case Not(operand):
            return _boxes(operand, not negated, work)
        case And(operands) | Or(operands):
            parts = []
            for operand in operands:  # a loop: one frame per level of nesting
                parts.append(_boxes(operand, negated, work))
            conjunction = isinstance(expression, And) is not negated
            return _all(parts, work) if conjunction else _any(parts, work)
        case _:
            return _one(_WHOLE._replace(**_side(expression, negated, work)))


def _side(comparison: Comparison, negated: bool, work: _Work) -> dict[str, Any]:
    """The dimension that a comparison is about, and its set there."""
    match comparison:
        case AddressIn(side, networks):
            chosen = sets.addresses(networks)
            return {side: sets.not_addresses(chosen) if negated else chosen}
        case PortIn(side, ranges):
            ports = sets.not_ports(sets.ports(ranges)) if negated else sets.ports(ranges)
            return {"source_ports" if side == "source" else "ports": ports}
        case ProtocolIn(numbers):
            protocols = sets.protocols(numbers)
            return {"protocols": sets.ALL_PROTOCOLS ^ protocols if negated else protocols}
        case TextIn(field) | TextMatches(field):
            return {dimension(field): work.literal(Literal(comparison, negated))}


def _one(box: Box) -> list[Box]:
    return [] if any(map(_same, box, _EMPTY)) else [box]


def _same(one: object, two: object) -> bool:
    return one == two


def intersection(one: Box, two: Box) -> list[Box]:
    """The box of what is in both; none if nothing is."""
    return _both(one, two, _Work())


def _both(one: Box, two: Box, work: _Work) -> list[Box]:
    """Intersect the cheap dimensions first: where one is empty, nobody asks for the others."""
    if one is _WHOLE or two is _WHOLE:
        return [two if one is _WHOLE else one]
    found: dict[int, Any] = {}
    for index in _CHEAP_FIRST:
        mine: Any = one[index]
        theirs: Any = two[index]
        if mine is theirs:
            found[index] = mine
            continue
        if index >= _FIRST_PREDICATE:
            work.spend(_meeting(mine, theirs))
        found[index] = _INTERSECTION[index](mine, theirs)
        if found[index] == _EMPTY[index]:
            return []
    return [Box._make(found[index] for index in range(len(_EMPTY)))]


def _size(box: Box) -> int:
    """The entries of what a packet carries; for predicates see :func:`_meeting`."""
    return len(box.source) + len(box.destination) + len(box.source_ports) + len(box.ports)


def _meeting(one: Predicate, two: Predicate) -> int:
    """What joining two predicates costs: their comparisons, and the values where both ask about a field."""
    if one is TRUE or two is TRUE:
        return 0
    mine, theirs = _asked(one), _asked(two)
    values = sum(mine[field] + theirs[field] for field in mine.keys() & theirs.keys())
    return len(mine) + len(theirs) + values // _VALUES_PER_ENTRY


def _asked(predicate: Predicate) -> dict[str, int]:
    """Field → how many comparisons and values there are of it."""
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


def _all(parts: list[list[Box]], work: _Work) -> list[Box]:
    """Intersect unions; the small ones first, so that what is empty is seen early."""
    boxes = [_WHOLE]
    for part in sorted(parts, key=len):
        work.spend(sum(map(_size, boxes)) * len(part) + sum(map(_size, part)) * len(boxes))
        boxes = _joined([box for one in boxes for two in part for box in _both(one, two, work)], work)
    return boxes


def _any(parts: list[list[Box]], work: _Work) -> list[Box]:
    return _joined([box for part in parts for box in part], work)


def _joined(found: list[Box], work: _Work) -> list[Box]:
    """Join boxes that differ in one dimension, until there are none; the order of the rest is kept."""
    boxes = list(dict.fromkeys(found))
    before = 0
    while len(boxes) != before and len(boxes) > 1:
        before = len(boxes)
        work.spend(sum(map(_size, boxes)))
        for index in range(len(Box._fields)):
            groups: dict[tuple[Any, ...], list[Any]] = {}
            for box in boxes:
                groups.setdefault(box[:index] + box[index + 1 :], []).append(box[index])
            boxes = [
                Box._make((*others[:index], _union(index, values, work), *others[index:]))
                for others, values in groups.items()
            ]
    if len(boxes) > MAX_RULES:
        raise _too_many()
    return boxes


def _union(index: int, values: list[Any], work: _Work) -> Any:
    """Unite in pairs, then pairs of pairs: as many addresses in one `or` as in one set cost little more."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        odd = values[-1:] if len(values) % 2 else []
        united = []
        for one, two in pairs:
            if index >= _FIRST_PREDICATE:
                work.spend(_meeting(one, two))
            united.append(_UNION[index](one, two))
        values = united + odd
    return values[0]


def _too_many() -> TooManyRulesError:
    return TooManyRulesError(
        f"needs more than {MAX_RULES:,} rules, or too long to work out; expected a simpler expression, or "
        "several policies: every `or` inside an `and` multiplies, unless one `in {…}` can stand for it"
    )
