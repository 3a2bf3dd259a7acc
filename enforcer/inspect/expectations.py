"""`enforcer policy test`: compares a user's expectations with the policies of a file, without a kernel.

Connections are decided as by this gateway with all egress addresses available and below every limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from enforcer.address import IPAddress
from enforcer.config import Configuration, load
from enforcer.config.expectations import NEAREST, REFUSED, Expectation, FindRegion, Region
from enforcer.config.expectations import load as load_expectations
from enforcer.constants import TCP, UDP
from enforcer.facts import session
from enforcer.facts.records import UNKNOWN_REGION
from enforcer.facts.regions import Database
from enforcer.policy.decision import SHARED, Decision, decide_all
from enforcer.policy.facts import Connection, Facts
from enforcer.policy.language import Lists
from enforcer.policy.reference import trace
from enforcer.policy.values import protocol_name
from enforcer.reasons import by_name

Row = dict[str, Any]


def judge_file(config_file: Path, file: Path) -> list[Row]:
    """Judges the expectations in ``file``. Raises ConfigError for faults in either file, DatabaseError."""
    config = load(config_file)
    expectations = load_expectations(file, config, _read_session)
    with ExitStack() as stack:
        return list(judge(config, expectations, _Regions(config, stack)))


def _read_session(entry: dict[str, Any]) -> tuple[Facts | None, list[str]]:
    found, problems = session.read(entry, time.time())
    return (found.facts if found else None), problems


class _Regions:
    """Looks regions up in the configuration's database, which is opened on first use."""

    def __init__(self, config: Configuration, stack: ExitStack):
        self._path = config.geoip.database
        self._stack = stack
        self._database: Database | None = None

    def __call__(self, address: IPAddress) -> Region:
        if self._path is None:
            return UNKNOWN_REGION
        if self._database is None:
            self._database = self._stack.enter_context(Database(Path(self._path), strict=False))
        return self._database.find(address)


def judge(config: Configuration, expectations: Iterable[Expectation], find: FindRegion) -> Iterator[Row]:
    """Yields a row for each expectation: the decision, and for failed ones the differences and a trace."""
    lists = config.named_lists
    for expectation in expectations:
        connection = expectation.located(find)
        decision = decide_all(config, connection, lists)
        exempt = decision.policy is None and decision.primary == SHARED
        failures = list(_differences(config, expectation, decision))
        yield {
            "name": expectation.name,
            "line": expectation.line,
            "connection": _shown(connection),
            "ok": not failures,
            "failures": failures,
            "reason": decision.reason,
            "description": by_name()[decision.reason].description,
            "policy": decision.policy,
            "primary": decision.primary,
            "fallback": decision.fallback,
            "egress": list(decision.egress),
            "trace": list(_trace(config, connection, lists)) if failures and not exempt else [],
        }


def _shown(connection: Connection) -> str:
    name = protocol_name(connection.protocol)
    protocol = f"protocol {name}" if name.isdigit() else name
    if connection.protocol not in (TCP, UDP):
        return f"{protocol} {connection.src} → {connection.dst}"
    return f"{protocol} {connection.src} → {connection.dst} port {connection.dst_port}"


def _trace(config: Configuration, connection: Connection, lists: Lists) -> Iterator[Row]:
    for step in trace(config.policies, connection, lists):
        yield {
            "policy": step.policy.name,
            "precedence": step.policy.precedence,
            "outcome": step.outcome,
            "selector": step.selector or None,
            "reason": step.reason or None,
        }


def _differences(config: Configuration, expected: Expectation, found: Decision) -> Iterator[str]:
    if expected.checks_policy and expected.policy != found.policy:
        yield f"policy: expected {_policy(expected.policy)}, found {_policy(found.policy)} ({found.reason})"
    if expected.reason is not None and expected.reason != found.reason:
        said = by_name()[found.reason].description
        yield f"reason: expected {expected.reason}, found {found.reason} ({said})"
    if expected.egress is not None and not _leaves(expected.egress, found):
        yield f"egress: expected {expected.egress}, found {_egress(found)}{_elsewhere(config, found)}"


def _policy(name: str | None) -> str:
    return "none" if name is None else f'"{name}"'


def _leaves(expected: str, found: Decision) -> bool:
    if expected == NEAREST:
        return found.reason == NEAREST
    return found.egress == (() if expected == REFUSED else (expected,))


def _egress(found: Decision) -> str:
    if not found.egress:
        return f"{REFUSED} ({found.reason})"
    several = "one of " if len(found.egress) > 1 else ""
    return f"{several}{', '.join(found.egress)} ({found.reason})"


def _elsewhere(config: Configuration, found: Decision) -> str:
    """The reason why a policy's primary is not used, or an empty string."""
    if found.primary is None or found.primary in found.egress:
        return ""
    location = config.egress_ip(found.primary).location
    return f"; {found.primary} is at {location}, and this gateway at {config.location}"
