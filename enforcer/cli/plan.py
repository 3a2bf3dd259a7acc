"""`enforcer plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from enforcer.cli.app import Command, Settings
from enforcer.cli.output import json_option, print_json

if TYPE_CHECKING:
    from enforcer.changes import Redecided

MOST_CLIENTS = 10


@click.command("plan", cls=Command)
@json_option
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """What applying the file now would do; does nothing.

    The operations that it would take, the policies and lists that appear, go or change, and how many live
    flows of which clients would leave otherwise if they were opened again. Live flows keep what they have.
    """
    from enforcer.apply import plan_file

    outlook = plan_file(settings.file)
    for warning in outlook.warnings:
        click.echo(f"warning: {warning}", err=True)
    rows: list[dict[str, Any]] = [{"operation": str(operation)} for operation in outlook.operations]
    rows += [
        {"operation": str(change), "change": change.kind, "what": change.what, "fields": list(change.fields)}
        for change in outlook.changes
    ]
    found = outlook.redecided
    if found.flows:
        rows.append({"operation": _sentence(found), "flows": found.flows, "clients": found.clients})
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(row["operation"])
    if not rows:
        click.echo("nothing to do: the file is in force")


def _sentence(found: Redecided) -> str:
    shown = [f"{client} ({count:,})" for client, count in list(found.clients.items())[:MOST_CLIENTS]]
    if len(found.clients) > MOST_CLIENTS:
        shown.append(f"{len(found.clients) - MOST_CLIENTS:,} more")
    flows = "1 live flow" if found.flows == 1 else f"{found.flows:,} live flows"
    return f"{flows} would leave otherwise if opened again, of {', '.join(shown)}"
