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
        from enforcer.control import log
        from enforcer.daemon import Daemon

        log.configure()
        Daemon(instance, options.file, _print_ready).run(process)


def _print_ready(line: str) -> None:
    """Prints to stdout, which may have no reader any more: that must not end the daemon."""
    with suppress(OSError):
        click.echo(line.encode(errors="backslashreplace"))
