"""The command `enforcer reasons`: outcomes by reason."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import Column, Right, json_option, number, print_json, print_table

COLUMNS = (
    Column("reason", "Reason"),
    Column("verdict", "Verdict"),
    Right("packets", "Packets", number),
    Right("flows", "Flows", number),
    Column("description", "Meaning"),
)


@click.command("reasons", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show packets and flows by the reason of their outcome."""
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.reasons import reasons

    rows = reasons(GatewayReader(options.instance))
    if as_json:
        print_json(rows)
    else:
        seen = [row for row in rows if row["packets"] or row["flows"]]
        print_table(seen, COLUMNS, "Nothing has been seen yet.")
