"""The command `enforcer relearn`: invalidates the fast-path entries."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import number


@click.command("relearn", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """Invalidate all fast-path entries.

    Connections continue: their next packets take the kernel's path, which creates new entries. The daemon
    does the same when a route, a link, an address, a neighbour or an nftables rule changes.
    """
    from enforcer.gateway.invalidate_fast_path import invalidate_entries

    flows = invalidate_entries(options.instance)
    if flows is None:
        click.echo("the fast path is off: it has no entries")
    else:
        click.echo(f"invalidated the fast-path entries of {number(flows)} flows")
