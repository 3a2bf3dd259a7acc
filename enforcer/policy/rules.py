"""From an expression to rules: boxes that are one set in each of four dimensions.

An expression is the union of its rules. Negation is pushed down to the comparisons, where it is a complement
in one dimension; `and` intersects boxes pairwise; boxes that differ in one dimension are joined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from enforcer.policy import sets
from enforcer.policy.expression import AddressIn, And, Everything, Expression, Not, Or, PortIn, ProtocolIn
from enforcer.policy.language import parse

MAX_RULES = 4096
"""Rules of all enabled policies together: the width of the kernel's bit sets."""

# Entries of sets (prefixes, ranges) that one expression may make the compiler look at: about two seconds.
_MAX_WORK = 2_000_000


class TooManyRulesError(ValueError):
    """An expression, or all policies together, need more rules than the tables have room for."""


class Box(NamedTuple):
    """The packets whose four values each lie in the dimension's set."""

    source: sets.AddressSet = sets.ALL_ADDRESSES
    destination: sets.AddressSet = sets.ALL_ADDRESSES
    ports: sets.PortSet = sets.ALL_PORTS
    protocols: sets.ProtocolSet = sets.ALL_PROTOCOLS


_EMPTY = Box(sets.NO_ADDRESSES, sets.NO_ADDRESSES, (), 0)

_UNION: tuple[Callable[[Any, Any], Any], ...] = (
    sets.any_addresses,
    sets.any_addresses,
    lambda one, two: sets.ports(one + two),
    lambda one, two: one | two,
)


class _Work:
    """What one expression may cost yet."""

    def __init__(self) -> None:
        self.left = _MAX_WORK

    def spend(self, entries: int) -> None:
        self.left -= entries
        if self.left < 0:
            raise _too_many()


@lru_cache(maxsize=8192)
def rules_of(traffic: str) -> tuple[Box, ...]:
    """Give the rules of an expression; ExpressionError, TooManyRulesError. None of them is empty."""
    return tuple(_boxes(parse(traffic), False, _Work()))


def _boxes(expression: Expression, negated: bool, work: _Work) -> list[Box]:
    match expression:
        case Everything():
            return [] if negated else [Box()]
        case Not(operand):
            return _boxes(operand, not negated, work)
        case And(operands) | Or(operands):
            parts = []
            for operand in operands:  # a loop: one frame per level of nesting
                parts.append(_boxes(operand, negated, work))
            conjunction = isinstance(expression, And) is not negated
            return _all(parts, work) if conjunction else _any(parts, work)
        case AddressIn(side, networks):
            chosen = sets.addresses(networks)
            chosen = sets.not_addresses(chosen) if negated else chosen
            return _one(Box(source=chosen) if side == "source" else Box(destination=chosen))
        case PortIn(ranges):
            ports = sets.ports(ranges)
            return _one(Box(ports=sets.not_ports(ports) if negated else ports))
        case ProtocolIn(numbers):
            protocols = sets.protocols(numbers)
            return _one(Box(protocols=sets.ALL_PROTOCOLS ^ protocols if negated else protocols))


def _one(box: Box) -> list[Box]:
    return [] if any(map(_same, box, _EMPTY)) else [box]


def _same(one: object, two: object) -> bool:
    return one == two


def _both(one: Box, two: Box) -> Box:
    return Box(
        sets.both_addresses(one.source, two.source),
        sets.both_addresses(one.destination, two.destination),
        sets.both_ports(one.ports, two.ports),
        one.protocols & two.protocols,
    )


def _size(box: Box) -> int:
    return len(box.source) + len(box.destination) + len(box.ports)


def _all(parts: list[list[Box]], work: _Work) -> list[Box]:
    """Intersect unions; the small ones first, so that what is empty is seen early."""
    boxes = [Box()]
    for part in sorted(parts, key=len):
        work.spend(sum(map(_size, boxes)) * len(part) + sum(map(_size, part)) * len(boxes))
        boxes = _joined([box for one in boxes for two in part for box in _one(_both(one, two))], work)
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
        for dimension in range(len(Box._fields)):
            groups: dict[tuple[Any, ...], list[Any]] = {}
            for box in boxes:
                groups.setdefault(box[:dimension] + box[dimension + 1 :], []).append(box[dimension])
            boxes = [
                Box._make((*others[:dimension], _union(dimension, values), *others[dimension:]))
                for others, values in groups.items()
            ]
    if len(boxes) > MAX_RULES:
        raise _too_many()
    return boxes


def _union(dimension: int, values: list[Any]) -> Any:
    """Unite in pairs, then pairs of pairs: as many addresses in one `or` as in one set cost little more."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        odd = values[-1:] if len(values) % 2 else []
        values = [_UNION[dimension](one, two) for one, two in pairs] + odd
    return values[0]


def _too_many() -> TooManyRulesError:
    return TooManyRulesError(
        f"needs more than {MAX_RULES:,} rules, or too long to work out; expected a simpler expression, or "
        "several policies: every `or` inside an `and` multiplies, unless one `in {…}` can stand for it"
    )
