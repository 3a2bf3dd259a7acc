"""Applies a configuration file to the gateway of this network namespace.

It runs as a process (`python -m enforcer.workers.apply FILE`), whose end frees the compiler and the
validation library: 200 MB that an idle daemon does not need. --start: no daemon watched the nftables table,
so it is written again, whatever its digest. --again, instead of a file: applies the configuration in force
once more. The result is one JSON document on stdout:
{"operations": […], "restored": […], "warnings": […]} or {"error": …, "hint": …, "exit_code": …}; with
--progress, lines that begin with "#" come before it (enforcer/control/worker.py).

Steps that may take long or block (reading the file and what it names, compiling policies) come before the
change lock is taken. A plan that a killed process left unfinished is healed first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from enforcer.config import Configuration
from enforcer.control import log
from enforcer.control.protocol import report_of
from enforcer.control.worker import AGAIN, CHANGING, PROGRESS, READS, START
from enforcer.errors import EnforcerError, KernelError, LockedError
from enforcer.gateway.compiled_config import PreparedConfig, compile_prepared
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.plan import (
    plan,
)
from enforcer.gateway.preview import check_file, config_warnings, planned
from enforcer.gateway.repin import ensure_reachable
from enforcer.gateway.state import FORMAT, LOST, State
from enforcer.instance import Instance, not_installed
from enforcer.kernel import nft
from enforcer.kernel.namespace import netns_cookie

Progress = Callable[[str], None]


def apply_file(
    file: Path, *, start: bool = False, progress: Progress = lambda _: None
) -> dict[str, list[str]]:
    """Applies the file; after a failure it restores the former state. Raises EnforcerError.

    At a daemon's ``start`` the nftables table is rewritten: its digest does not reveal changed rules.
    """
    progress("read the configuration")
    prepared = PreparedConfig.of(check_file(file), str(file))
    with _changing(progress) as gateway:
        healed = _heal_first(gateway, progress)
        done = _apply(gateway, prepared, progress, distrust_table=start)
        return {**done, "restored": healed}


def apply_again(*, progress: Progress = lambda _: None) -> dict[str, list[str]]:
    """Applies the configuration in force again, whatever the file contains by now.

    It serves to read a changed MaxMind DB, to give the policy tables more room, and to heal an unfinished
    plan.
    """
    progress("read the configuration in force")
    gateway = Gateway(Instance(netns_cookie()))
    if gateway.state is None or not gateway.state.config:
        raise not_installed()
    content, prepared = gateway.state.config, _in_force(gateway.state)
    with _changing(progress) as gateway:
        if gateway.state is None or gateway.state.config != content:
            raise LockedError("another configuration was put in force meanwhile", "See `enforcer status`.")
        if gateway.state.half_done is not None:
            return {"operations": [], "restored": _heal(gateway, prepared, progress), "warnings": []}
        return _apply(gateway, prepared, progress)


@contextmanager
def _changing(progress: Progress) -> Iterator[Gateway]:
    """The gateway, under the change lock. A hung process that holds the lock is killed.

    Raises EnforcerError if the parent process has ended meanwhile: `down` may have run since.
    """
    instance = Instance(netns_cookie())
    progress("wait for the change lock")
    with instance.change_lock(kill=True):
        if os.getppid() != _PARENT:
            raise EnforcerError("the process that asked for this has ended")
        progress(CHANGING)
        gateway = Gateway(instance)
        ensure_reachable(gateway)
        yield gateway


_PARENT = os.getppid()


def _in_force(state: State) -> PreparedConfig:
    try:
        config = Configuration.model_validate(state.config)
    except ValueError as error:
        raise KernelError(
            f"enforcer {state.version} applied the configuration in force, which this version does not "
            "understand",
            "Apply the file instead: enforcer reload",
        ) from error
    return PreparedConfig.of(config, state.config_file)


def _apply(
    gateway: Gateway, prepared: PreparedConfig, progress: Progress, *, distrust_table: bool = False
) -> dict[str, list[str]]:
    orphaned = _is_orphaned(gateway.state) and nft.installed() is not None
    if orphaned and gateway.state is None:
        gateway.state = State(undo=[LOST])
    before = gateway.state
    compiled = compile_prepared(prepared, before)
    operations = planned(gateway, compiled, distrust_table=distrust_table)
    try:
        gateway.apply(operations, compiled.wanted, compiled.contents, compiled.state, progress=progress)
    except Exception as error:
        if orphaned:
            raise  # the former state is unknown; its table keeps the gateway closed
        try:
            _put_back(gateway, before, progress)
        except EnforcerError as second:
            message = f"{error}; and what was in force before could not be put back: {second.message}"
            raise KernelError(message, second.hint) from error
        raise
    return {
        "operations": [str(operation) for operation in operations],
        "restored": [],
        "warnings": config_warnings(prepared.config),
    }


def _is_orphaned(state: State | None) -> bool:
    """Whether the state in force is unknown, also after a failed plan."""
    return state is None or (LOST in state.undo and not state.config)


def _put_back(gateway: Gateway, before: State | None, progress: Progress) -> None:
    if before is None or not before.config:
        gateway.state = State.load(gateway.instance.state_file)  # with the present undo list
        gateway.down()
        return
    gateway.revert_to(before)
    _heal(gateway, _in_force(before), progress)


def _heal_first(gateway: Gateway, progress: Progress) -> list[str]:
    """Heals an unfinished plan before the new one; if that fails, the new plan removes its remains."""
    state = gateway.state
    if state is None or state.half_done is None or not state.config:
        return []
    try:
        return _heal(gateway, _in_force(state), progress)
    except EnforcerError:
        gateway.state = State.load(gateway.instance.state_file)
        return []


def _heal(gateway: Gateway, prepared: PreparedConfig, progress: Progress) -> list[str]:
    """Brings the kernel from an unfinished plan to the state in force; returns what was done."""
    compiled = compile_prepared(prepared, gateway.state)
    # upgrade=False: programs of newer sources are loaded by an ordinary plan.
    actual = gateway.actual(compiled.wanted, upgrade=False)
    if actual.table is not None:
        actual = replace(actual, table="")
    operations = plan(
        compiled.wanted, actual, gateway.previous, compiled.state.tables, unfinished=gateway.unfinished
    )
    gateway.apply(operations, compiled.wanted, compiled.contents, compiled.state, progress=progress)
    return [str(operation) for operation in operations]


def _refuse_earlier_daemon() -> None:
    """Raises EnforcerError for a daemon of an earlier version, which cannot read the state of this one."""
    state = State.load(Instance(netns_cookie()).state_file)
    if state is not None and state.format < FORMAT:
        raise EnforcerError(
            "the daemon that runs is of an earlier version and cannot take part in an upgrade",
            "Restart it, connections go on: systemctl restart enforcer",
        )


def _say(line: str) -> None:
    """Reports progress to the daemon, which may have ended meanwhile."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), f"# {line}\n".encode(errors="backslashreplace"))


def main(arguments: list[str]) -> int:
    """The entry point; arguments: FILE [--start], or --again, and --progress."""
    # Ignored, because the parent waits and an unfinished plan is worse than a late end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log.configure()
    progress = _say if PROGRESS in arguments else lambda _: None
    try:
        if READS not in arguments:
            _refuse_earlier_daemon()
        if arguments[0] == AGAIN:
            result: dict[str, Any] = dict(apply_again(progress=progress))
        else:
            result = dict(apply_file(Path(arguments[0]), start=START in arguments, progress=progress))
    except EnforcerError as error:
        result = report_of(error)
    except OSError as error:
        result = report_of(KernelError(f"applying {arguments[0]}: {error}"))
    try:
        json.dump(result, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        # The daemon has ended. The interpreter would report the same error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if "error" not in result else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
