"""The command `enforcer reload`: makes the daemon apply its file again."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions


@click.command("reload", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """Make the daemon apply its file again; waits and prints the changes."""
    from enforcer.control import protocol

    result = protocol.ask(protocol.daemon_of(options.instance), "reload")
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    for operation in result["operations"]:
        click.echo(operation)
    if not result["operations"]:
        click.echo("nothing changed")
