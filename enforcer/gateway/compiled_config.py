"""Compiles a configuration: the desired kernel state, the bank's contents and the new state file. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enforcer.config import SHARED, Configuration
from enforcer.constants.bpf import NO_SLOT
from enforcer.datapath.banks import Action
from enforcer.facts.regions import Database
from enforcer.gateway.bank_switch import BankContents
from enforcer.gateway.desired import Desired, desired, last_slot, tables_digest
from enforcer.gateway.state import LAST_POLICY, LAST_SLOT, State, assign


@dataclass(frozen=True)
class PreparedConfig:
    """A configuration with its region database opened and its policies compiled: what may block is done."""

    config: Configuration
    file: str
    database: Database | None

    @classmethod
    def of(cls, config: Configuration, file: str) -> PreparedConfig:
        """Opens the database and compiles the policies."""
        path = config.geoip.database
        database = Database(Path(path)) if path else None
        _ = config.tables
        return cls(config, file, database)


@dataclass(frozen=True)
class CompiledConfig:
    """A compiled configuration: the desired state, the bank's contents and the state file's content."""

    config: Configuration
    wanted: Desired
    contents: BankContents
    state: State


def compile_config(config: Configuration, file: str, before: State | None) -> CompiledConfig:
    """Compiles a configuration; slots and policy ids of the state ``before`` are kept."""
    return compile_prepared(PreparedConfig.of(config, file), before)


def compile_prepared(prepared: PreparedConfig, before: State | None) -> CompiledConfig:
    """Compiles a prepared configuration; slots and policy ids of the state ``before`` are kept."""
    config, database = prepared.config, prepared.database
    known = before or State()
    content = config.model_dump(mode="json")
    last = min(LAST_SLOT, last_slot(config.mark_mask))
    slots = assign((egress.name for egress in config.egress_ips), _unmoved(content, known), last)
    policies = assign((policy.name for policy in config.policies), known.policies, LAST_POLICY)
    wanted = desired(content, slots)
    state = replace(
        known,
        since=known.since or time.time(),
        config_file=prepared.file,
        config=content,
        slots=slots,
        policies=policies,
        tables=tables_digest(content, slots, policies, database.digest if database else ""),
        undo=list(known.undo),
        half_done=None,
    )
    actions = [_action(config, policy, slots, policies) for policy in config.ordered_policies()]
    contents = BankContents(config.tables, actions, config.private_networks, database)
    return CompiledConfig(config, wanted, contents, state)


def _unmoved(content: dict[str, Any], known: State) -> dict[str, int]:
    """The known slots; an egress IP whose addresses changed keeps its old slot under another name."""
    before = {entry["name"]: (entry["ipv4"], entry["ipv6"]) for entry in known.config.get("egress_ips", ())}
    now = {entry["name"]: (entry["ipv4"], entry["ipv6"]) for entry in content["egress_ips"]}
    return {
        name if now.get(name, before.get(name)) == before.get(name) else f"{name} (slot {slot})": slot
        for name, slot in known.slots.items()
    }


def _action(config: Configuration, policy: Any, slots: dict[str, int], policies: dict[str, int]) -> Action:
    egress = config.resolve(policy)
    number = policies[policy.name]
    if egress.shared or egress.primary4 is None or egress.primary6 is None:
        return Action(number, (0, 0), (NO_SLOT, NO_SLOT))
    if egress.fallback is None:
        fallback = NO_SLOT
    else:
        fallback = 0 if egress.fallback == SHARED else slots[egress.fallback]
    return Action(number, (slots[egress.primary4], slots[egress.primary6]), (fallback, fallback))
