"""Applies a configuration file to the gateway of this network namespace.

Run as a process of its own (`python -m enforcer.apply FILE`), which ends when it is done: with it go the
compiler and the validating library, 200 MB that a daemon at rest has no use for. With --start nobody
watched before: the nftables table is written anew, whatever it claims to hold. With --again instead of a file
the configuration in force is applied once more. The result is one JSON document on stdout:
{"operations": […], "warnings": […]} or {"error": …, "hint": …, "exit_code": …}.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enforcer.changes import Change, Redecided, Redecision, changes
from enforcer.config import SHARED, Configuration, load
from enforcer.control import report_of
from enforcer.datapath.banks import NO_SLOT, Action
from enforcer.desired import Desired, desired, last_slot, tables_digest
from enforcer.errors import EnforcerError, KernelError, NotInstalledError
from enforcer.facts.places import Database
from enforcer.facts.store import Store
from enforcer.facts.switching import Contents
from enforcer.gateway import Gateway
from enforcer.instance import Instance, not_installed
from enforcer.kernel import links
from enforcer.kernel.namespace import netns_cookie
from enforcer.plan import Operation, SwitchTables, plan
from enforcer.state import LAST_POLICY, LAST_SLOT, State, assign

AGAIN = "--again"


@dataclass(frozen=True)
class Target:
    """A configuration made ready: what the kernel shall hold, and the state that says so."""

    config: Configuration
    wanted: Desired
    contents: Contents
    state: State


def target(config: Configuration, file: str, before: State | None) -> Target:
    """Compiles a configuration; numbers go on from the state before. Touches nothing."""
    known = before or State()
    content = config.model_dump(mode="json")
    last = min(LAST_SLOT, last_slot(config.mark_mask))
    slots = assign((egress.name for egress in config.egress_ips), _unmoved(content, known), last)
    policies = assign((policy.name for policy in config.policies), known.policies, LAST_POLICY)
    wanted = desired(content, slots)
    file_of_places = config.geoip.database
    database = Database(Path(file_of_places)) if file_of_places else None
    state = replace(
        known,
        since=known.since or time.time(),
        config_file=file,
        config=content,
        slots=slots,
        policies=policies,
        tables=tables_digest(content, slots, policies, database.digest if database else ""),
        undo=list(known.undo),
    )
    actions = [_action(config, policy, slots, policies) for policy in config.ordered_policies()]
    contents = Contents(config.tables, actions, config.private_networks, database)
    return Target(config, wanted, contents, state)


def _unmoved(content: dict[str, Any], known: State) -> dict[str, int]:
    """Slots of egress IPs that still have the same addresses; another address is another egress IP."""
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


def planned(gateway: Gateway, aim: Target, *, distrust_table: bool = False) -> list[Operation]:
    """The operations that applying would take."""
    actual = gateway.actual(aim.wanted)
    if distrust_table and actual.table is not None:
        actual = replace(actual, table="")
    return plan(aim.wanted, actual, gateway.previous, aim.state.tables)


def check_file(file: Path) -> Configuration:
    """The validated file. Raises ConfigError; touches nothing."""
    return load(file, interfaces=links.links())


@dataclass(frozen=True)
class Outlook:
    """What applying a file would do."""

    operations: list[Operation]
    changes: list[Change]
    redecided: Redecided
    warnings: list[str]


def plan_file(file: Path) -> Outlook:
    """What applying the file would take, which policies change, and which live flows are concerned."""
    config = check_file(file)
    instance = Instance(netns_cookie())
    gateway = Gateway(instance)
    aim = target(config, str(file), gateway.state)
    operations = planned(gateway, aim)
    redecided = Redecided()
    before = gateway.state.config if gateway.state else {}
    if before and any(isinstance(operation, SwitchTables) for operation in operations):
        with ExitStack() as opened:
            store = None
            # An earlier version kept no facts: nobody has a session.
            with suppress(NotInstalledError):
                store = opened.enter_context(Store(instance.facts_file, create=False))
            redecided = Redecision(aim, operations, gateway.maps(), store).of_flows()
    warnings = [str(warning) for warning in config.warnings]
    return Outlook(operations, changes(before, aim.state.config) if before else [], redecided, warnings)


def apply_file(file: Path, *, start: bool = False) -> dict[str, list[str]]:
    """Applies the file, or changes nothing: after a failure what was in force before is put back.

    At a daemon's ``start`` the table is written anew: its digest doesn't tell of rules that somebody changed.
    """
    config = check_file(file)
    instance = Instance(netns_cookie())
    with instance.change_lock():
        return _apply(Gateway(instance), config, str(file), distrust_table=start)


def apply_again() -> dict[str, list[str]]:
    """Applies the configuration in force once more, whatever its file says by now.

    For what it refers to and has changed (the database of places), and to give its tables more room.
    """
    instance = Instance(netns_cookie())
    with instance.change_lock():
        gateway = Gateway(instance)
        if gateway.state is None or not gateway.state.config:
            raise not_installed()
        config = Configuration.model_validate(gateway.state.config)
        return _apply(gateway, config, gateway.state.config_file)


def _apply(
    gateway: Gateway, config: Configuration, file: str, *, distrust_table: bool = False
) -> dict[str, list[str]]:
    aim = target(config, file, gateway.state)
    operations = planned(gateway, aim, distrust_table=distrust_table)
    before = gateway.state
    try:
        gateway.apply(operations, aim.wanted, aim.contents, aim.state)
    except Exception as error:
        try:
            _put_back(gateway, before, aim.wanted)
        except EnforcerError as second:
            message = f"{error}; and what was in force before could not be put back: {second.message}"
            raise KernelError(message, second.hint) from error
        raise
    gateway.drop_stale_pins()
    return {
        "operations": [str(operation) for operation in operations],
        "warnings": [str(warning) for warning in config.warnings],
    }


def _put_back(gateway: Gateway, before: State | None, failed: Desired) -> None:
    # The file has what was in force, and what was noted to undo since.
    gateway.state = State.load(gateway.instance.state_file) or before
    if gateway.state is None or not gateway.state.config:
        gateway.down()
        return
    aim = target(Configuration.model_validate(gateway.state.config), gateway.state.config_file, gateway.state)
    actual = gateway.actual(aim.wanted, upgrade=False)
    operations = plan(aim.wanted, actual, failed, aim.state.tables)
    gateway.apply(operations, aim.wanted, aim.contents, aim.state)
    gateway.drop_stale_pins()


def main(arguments: list[str]) -> int:
    """The process's entry: the file, and --start if a daemon starts; or --again alone."""
    # Half a plan is worse than a late end, and who started us waits for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        if arguments == [AGAIN]:
            result: dict[str, Any] = dict(apply_again())
        else:
            result = dict(apply_file(Path(arguments[0]), start="--start" in arguments))
    except EnforcerError as error:
        result = report_of(error)
    except OSError as error:
        result = report_of(KernelError(f"applying {arguments[0]}: {error}"))
    json.dump(result, sys.stdout)
    return 0 if "error" not in result else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
