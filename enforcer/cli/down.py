"""`enforcer down`."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, Settings


@click.command("down", cls=Command)
@click.pass_obj
def command(settings: Settings) -> None:
    """Take away everything that was ever installed; ends the daemon first."""
    from enforcer.gateway import take_down

    for line in take_down(settings.instance):
        click.echo(line)
