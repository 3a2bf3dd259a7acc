"""Explains why an expression does not match a connection: the failed comparison and the actual value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from enforcer.policy.evaluation import evaluate, facts_of
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
from enforcer.policy.facts import NOTHING, Connection, Facts, dimension
from enforcer.policy.fields import FIELDS
from enforcer.policy.values import protocol_name

_MOST = 5  # comparisons or values in one explanation


def explain_mismatch(expression: Expression, connection: Connection) -> tuple[str, str]:
    """Return the failed comparison and the actual value, for an expression that does not match."""
    found = [
        _failed_comparisons(expression, True, connection, host) for host in connection.hosts or (NOTHING,)
    ]
    # Prefer a host for which the host comparisons are true: the other comparison is the cause.
    failed = next((each for each in found if not any(map(_is_about_the_host, each))), found[0])
    selectors = dict.fromkeys(_text_of(comparison, wanted) for comparison, wanted in failed)
    reasons = dict.fromkeys(_actual_value(comparison, connection) for comparison, _ in failed)
    return _join_some(selectors, " or ") or "not everything", _join_some(reasons, "; ")


def _is_about_the_host(failed: tuple[Comparison, bool]) -> bool:
    return isinstance(failed[0], TextIn | TextMatches) and dimension(failed[0].field) == "host"


def _join_some(texts: Iterable[str], between: str) -> str:
    every = list(texts)
    more = [f"{len(every) - _MOST} more"] if len(every) > _MOST else []
    return between.join(every[:_MOST] + more)


def _failed_comparisons(
    expression: Expression, wanted: bool, connection: Connection, host: Facts
) -> list[tuple[Comparison, bool]]:
    """Return the comparisons that keep an expression from being ``wanted``, each with its wanted value."""
    match expression:
        case Everything():
            return []
        case Not(operand):
            return _failed_comparisons(operand, not wanted, connection, host)
        case And(operands) | Or(operands):
            found = []
            for operand in operands:  # a loop: one frame per level of nesting
                if evaluate(operand, connection, host) is not wanted:
                    found += _failed_comparisons(operand, wanted, connection, host)
                    if isinstance(expression, And) is wanted:
                        break  # one false operand makes an `and` fail; for an `or` all are listed
            return found
        case _:
            return [(expression, wanted)]


# The text of a comparison up to and including a negative operator.
_NEGATIVE = re.compile(
    r'(?:(?:any|all)\()?[\w.]+(?:\[(?:\*|r?#*"[^"]*"#*)\][\w.]*)* (?:!=|ne|not in|not matches) '
)


def _text_of(comparison: Comparison, wanted: bool) -> str:
    """Return the comparison's text, after `not` if the negation is no part of it, as ``!=`` is."""
    negative = _NEGATIVE.match(comparison.text) is not None
    return comparison.text if wanted is not negative else f"not {comparison.text}"


def _actual_value(comparison: Comparison, connection: Connection) -> str:
    match comparison:
        case AddressIn("source", _):
            return f"net.src.ip is {connection.src}"
        case AddressIn():
            return f"net.dst.ip is {connection.dst}"
        case PortIn("source", _):
            return f"net.src.port is {connection.src_port}"
        case PortIn():
            return f"net.dst.port is {connection.dst_port}"
        case ProtocolIn():
            return f"net.protocol is {protocol_name(connection.protocol)}"
        case _:
            return _actual_fact(comparison.field, connection)


def _actual_fact(field: str, connection: Connection) -> str:
    about = dimension(field)
    hosts = connection.hosts if about == "host" else (facts_of(connection, NOTHING, field),)
    values = [value for facts in hosts for value in facts.get(field, ())]
    if any(field in facts for facts in hosts):
        written = FIELDS[field].written if field in FIELDS else field
        shown = _join_some((json.dumps(value, ensure_ascii=False) for value in values), ", ")
        return f"{written} is {shown or 'empty'}"
    match about:
        case "client":
            if connection.client:
                return f"unknown: the session of {connection.src} has no {field}"
            return f"unknown: no session for {connection.src}"
        case "host":
            return f"unknown: no name learnt for {connection.dst}"
        case _:
            address = connection.src if about == "source_region" else connection.dst
            return f"unknown: no {field.rpartition('.')[2]} known for {address}"
