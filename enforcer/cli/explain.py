"""`enforcer explain`."""

from __future__ import annotations

import ipaddress
from typing import Any

import click

from enforcer.cli.app import Command, Settings
from enforcer.cli.output import json_option, number, print_json

EPHEMERAL_PORT = 49152  # RFC 6335, 6: the first dynamic port


class Address(click.ParamType):
    """An IPv4 or IPv6 address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """From text."""
        try:
            return ipaddress.ip_address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address", param, ctx)


port = click.IntRange(0, 65535)


@click.command("explain", cls=Command)
@click.option("--src", type=Address(), required=True, help="The client's address.")
@click.option("--sport", type=port, default=EPHEMERAL_PORT, show_default=True, help="The client's port.")
@click.option("--dst", type=Address(), required=True, help="The origin's address.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), required=True)
@click.option("--dport", type=port, help="The origin's port; needed for tcp and udp.")
@json_option
@click.pass_obj
def command(
    settings: Settings, *, src: Any, sport: int, dst: Any, protocol: str, dport: int | None, as_json: bool
) -> None:
    """What would become of a connection, asked of the loaded program; nothing is sent.

    \b
    enforcer explain --src 10.0.1.2 --dst 198.51.100.7 --protocol tcp --dport 443
    """
    from enforcer.views.explain import Question, explain
    from enforcer.views.source import Source

    if dport is None and protocol != "icmp":
        raise click.UsageError(f"--dport is needed for {protocol}")
    found = explain(Source(settings.instance), Question(src, dst, protocol, sport, dport or 0))
    if as_json:
        print_json(found)
        return
    click.echo(f"verdict    {found['verdict']}")
    click.echo(f"reason     {found['reason']}: {found['description']}")
    click.echo(f"policy     {found['policy'] or '-'}")
    if found["egress"] is not None:
        click.echo(f"egress     {found['egress']}")
        click.echo(f"source     {found['source_ip']}")
        click.echo(f"capacity   {number(found['active'])} of {number(found['limit'])} in use at this origin")
