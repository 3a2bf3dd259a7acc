"""The `enforcer` command: global options, lazily imported subcommands, errors as messages."""

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
    """Imports a command's module on use: `status` does not load the imports of `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs, then nouns, in the order of the documentation."""
        return [*VERBS, *NOUNS, *OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        # `import` is a Python keyword, so its module is import_.
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        found: click.Command = importlib.import_module(f"enforcer.cli.{module}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists commands that change something apart from those that only show."""
        for title, names in (("Verbs change", VERBS), ("Nouns show", NOUNS), ("Other", OTHERS)):
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(80)) for name, one in commands if one])


class Command(click.Command):
    """A command whose errors are messages on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EnforcerError as error:
            _fail(ctx, error)


class Subject(Command, click.Group):
    """A group of subcommands."""


def _fail(ctx: click.Context, error: EnforcerError) -> NoReturn:
    # Faults of a file begin with file and line, also those that the daemon reports.
    located = isinstance(error, ConfigError | ReportedError) and error.exit_code == ConfigError.exit_code
    text = error.message if located else f"error: {error.message}"
    for line in filter(None, (text, error.hint)):
        # Of `run` and `reload` as systemd runs them, stderr is the journal.
        click.echo(log.prefixed(line, logging.ERROR), err=True)
    ctx.exit(error.exit_code)


class GlobalOptions:
    """The global options."""

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
    """Dedicated egress IPs on a Linux gateway, enforced in the kernel's packet path.

    `run` is the daemon. The nouns show what is enforced, with or without a daemon; each takes --json.
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
