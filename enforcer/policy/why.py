"""Why an expression does not match: for the person whose connection left with the wrong address."""

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

_MOST = 5  # comparisons or values that are named


def why(expression: Expression, connection: Connection) -> tuple[str, str]:
    """Say which comparison of an expression that does not match failed, and what was seen instead."""
    found = [_blamed(expression, True, connection, host) for host in connection.hosts or (NOTHING,)]
    # A name of which the host's part is true fails for what has to be told.
    blamed = next((each for each in found if not any(map(_is_about_the_host, each))), found[0])
    selectors = dict.fromkeys(_written(comparison, wanted) for comparison, wanted in blamed)
    reasons = dict.fromkeys(_seen(comparison, connection) for comparison, _ in blamed)
    return _some(selectors, " or ") or "not everything", _some(reasons, "; ")


def _is_about_the_host(blamed: tuple[Comparison, bool]) -> bool:
    return isinstance(blamed[0], TextIn | TextMatches) and dimension(blamed[0].field) == "host"


def _some(texts: Iterable[str], between: str) -> str:
    every = list(texts)
    more = [f"{len(every) - _MOST} more"] if len(every) > _MOST else []
    return between.join(every[:_MOST] + more)


def _blamed(
    expression: Expression, wanted: bool, connection: Connection, host: Facts
) -> list[tuple[Comparison, bool]]:
    """Find the comparisons to blame, and what each should be, if an expression is not what is wanted."""
    match expression:
        case Everything():
            return []
        case Not(operand):
            return _blamed(operand, not wanted, connection, host)
        case And(operands) | Or(operands):
            found = []
            for operand in operands:  # a loop: one frame per level of nesting
                if evaluate(operand, connection, host) is not wanted:
                    found += _blamed(operand, wanted, connection, host)
                    if isinstance(expression, And) is wanted:
                        break  # one is enough to fail; of an `or` all do
            return found
        case _:
            return [(expression, wanted)]


# A comparison's text up to the sign that negates it.
_NEGATIVE = re.compile(
    r'(?:(?:any|all)\()?[\w.]+(?:\[(?:\*|r?#*"[^"]*"#*)\][\w.]*)* (?:!=|ne|not in|not matches) '
)


def _written(comparison: Comparison, wanted: bool) -> str:
    """Write what was asked: ``!=`` and ``not in`` are a part of the text, other negations are not."""
    negative = _NEGATIVE.match(comparison.text) is not None
    return comparison.text if wanted is not negative else f"not {comparison.text}"


def _seen(comparison: Comparison, connection: Connection) -> str:
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
            return _known(comparison.field, connection)


def _known(field: str, connection: Connection) -> str:
    about = dimension(field)
    hosts = connection.hosts if about == "host" else (facts_of(connection, NOTHING, field),)
    values = [value for facts in hosts for value in facts.get(field, ())]
    if any(field in facts for facts in hosts):
        written = FIELDS[field].written if field in FIELDS else field
        shown = _some((json.dumps(value, ensure_ascii=False) for value in values), ", ")
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
