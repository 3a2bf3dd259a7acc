"""`enforcer down`."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, Settings
from enforcer.errors import EnforcerError


@click.command("down", cls=Command)
@click.pass_obj
def command(settings: Settings) -> None:
    """Take away everything that was ever installed; ends the daemon first."""
    from enforcer.gateway import take_down

    try:
        done = take_down(settings.instance)
    except KeyboardInterrupt:
        raise EnforcerError(
            "interrupted: some of it may be taken away already",
            "`enforcer down` takes away the rest, `enforcer run` puts all back.",
        ) from None
    for line in done:
        click.echo(line)
