"""What an expression says, as a tree.

Comparisons by ``!=`` and ``not in`` are ``Not`` of the positive one, and ``==`` is a set of one. ``text`` is
the comparison as it was written, for people; it takes no part in equality.
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
    """Values of a field that no packet carries (:mod:`enforcer.policy.facts`) are among these.

    ``any`` of its values, or ``all`` of them; an empty list has none of which that is true, and none of
    which it is not.
    """

    field: str
    values: frozenset[str]
    quantifier: Quantifier = "any"
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TextMatches:
    """As :class:`TextIn`, but a regular expression (RE2) is found in the value."""

    field: str
    pattern: str
    quantifier: Quantifier = "any"
    text: str = attribute(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """Matches what its operand does not."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class And:
    """Matches what all operands match."""

    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Matches what any operand matches."""

    operands: tuple[Expression, ...]


Test = TextIn | TextMatches
Comparison = AddressIn | PortIn | ProtocolIn | Test
Expression = Everything | Comparison | Not | And | Or


def comparisons(expression: Expression) -> Iterator[Comparison]:
    """Give the comparisons of an expression, in the order in which they are written."""
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
