"""The command `enforcer import`: converts other products' rules to policies."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from enforcer.cli.app import Command, Subject
from enforcer.cli.output import json_option, print_json


@click.command("cloudflare", cls=Command)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@json_option
@click.pass_context
def cloudflare(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Convert the egress rules in FILE, JSON of Cloudflare's Gateway rules API, to policies; `-` is stdin.

    \b
    curl -H "Authorization: Bearer $TOKEN" \\
      https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/gateway/rules > rules.json
    enforcer import cloudflare rules.json > policies.yaml

    The YAML goes to stdout. stderr names, one per line, what could not be converted and what the
    configuration file needs besides (egress IPs, lists). A rule whose expression is refused is kept as a
    comment.

    Exit code 0: every egress rule was converted unchanged; rules of other kinds are only named. 1: a rule was
    left out or changed. 2: FILE cannot be read.
    """
    from enforcer.config import cloudflare as rules
    from enforcer.config.cloudflare_yaml import render

    if str(file) == "-":
        name = "stdin"
        raw: bytes = sys.stdin.buffer.read(rules.MAX_BYTES + 1)
        document = rules.read(name, raw)
    else:
        name = str(file)
        document = rules.read_file(file)
    imported = rules.convert(rules.rules_of(document, name))
    if as_json:
        print_json(
            {
                "policies": imported.policies,
                "lists": {name: [] for name in imported.lists},
                "egress_ips": imported.egress_ips,
                "left_out": [
                    {"policy": item.policy, "reason": item.refused} for item in imported.items if item.refused
                ],
                "notes": [asdict(note) for note in imported.notes],
            }
        )
    else:
        click.echo(render(imported), nl=False)
        for note in imported.notes:
            click.echo(str(note), err=True)
        click.echo(rules.summary(imported), err=True)
    ctx.exit(0 if imported.complete else 1)


command = Subject("import", help="Convert other products' rules to policies.", commands=[cloudflare])
