"""The command `enforcer run`: the daemon."""

from __future__ import annotations

from contextlib import suppress

import click

from enforcer.cli.app import Command, GlobalOptions


@click.command("run", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """Run the daemon: apply the file, then keep the kernel in that state.

    It stays in the foreground. SIGHUP applies the file again. SIGTERM ends the daemon; enforcement stays in
    place.
    """
    from enforcer.control import worker

    instance = options.instance
    with instance.daemon_lock():
        process = worker.start(options.file, worker.START)
        from enforcer.daemon import Daemon

        Daemon(instance, options.file, _say).run(process)


def _say(line: str) -> None:
    """Prints a line; a closed stdout or a path that is not UTF-8 must not end the daemon."""
    with suppress(OSError):
        click.echo(line.encode(errors="backslashreplace"))
