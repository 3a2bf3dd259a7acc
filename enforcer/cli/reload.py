"""The command `enforcer reload`: makes the daemon apply its file again."""

from __future__ import annotations

import logging

import click

from enforcer.cli.app import Command, GlobalOptions


@click.command("reload", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """Make the daemon apply its file again; waits and prints the changes."""
    from enforcer.control import log, protocol

    result = protocol.ask(protocol.daemon_of(options.instance), "reload")
    for warning in result["warnings"]:
        click.echo(log.prefixed(f"warning: {warning}", logging.WARNING), err=True)
    lines = [*(f"restored: {operation}" for operation in result.get("restored", ())), *result["operations"]]
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("nothing changed")
