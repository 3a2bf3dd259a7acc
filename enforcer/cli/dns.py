"""The command `enforcer dns`: the learner's counters."""

from __future__ import annotations

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.cli.output import Column, Right, json_option, number, print_json, print_table

COLUMNS = (Column("what", "What"), Right("number", "Number", number), Column("meaning", "Meaning"))


@click.command("dns", cls=Command)
@json_option
@click.pass_obj
def command(options: GlobalOptions, as_json: bool) -> None:
    """Show counters of the clients' DNS questions and answers."""
    from enforcer.inspect.dns import dns

    rows = dns(options.instance)
    if as_json:
        print_json(rows)
    else:
        print_table(
            rows, COLUMNS, "Nothing is learnt: no policy uses host names, or no client has asked a resolver."
        )
