"""The command `enforcer hosts`: names learnt from DNS answers."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import Column, Right, duration, json_option, print_json, print_table

COLUMNS = (
    Column("host", "Host"),
    Column("address", "Address"),
    Column("client", "Client"),
    Right("expires", "Expires", duration),
)


@click.command("hosts", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show names learnt from DNS answers, for net.fqdn.* in policies."""
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.hosts import hosts

    rows = hosts(GatewayReader(options.instance))
    if as_json:
        print_json(rows)
    else:
        print_table(
            rows, COLUMNS, "No names are known: no policy uses host names, or no client has asked a resolver."
        )
