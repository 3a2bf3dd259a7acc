"""The command `enforcer egress`: the dedicated egress IPs."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import (
    Column,
    Right,
    json_option,
    number,
    percent,
    print_json,
    print_table,
    yes,
)

COLUMNS = (
    Column("name", "Egress"),
    Column("location", "Location"),
    Column("ipv4", "IPv4"),
    Column("ipv6", "IPv6"),
    Column("available", "Available", yes),
    Right("active", "Active", number),
    Column("busiest_origin", "Busiest origin"),
    Right("utilisation", "Used", percent),
)


@click.command("egress", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show the dedicated egress IPs, their availability and utilisation."""
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.egress import egress

    rows = egress(GatewayReader(options.instance))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, COLUMNS, "There are no dedicated egress IPs.")
