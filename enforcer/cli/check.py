"""The command `enforcer check`: validates the configuration file."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions


@click.command("check", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """Validate the file; changes nothing. Exit code 2 if it has faults."""
    from enforcer.gateway.preview import check_file, config_warnings

    config = check_file(options.file)
    for warning in config_warnings(config):
        click.echo(f"warning: {warning}", err=True)
    click.echo(
        f"{options.file}: valid; location {config.location}, {len(config.egress_ips)} egress IPs, "
        f"{len(config.policies)} policies"
    )
