"""`enforcer status`: a summary of the whole gateway."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from enforcer import __version__
from enforcer.control import protocol
from enforcer.datapath import fast_entries, fast_path, table_usage
from enforcer.datapath.maps import Maps
from enforcer.datapath.table_usage import Fill
from enforcer.errors import EnforcerError, LayoutError, NotInstalledError
from enforcer.gateway.reader import GatewayReader
from enforcer.gateway.state import State
from enforcer.inspect.attached import unattached
from enforcer.inspect.egress import egress
from enforcer.inspect.reasons import packets_of, reasons
from enforcer.inspect.warnings import warnings
from enforcer.instance import Instance
from enforcer.kernel import conntrack

SIDES = ("inside", "outside", "other")
# Reasons of packets that were dropped because they would have left with a wrong address.
LEAKS = ("leak", "conntrack-invalid", "unmarked", "untranslatable")
# Seconds to wait for the daemon's answer.
_PATIENCE = 2.0


def status(instance: Instance) -> dict[str, Any]:
    """The summary; ``state`` is "running" (enforced, with a daemon), "unattended" (no daemon) or "down"."""
    pid = instance.daemon_pid()
    try:
        reader = GatewayReader(instance)
    except NotInstalledError:
        return _down(pid) | {"half_done": _half_done(instance, State.load(instance.state_file))}
    rows = egress(reader)
    counters = reasons(reader)
    config = reader.config
    _, values = reader.origins
    return {
        "state": "running" if pid else "unattended",
        "since": datetime.fromtimestamp(reader.state.since, UTC).isoformat(timespec="seconds"),
        "location": config["location"],
        "interfaces": {side: config["interfaces"].get(side, []) for side in SIDES},
        "proxy": config["proxy"],
        "egress_ips": {
            "configured": len(rows),
            "available": sum(row["available"] for row in rows),
            "in_use": sum(row["active"] > 0 for row in rows),
        },
        "policies": len(config["policies"]),
        "flows": int(values["active"].sum()),
        "refused": sum(row["flows"] for row in counters if row["verdict"] == "refused"),
        "leaks_prevented": packets_of(counters, *LEAKS),
        "daemon_pid": pid,
        "versions": {
            "enforcer": __version__,
            "applied_by": reader.state.version,
            "kernel": os.uname().release,
            "programs": reader.state.programs[:12],
        },
        "config_file": reader.state.config_file,
        "applied": datetime.fromtimestamp(reader.state.applied, UTC).isoformat(timespec="seconds"),
        "fast_path": _fast_path(reader.maps),
        "not_attached": unattached(reader),
        "half_done": _half_done(instance, reader.state),
        "tables": _tables(reader.maps),
        "warnings": [*warnings(reader), *_of_daemon(instance, pid)],
    }


def _of_daemon(instance: Instance, pid: int | None) -> list[str]:
    """The daemon's warnings; empty if it does not answer, because it is busy or of another version."""
    if pid is None:
        return []
    try:
        found = protocol.ask(instance.control_socket, "warnings", patience=_PATIENCE)
    except EnforcerError:
        return []
    return list(found["warnings"])


def _half_done(instance: Instance, state: State | None) -> dict[str, Any] | None:
    """The plan that is under way, or that was interrupted and is going to be healed, or None."""
    if state is None or state.half_done is None:
        return None
    pid = state.half_done["pid"]
    return {
        "since": datetime.fromtimestamp(state.half_done["since"], UTC).isoformat(timespec="seconds"),
        "pid": pid,
        "under_way": instance.changing_pid() == pid,
        "operations": state.half_done["operations"],
    }


def _fast_path(maps: Maps) -> dict[str, Any]:
    """Whether it is on, and the number of flows with valid entries."""
    try:
        return {"on": fast_path.is_on(maps), "flows": fast_entries.count_fast(maps)}
    except LayoutError:  # an earlier version's programs have none
        return {"on": False, "flows": 0}


def _tables(maps: Maps) -> dict[str, Any]:
    """Usage of the tables that traffic fills, evicted flows, and corrections of counters."""
    try:
        fills = {
            name: table_usage.fill(getattr(maps, name)) for name in ("flows", "origins", "client_prefixes")
        }
        events = {"evicted": table_usage.evicted(maps), "corrected": table_usage.corrected(maps)}
    except LayoutError:  # an earlier version's programs have other maps
        return {}
    fills["conntrack"] = Fill(*conntrack.fill())
    rows = {name: {"used": fill.used, "size": fill.size, "full": fill.full} for name, fill in fills.items()}
    return {**rows, **events}


def _down(pid: int | None) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(
        (
            "since",
            "location",
            "interfaces",
            "proxy",
            "egress_ips",
            "policies",
            "flows",
            "refused",
            "leaks_prevented",
        )
    )
    versions = {"enforcer": __version__, "applied_by": None, "kernel": os.uname().release, "programs": None}
    return {
        "state": "down",
        **empty,
        "daemon_pid": pid,
        "versions": versions,
        "config_file": None,
        "applied": None,
        "fast_path": None,
        "not_attached": None,
        "half_done": None,
        "tables": None,
        "warnings": None,
    }
