"""The command `enforcer flows`: the connections."""

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
    size,
)

COLUMNS = (
    Column("protocol", "Proto"),
    Column("client_ip", "Client"),
    Right("client_port", "Port"),
    Column("origin_ip", "Origin"),
    Right("origin_port", "Port"),
    Column("egress", "Egress"),
    Column("source_ip", "Source"),
    Right("source_port", "Port"),
    Column("policy", "Policy"),
    Column("state", "State"),
    Column("path", "Path"),
    Right("packets", "Packets", number),
    Right("fast_packets", "Fast", number),
    Right("bytes", "Bytes", size),
    Right("age", "Age", duration),
    Right("idle", "Idle", duration),
)


@click.command("flows", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show the connections with egress and translation, youngest first."""
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.flows import flows

    rows = flows(GatewayReader(options.instance))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, COLUMNS, "There are no connections.")
