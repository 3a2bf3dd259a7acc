"""What an expression means for a connection.

Logic is three-valued (Kleene): a comparison of something that is not known is unknown, and so is its
negation; `and` and `or` are unknown only where the unknown part would decide. A policy matches if it is true.
"""

from __future__ import annotations

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
    Test,
    TextIn,
)
from enforcer.policy.facts import NOTHING, Connection, Facts, dimension
from enforcer.policy.patterns import compiled


def evaluate(expression: Expression, connection: Connection, host: Facts = NOTHING) -> bool | None:
    """Whether the expression is true of a connection to this one of its names; None: unknown."""
    match expression:
        case Everything():
            return True
        case Not(operand):
            value = evaluate(operand, connection, host)
            return None if value is None else not value
        case And(operands) | Or(operands):
            # A loop rather than all() and any(): one frame per level of nesting.
            decisive = isinstance(expression, Or)
            result: bool | None = not decisive
            for operand in operands:
                value = evaluate(operand, connection, host)
                if value is decisive:
                    return decisive
                if value is None:
                    result = None
            return result
        case _:
            return compare(expression, connection, host)


def compare(comparison: Comparison, connection: Connection, host: Facts) -> bool | None:
    """Judge a comparison; None: what it asks about is not known. A prefix never matches the other family."""
    match comparison:
        case AddressIn(side, networks):
            address = connection.src if side == "source" else connection.dst
            return any(address in network for network in networks)
        case PortIn(side, ranges):
            port = connection.src_port if side == "source" else connection.dst_port
            return any(first <= port <= last for first, last in ranges)
        case ProtocolIn(numbers):
            return connection.protocol in numbers
        case _:
            values = facts_of(connection, host, comparison.field).get(comparison.field)
            return None if values is None else holds(comparison, values)


def facts_of(connection: Connection, host: Facts, field: str) -> Facts:
    """Give the facts that a field is one of."""
    match dimension(field):
        case "source_region":
            return connection.source_region
        case "destination_region":
            return connection.destination_region
        case "client":
            return connection.client
        case "host":
            return host


def holds(test: Test, values: tuple[str, ...]) -> bool:
    """Judge a comparison by the values that its field has."""
    quantified = any if test.quantifier == "any" else all
    if isinstance(test, TextIn):
        return quantified(value in test.values for value in values)
    found = compiled(test.pattern)
    return quantified(found.search(value) is not None for value in values)


def matches(expression: Expression, connection: Connection) -> bool:
    """Whether the expression is true with one of the destination's names; without any, with none."""
    return any(evaluate(expression, connection, host) for host in connection.hosts or (NOTHING,))
