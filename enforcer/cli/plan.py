"""`enforcer plan`."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, Settings
from enforcer.cli.output import json_option, print_json


@click.command("plan", cls=Command)
@json_option
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """The operations that applying the file now would take; takes none."""
    from enforcer.apply import plan_file

    operations, warnings = plan_file(settings.file)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json([{"operation": operation} for operation in operations])
        return
    for operation in operations:
        click.echo(operation)
    if not operations:
        click.echo("nothing to do: the file is in force")
