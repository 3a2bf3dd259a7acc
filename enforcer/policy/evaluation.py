"""Evaluates an expression for a connection.

Logic is three-valued (Kleene): a comparison of an unknown field is unknown, and so is its negation; `and` and
`or` are unknown only where the unknown part would decide. A policy matches if its expression is true.
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
    """Return True, False or None (unknown) for a connection to one of the names of its destination."""
    match expression:
        case Everything():
            return True
        case Not(operand):
            value = evaluate(operand, connection, host)
            return None if value is None else not value
        case And(operands) | Or(operands):
            # A loop instead of all() and any(): it takes one stack frame per nesting level.
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
    """Return whether a comparison holds; None: its field is unknown. A prefix matches its own family only."""
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
    """Return the facts of the dimension that the field belongs to."""
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
    """Return whether a comparison holds for the values of its field."""
    quantified = any if test.quantifier == "any" else all
    if isinstance(test, TextIn):
        return quantified(value in test.values for value in values)
    found = compiled(test.pattern)
    return quantified(found.search(value) is not None for value in values)


def matches(expression: Expression, connection: Connection) -> bool:
    """Return whether the expression is true for one of the destination's names, or without any name."""
    return any(evaluate(expression, connection, host) for host in connection.hosts or (NOTHING,))
