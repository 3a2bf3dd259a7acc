"""The command `enforcer plan`: what applying the file would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import json_option, print_json

if TYPE_CHECKING:
    from enforcer.gateway.flow_impact import Impact
    from enforcer.gateway.operations import (
        Operation,
    )
    from enforcer.gateway.preview import Preview

MOST_CLIENTS = 10


@click.command("plan", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show what applying the file would do; changes nothing.

    Lists the operations, the added, removed and changed policies and lists, and the number of live flows by
    client that would get another egress IP if reopened. Live flows keep their egress IP.
    """
    from enforcer.gateway.preview import preview_file

    preview = preview_file(options.file)
    for warning in preview.warnings:
        click.echo(f"warning: {warning}", err=True)
    rows = [_row(operation, preview) for operation in preview.operations]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(row["operation"])
        if row["changes"]:
            for change in preview.changes:
                click.echo(f"  {change}")
        if row["flows"]:
            click.echo(f"  {_sentence(preview.impact)}")
    if not rows:
        click.echo("nothing to do: the file is in force")


def _row(operation: Operation, preview: Preview) -> dict[str, Any]:
    """An operation's row; the switch of policies has the changes and the affected flows."""
    from enforcer.gateway.operations import (
        SwitchTables,
    )

    switches = isinstance(operation, SwitchTables)
    changes = preview.changes if switches else []
    return {
        "operation": str(operation),
        "changes": [
            {"change": change.kind, "what": change.what, "fields": list(change.fields)} for change in changes
        ],
        "flows": preview.impact.flows if switches else 0,
        "clients": preview.impact.clients if switches else {},
    }


def _sentence(found: Impact) -> str:
    shown = [f"{client} ({count:,})" for client, count in list(found.clients.items())[:MOST_CLIENTS]]
    if len(found.clients) > MOST_CLIENTS:
        shown.append(f"{len(found.clients) - MOST_CLIENTS:,} more")
    flows = "1 live flow" if found.flows == 1 else f"{found.flows:,} live flows"
    return f"{flows} would get another egress IP if reopened: {', '.join(shown)}"
