"""`enforcer run`."""

from __future__ import annotations

from contextlib import suppress

import click

from enforcer.cli.app import Command, GlobalOptions


@click.command("run", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """The daemon, in the foreground: apply the file, then keep it so.

    SIGHUP reads the file again. SIGTERM ends the daemon and leaves enforcement in place.
    """
    from enforcer.control import worker

    instance = options.instance
    with instance.daemon_lock():
        process = worker.start(options.file, worker.START)
        from enforcer.daemon import Daemon

        Daemon(instance, options.file, _say).run(process)


def _say(line: str) -> None:
    """What nobody can read any more must not end the daemon, nor a path that is no UTF-8."""
    with suppress(OSError):
        click.echo(line.encode(errors="backslashreplace"))
