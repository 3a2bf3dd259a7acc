"""The command `enforcer policies`: the policies in force."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import (
    Column,
    Right,
    duration,
    json_option,
    number,
    print_json,
    print_table,
    yes,
)

COLUMNS = (
    Right("precedence", "Prec."),
    Column("name", "Policy"),
    Column("enabled", "Enabled", yes),
    Column("selectors", "Selectors"),
    Column("egress", "Egress"),
    Column("fallback", "Fallback"),
    Right("matched", "Matched", number),
    Right("last_matched", "Last", duration),
)


@click.command("policies", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show the policies in force, in ascending precedence."""
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.policies import policies

    rows = policies(GatewayReader(options.instance))
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            texts = [row[key] for key in ("traffic", "identity", "device_posture") if row[key]]
            row["selectors"] = texts[0] if len(texts) == 1 else " and ".join(f"({text})" for text in texts)
        print_table(rows, COLUMNS, "There are no policies: everything takes the nearest dedicated egress IP.")
