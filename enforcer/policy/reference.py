"""What an expression and a list of policies mean, packet by packet: the measure for tables and kernel."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, Protocol, TypeVar

from enforcer.policy.expression import AddressIn, And, Everything, Expression, Not, Or, PortIn, ProtocolIn
from enforcer.policy.language import parse


class Tuple5(NamedTuple):
    """A packet as policies see it. A protocol without ports has port 0."""

    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    src_port: int
    dst_port: int
    protocol: int


class Rule(Protocol):
    """What policies are here; :class:`enforcer.config.Policy` is one."""

    @property
    def name(self) -> str:
        """Name, for messages."""

    @property
    def precedence(self) -> int:
        """Rank: the lowest decides."""

    @property
    def enabled(self) -> bool:
        """Whether it takes part."""

    @property
    def traffic(self) -> str:
        """Expression; empty: everything."""


R = TypeVar("R", bound=Rule)


def matches(expression: Expression, packet: Tuple5) -> bool:
    """Whether a packet is what the expression describes. A prefix never matches the other family."""
    match expression:
        case Not(operand):
            return not matches(operand, packet)
        case And(operands) | Or(operands):
            # A loop rather than all() and any(): one frame per level of nesting.
            decisive = isinstance(expression, Or)
            for operand in operands:
                if matches(operand, packet) is decisive:
                    return decisive
            return not decisive
        case _:
            return _compare(expression, packet)


def _compare(expression: Everything | AddressIn | PortIn | ProtocolIn, packet: Tuple5) -> bool:
    match expression:
        case Everything():
            return True
        case AddressIn(side, networks):
            address = packet.src if side == "source" else packet.dst
            return any(address in network for network in networks)
        case PortIn(ranges):
            return any(first <= packet.dst_port <= last for first, last in ranges)
        case ProtocolIn(numbers):
            return packet.protocol in numbers


def in_order(policies: Iterable[R]) -> list[R]:
    """Sort policies as they are tried, the disabled ones included."""
    return sorted(policies, key=lambda policy: policy.precedence)


def decide(policies: Iterable[R], packet: Tuple5) -> R | None:
    """Find the first enabled policy, in ascending precedence, that matches."""
    for policy in in_order(policies):
        if policy.enabled and matches(parse(policy.traffic), packet):
            return policy
    return None
