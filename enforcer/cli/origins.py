"""The command `enforcer origins`: live connections by origin."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import Column, Right, json_option, number, percent, print_json, print_table

COLUMNS = (
    Column("egress", "Egress"),
    Column("source_ip", "Source"),
    Column("protocol", "Proto"),
    Column("origin_ip", "Origin"),
    Right("origin_port", "Port"),
    Right("active", "Active", number),
    Right("limit", "Limit", number),
    Right("utilisation", "Used", percent),
    Right("peak", "Peak", number),
    Right("total", "Total", number),
    Right("refused", "Refused", number),
    Right("closed", "Closed", number),
)


@click.command("origins", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show the live connections by egress address and origin."""
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.origins import origins

    rows = origins(GatewayReader(options.instance))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, COLUMNS, "No origin has been connected to yet.")
