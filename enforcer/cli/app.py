"""The command itself: global options, commands loaded when they are called, errors as messages."""

from __future__ import annotations

import importlib
import keyword
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from enforcer import __version__
from enforcer.control import log
from enforcer.control.protocol import ReportedError
from enforcer.errors import ConfigError, EnforcerError

VERBS = ("run", "reload", "relearn", "down", "check", "session")
NOUNS = (
    *("status", "policies", "egress", "origins", "flows", "reasons"),
    *("sessions", "hosts", "dns", "explain", "plan"),
)
OTHERS = ("policy", "import", "completion")


class Commands(click.Group):
    """Imports a command's module when it is used: `status` need not load what `run` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs, then nouns, in the order of the documentation."""
        return [*VERBS, *NOUNS, *OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        # `import` is a word of Python's.
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        found: click.Command = importlib.import_module(f"enforcer.cli.{module}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What changes something is listed apart from what only looks."""
        for title, names in (("Verbs change", VERBS), ("Nouns show", NOUNS), ("Other", OTHERS)):
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(80)) for name, one in commands if one])


class Command(click.Command):
    """A command whose errors are messages on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs it."""
        try:
            return super().invoke(ctx)
        except EnforcerError as error:
            _fail(ctx, error)


class Subject(Command, click.Group):
    """Several commands under one word."""


def _fail(ctx: click.Context, error: EnforcerError) -> NoReturn:
    # Each fault of a file begins with its place, also if the daemon found it.
    located = isinstance(error, ConfigError | ReportedError) and error.exit_code == ConfigError.exit_code
    text = error.message if located else f"error: {error.message}"
    for line in filter(None, (text, error.hint)):
        # Of `run` and `reload` as systemd runs them, stderr is the journal.
        click.echo(log.prefixed(line, logging.ERROR), err=True)
    ctx.exit(error.exit_code)


class GlobalOptions:
    """The global options; `instance` is the gateway that they name."""

    def __init__(self, netns: str | None, file: Path):
        self.netns = netns
        self.file = file

    @property
    def instance(self) -> Any:
        """The gateway of this network namespace. Raises UsageError, PrivilegeError."""
        from enforcer.instance import Instance
        from enforcer.kernel.namespace import netns_cookie

        return Instance(netns_cookie())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--netns", metavar="NAME", help="Act on the gateway in this network namespace (ip netns).")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=True),
    default=Path("/etc/enforcer/enforcer.yaml"),
    show_default=True,
    help="The configuration file.",
)
@click.version_option(__version__)
@click.pass_context
def entry(ctx: click.Context, netns: str | None, file: Path) -> None:
    """Dedicated egress IPs on a Linux gateway, enforced in the kernel's path.

    `run` is the daemon. The nouns show what is enforced, with or without it; each takes --json.
    """
    ctx.obj = GlobalOptions(netns, file.absolute())
    if netns is not None and not ctx.resilient_parsing:
        from enforcer.kernel.namespace import enter

        try:
            enter(netns)
        except EnforcerError as error:
            _fail(ctx, error)


def main() -> None:
    """The console script."""
    try:
        entry(prog_name="enforcer")
    except BrokenPipeError:  # `enforcer flows | head`
        sys.stderr.close()
        sys.exit(0)
