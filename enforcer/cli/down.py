"""The command `enforcer down`: removes everything that was installed."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from enforcer.cli.app import Command, GlobalOptions
from enforcer.errors import EnforcerError, LaterVersionError

if TYPE_CHECKING:
    from enforcer.instance import Instance


@click.command("down", cls=Command)
@click.pass_obj
def command(options: GlobalOptions) -> None:
    """Remove everything that was ever installed; ends the daemon first."""
    try:
        done = _tear_down(options.instance)
    except KeyboardInterrupt:
        raise EnforcerError(
            "interrupted: some of it may be removed already",
            "`enforcer down` removes the rest, `enforcer run` installs everything again.",
        ) from None
    for line in done:
        click.echo(line)


def _tear_down(instance: Instance) -> list[str]:
    """Removes everything, also what a later version installed, as far as this one understands its state."""
    from enforcer.gateway import state, teardown

    file, daemon = instance.state_file, instance.daemon_pid()
    try:
        before = state.State.load(file)
        done = teardown.tear_down(instance)
    except LaterVersionError:
        done = []
        if daemon is not None:
            # A running daemon would write its own state again.
            with suppress(LaterVersionError):
                teardown.tear_down(instance)
            done.append(f"ended the daemon (pid {daemon})")
        state.salvage(file)
        before = state.State.load(file)
        done += teardown.tear_down(instance)
    if before is not None and before.foreign:
        kinds = ", ".join(before.foreign)
        done.append(f"left: what enforcer {before.version} has changed and this version cannot undo: {kinds}")
    return done
