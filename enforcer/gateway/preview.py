"""Previews what applying a file changes: operations, policies, affected live flows. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enforcer.config import Configuration, load
from enforcer.errors import NotInstalledError
from enforcer.facts.store import Store
from enforcer.gateway import host_warnings
from enforcer.gateway.compiled_config import CompiledConfig, compile_config
from enforcer.gateway.flow_impact import FlowImpact, Impact
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.operations import (
    Operation,
    SwitchTables,
)
from enforcer.gateway.plan import (
    plan,
)
from enforcer.instance import Instance
from enforcer.kernel import links
from enforcer.kernel.namespace import netns_cookie


def check_file(file: Path) -> Configuration:
    """The validated file. Raises ConfigError."""
    return load(file, interfaces=links.links(), strict=True)


def config_warnings(config: Configuration) -> list[str]:
    """Warnings about the file and about conflicting settings of this machine."""
    sides = config.interfaces
    return [
        *map(str, config.warnings),
        *host_warnings.kernel_warnings(config.mark_mask, sides.outside),
        *host_warnings.unlisted_interfaces((*sides.inside, *sides.outside, *sides.other)),
    ]


@dataclass(frozen=True)
class Preview:
    """The effects of applying a file."""

    operations: list[Operation]
    changes: list[PolicyChange]
    impact: Impact
    warnings: list[str]


def preview_file(file: Path) -> Preview:
    """The operations, the changed policies and lists, and the affected live flows."""
    config = check_file(file)
    instance = Instance(netns_cookie())
    gateway = Gateway(instance)
    compiled = compile_config(config, str(file), gateway.state)
    operations = planned(gateway, compiled)
    impact = Impact()
    before = gateway.state.config if gateway.state else {}
    if before and any(isinstance(operation, SwitchTables) for operation in operations):
        with ExitStack() as opened:
            store = None
            # An earlier version has no store of facts: no client has a session.
            with suppress(NotInstalledError):
                store = opened.enter_context(Store(instance.facts_file, create=False))
            impact = FlowImpact(compiled, operations, gateway.maps(), store).of_flows()
    warnings = config_warnings(config)
    return Preview(operations, changes(before, compiled.state.config) if before else [], impact, warnings)


def planned(gateway: Gateway, compiled: CompiledConfig, *, distrust_table: bool = False) -> list[Operation]:
    """The operations that apply a compiled configuration."""
    actual = gateway.actual(compiled.wanted)
    if distrust_table and actual.table is not None:
        actual = replace(actual, table="")
    return plan(
        compiled.wanted, actual, gateway.previous, compiled.state.tables, unfinished=gateway.unfinished
    )


@dataclass(frozen=True)
class PolicyChange:
    """A policy or list that the file adds, removes or changes."""

    kind: str
    """add, remove or change."""
    what: str
    """``policy bank``, ``list offices``."""
    fields: tuple[str, ...] = ()
    """The changed keys of a policy."""

    def __str__(self) -> str:
        fields = f": {', '.join(self.fields)}" if self.fields else ""
        return f"{self.kind} {self.what}{fields}"


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[PolicyChange]:
    """The differences of two configurations in JSON form; policies are compared by name."""
    return [
        *_compared("policy", _by_name(before), _by_name(after)),
        *_compared("list", before.get("lists", {}), after.get("lists", {})),
    ]


def _by_name(config: dict[str, Any]) -> dict[str, Any]:
    return {policy["name"]: policy for policy in config.get("policies", ())}


def _compared(noun: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[PolicyChange]:
    for name, entry in after.items():
        if name not in before:
            yield PolicyChange("add", f"{noun} {name}")
        elif entry != before[name]:
            fields = [key for key in entry if entry[key] != before[name].get(key)] if noun == "policy" else []
            yield PolicyChange("change", f"{noun} {name}", tuple(fields))
    for name in before:
        if name not in after:
            yield PolicyChange("remove", f"{noun} {name}")
