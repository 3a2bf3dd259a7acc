"""What a traffic expression says, as a tree.

Comparisons by ``!=`` and ``not in`` are ``Not`` of the positive one, and ``==`` is a set of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Everything:
    """Matches every packet: the empty expression."""


@dataclass(frozen=True, slots=True)
class AddressIn:
    """The source or destination address lies in one of the networks of its own family."""

    side: Literal["source", "destination"]
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class PortIn:
    """The destination port lies in one of the ranges, both ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ProtocolIn:
    """The protocol number (IPv4 protocol, IPv6 next header) is one of these."""

    numbers: frozenset[int]


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


Expression = Everything | AddressIn | PortIn | ProtocolIn | Not | And | Or
