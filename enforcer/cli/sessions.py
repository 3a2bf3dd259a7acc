"""The command `enforcer sessions`: the clients' sessions."""

from __future__ import annotations

from typing import Any

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import Column, json_option, print_json, print_table


def _groups(groups: list[dict[str, str]]) -> str:
    return ", ".join(group.get("name") or group.get("id") or group["email"] for group in groups) or "-"


def _attributes(attributes: dict[str, Any]) -> str:
    texts = ((key, value if isinstance(value, str) else "|".join(value)) for key, value in attributes.items())
    return ", ".join(f"{key}={value}" for key, value in texts) or "-"


def _list(values: list[str]) -> str:
    return ", ".join(values) or "-"


COLUMNS = (
    Column("client", "Client"),
    Column("email", "E-mail"),
    Column("name", "Name"),
    Column("groups", "Groups", _groups),
    Column("saml_attributes", "SAML", _attributes),
    Column("device_posture", "Posture passed", _list),
    Column("vnet_id", "Virtual network"),
    Column("proxy_endpoint", "Proxy endpoint"),
    Column("expires", "Expires"),
    Column("since", "Since"),
    Column("origin", "From"),
)


@click.command("sessions", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show the clients' sessions, from the watched file and from commands."""
    from enforcer.inspect.sessions import sessions

    rows = list(sessions(options.instance))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, COLUMNS, "There are no sessions: policies with identity selectors match no client.")
