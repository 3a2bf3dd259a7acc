"""The syntax tree of an expression.

``!=`` and ``not in`` become ``Not`` of the positive comparison, and ``==`` a set of one value. ``text`` is
the comparison as written, for messages; equality ignores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as attribute
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network
Side = Literal["source", "destination"]
Quantifier = Literal["any", "all"]


@dataclass(frozen=True, slots=True)
class Everything:
    """Matches every packet: the empty expression."""


@dataclass(frozen=True, slots=True)
class AddressIn:
    """The source or destination address lies in one of the networks of its own family."""

    side: Side
    networks: tuple[Network, ...]
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class PortIn:
    """The source or destination port lies in one of the ranges, both ends included."""

    side: Side
    ranges: tuple[tuple[int, int], ...]
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ProtocolIn:
    """The protocol number (IPv4 protocol, IPv6 next header) is one of these."""

    numbers: frozenset[int]
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TextIn:
    """Values of a fact (:mod:`enforcer.policy.facts`) are in the set.

    ``any`` of the field's values, or ``all`` of them. For a field without values ``any`` is false and ``all``
    is true.
    """

    field: str
    values: frozenset[str]
    quantifier: Quantifier = "any"
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TextMatches:
    """As :class:`TextIn`, for values in which a regular expression (RE2) is found."""

    field: str
    pattern: str
    quantifier: Quantifier = "any"
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """True where its operand is false."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class And:
    """True where all operands are true."""

    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True where any operand is true."""

    operands: tuple[Expression, ...]


Test = TextIn | TextMatches
Comparison = AddressIn | PortIn | ProtocolIn | Test
Expression = Everything | Comparison | Not | And | Or


def comparisons(expression: Expression) -> Iterator[Comparison]:
    """Yield the comparisons of an expression in the order of the text."""
    left = [expression]
    while left:
        match left.pop():
            case Not(operand):
                left.append(operand)
            case And(operands) | Or(operands):
                left += reversed(operands)
            case Everything():
                pass
            case comparison:
                yield comparison
