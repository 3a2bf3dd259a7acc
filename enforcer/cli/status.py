"""The command `enforcer status`: a summary of the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import json_option, number, print_json

STATES = {
    "running": "enforcing",
    "unattended": "enforcing, but no daemon runs: nothing is swept or watched (enforcer run)",
    "down": "nothing is enforced (enforcer run)",
}


@click.command("status", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show a summary of the whole gateway."""
    from enforcer.inspect.status import status

    found = status(options.instance)
    if as_json:
        print_json(found)
        return
    for name, value in _lines(found):
        click.echo(f"{name:<16} {value}")


def _half_done(found: dict[str, Any]) -> str:
    plan = found["half_done"]
    if plan["under_way"]:
        return f"half done: under way since {plan['since']} (pid {plan['pid']})"
    healed = "the daemon restores what is in force" if found["daemon_pid"] else "enforcer run, enforcer down"
    return f"half done since {plan['since']}: its process (pid {plan['pid']}) did not complete it; {healed}"


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "state", STATES[found["state"]]
    if found["half_done"]:
        yield "plan", _half_done(found)
    yield "daemon", f"pid {found['daemon_pid']}" if found["daemon_pid"] else "none"
    if found["not_attached"]:
        yield "not attached", f"{', '.join(found['not_attached'])}: nothing passes there (enforcer run)"
    if found["state"] != "down":
        sides, proxy, egress = found["interfaces"], found["proxy"], found["egress_ips"]
        yield "since", found["since"]
        yield "location", found["location"]
        yield "interfaces", "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
        yield "proxied", ", ".join(name.upper() for name in ("tcp", "udp") if proxy[name]) or "nothing"
        yield (
            "egress IPs",
            f"{egress['in_use']} in use, {egress['available']} available, {egress['configured']} configured",
        )
        yield "policies", number(found["policies"])
        yield "live flows", number(found["flows"])
        path = found["fast_path"]
        yield "fast path", f"on, {number(path['flows'])} of the live flows" if path["on"] else "off"
        yield "tables", _tables(found["tables"])
        yield "refused", number(found["refused"])
        yield "leaks prevented", number(found["leaks_prevented"])
        yield "configuration", f"{found['config_file']}, applied {found['applied']}"
        for warning in found["warnings"]:
            yield "warning", warning
    versions = found["versions"]
    yield "versions", f"enforcer {versions['enforcer']}, Linux {versions['kernel']}"


def _tables(tables: dict[str, Any]) -> str:
    """Full tables, evicted flows and corrected counters."""
    full = [
        f"{name} full, {number(row['used'])} of {number(row['size'])}"
        for name, row in tables.items()
        if isinstance(row, dict) and row["full"]
    ]
    parts = full or ["none is full"]
    if tables.get("evicted"):
        parts.append(f"{number(tables['evicted'])} flows evicted")
    if tables.get("corrected"):
        parts.append(f"counters corrected by {number(tables['corrected'])}")
    return "; ".join(parts)
