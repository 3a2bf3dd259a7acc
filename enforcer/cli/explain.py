"""The command `enforcer explain`: the verdict about a connection."""

from __future__ import annotations

import ipaddress
from typing import Any

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import Column, Right, json_option, number, print_json, print_table
from enforcer.constants import EPHEMERAL_PORT


class Address(click.ParamType):
    """An IPv4 or IPv6 address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return ipaddress.ip_address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address", param, ctx)


class Host(click.ParamType):
    """A host name in the form that policies compare: lower case, no final dot."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = str(value).lower().rstrip(".")
        if not name or not name.isascii() or any(not label for label in name.split(".")):
            self.fail(f"{value!r} is not a host's name (in ASCII: xn--… for others)", param, ctx)
        return name


port = click.IntRange(0, 65535)

TRACE = (
    Right("precedence", "Prec."),
    Column("policy", "Policy"),
    Column("outcome", "Outcome"),
    Column("selector", "Failed selector"),
    Column("reason", "Because"),
)


@click.command("explain", cls=Command)
@click.option("--src", type=Address(), required=True, help="The client's address.")
@click.option("--sport", type=port, default=EPHEMERAL_PORT, show_default=True, help="The client's port.")
@click.option("--dst", type=Address(), required=True, help="The origin's address.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), required=True)
@click.option("--dport", type=port, help="The origin's port; needed for tcp and udp.")
@click.option("--interface", help="The inside interface that it arrives by; default: the one towards --src.")
@click.option("--email", help="Assume that the client has the session with this e-mail address.")
@click.option("--host", type=Host(), help="Assume that the origin's address was learnt for this name.")
@click.option("--trace", is_flag=True, help="Show every policy in order, with the selector that failed.")
@json_option
@click.pass_obj
def command(
    options: GlobalOptions,
    *,
    src: Any,
    sport: int,
    dst: Any,
    protocol: str,
    dport: int | None,
    interface: str | None,
    email: str | None,
    host: str | None,
    trace: bool,
    as_json: bool,
) -> None:
    """Show how the loaded program decides about a connection; sends nothing.

    \b
    enforcer explain --src 10.0.1.2 --dst 198.51.100.7 --protocol tcp --dport 443 --trace
    """
    from enforcer.gateway.reader import GatewayReader
    from enforcer.inspect.explain import Overrides, Question, explain

    if dport is None and protocol != "icmp":
        raise click.UsageError(f"--dport is needed for {protocol}")
    question = Question(src, dst, protocol, sport, dport or 0, interface)
    found = explain(GatewayReader(options.instance), question, Overrides(email, host), trace=trace)
    if as_json:
        print_json(found)
        return
    click.echo(f"verdict    {found['verdict']}")
    click.echo(f"reason     {found['reason']}: {found['description']}")
    click.echo(f"policy     {found['policy'] or '-'}")
    if found["egress"] is not None:
        click.echo(f"egress     {found['egress']}")
    if found["source_ip"] is not None:
        click.echo(f"source     {found['source_ip']}")
        click.echo(f"capacity   {number(found['active'])} of {number(found['limit'])} in use at this origin")
    click.echo(f"interface  {found['interface']}")
    click.echo(f"session    {found['session']}" + (f" ({found['email']})" if found["email"] else ""))
    click.echo(f"hosts      {' '.join(found['hosts']) or '-'}")
    if trace:
        click.echo()
        print_table(found["trace"], TRACE, "There are no policies.")
