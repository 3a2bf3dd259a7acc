"""`enforcer reload`."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, Settings


@click.command("reload", cls=Command)
@click.pass_obj
def command(settings: Settings) -> None:
    """Have the daemon read its file again; waits, and prints what changed."""
    from enforcer.control import protocol

    result = protocol.ask(protocol.daemon_of(settings.instance), "reload")
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    for operation in result["operations"]:
        click.echo(operation)
    if not result["operations"]:
        click.echo("nothing changed")
