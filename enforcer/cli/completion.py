"""The command `enforcer completion`: prints a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from enforcer.cli.app import Command


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    enforcer completion bash > /etc/bash_completion.d/enforcer
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "enforcer", "_ENFORCER_COMPLETE").source())
