"""The command `enforcer policy`: tests policies against expectations."""

from __future__ import annotations

from pathlib import Path

import click

from enforcer.cli.app import Command, GlobalOptions, Subject
from enforcer.cli.output import Column, Right, json_option, print_json, print_table

FAILED = (
    Column("name", "Expectation"),
    Right("line", "Line"),
    Column("connection", "Connection"),
    Column("difference", "Difference"),
)
TRACE = (
    Right("precedence", "Prec."),
    Column("policy", "Policy"),
    Column("outcome", "Outcome"),
    Column("selector", "Failed selector"),
    Column("reason", "Because"),
)


@click.command("test", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def test(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Compare the expectations in FILE with the configuration's policies.

    Needs neither root nor a gateway, so a file can be checked before it is applied.

    \b
    enforcer --config enforcer.yaml policy test expectations.yaml

    \b
    expectations:
      - name: accounting reaches the bank
        client: 10.1.0.9
        dst: 198.51.100.7
        dport: 443
        protocol: tcp
        session: {email: ann@corp.example, groups: [{name: Finance}]}
        expect: {policy: bank, egress: lax-1}

    `expect` names the policy (null: none matches), the egress (an egress IP by name or address, shared,
    nearest, refused) or the reason. docs/policy-test.md has all keys.

    Exit code 0: all hold. 1: one fails; it is shown with the outcome of every policy. 2: a file has faults.
    """
    from enforcer.inspect.expectations import judge_file

    options: GlobalOptions = ctx.obj
    rows = judge_file(options.file, file)
    failed = [row for row in rows if not row["ok"]]
    if as_json:
        print_json({"expectations": len(rows), "failed": len(failed), "results": rows})
    else:
        if failed:
            lines = [row | {"difference": text} for row in failed for text in row["failures"]]
            print_table(lines, FAILED, "")
            click.echo()
        for row in failed:
            click.echo(f"{row['name']}: {row['reason']}: {row['description']}")
            if row["trace"]:
                print_table(row["trace"], TRACE, "")
            click.echo()
        click.echo(f"{len(rows) - len(failed):,} of {len(rows):,} expectations hold")
    ctx.exit(1 if failed else 0)


command = Subject("policy", help="Test policies against a table of expectations.", commands=[test])
