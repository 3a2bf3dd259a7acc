"""``python -m lab.demo``: the whole demo, in a lab of its own that is removed afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import click

from enforcer.errors import EnforcerError
from lab import features
from lab.demo import commands, life, limit, rows, wire
from lab.demo.screen import Screen
from lab.demo.stage import Stage, configuration
from lab.gateway import LabGateway
from lab.netns import LabError
from lab.services import Services
from lab.topology import Lab, stale_labs

PREFIX = "demo"
INTERRUPTED = 130  # 128 + SIGINT, as in a shell


@click.command()
@click.option(
    "--limit",
    "connections",
    type=click.IntRange(10, 40_000),
    default=1_000,
    show_default=True,
    help="Connections per origin that the limit is shown with; 40,000 take longer.",
)
def main(connections: int) -> None:
    """Drive every kind of traffic through a gateway and show what the origins saw of it.

    Exit code 0 if all was as it should be, 1 if not. Nothing stays behind.
    """
    if lacking := features.missing():
        raise LabError(f"the demo needs {'; '.join(lacking)}")
    for prefix in stale_labs(PREFIX):  # left by demos that were killed
        Lab(prefix).down()
    screen = Screen()
    try:
        with Lab(f"{PREFIX}{os.getpid()}") as lab:
            play(lab, screen, connections)
    except KeyboardInterrupt:
        click.echo("Interrupted; the lab is gone.", err=True)
        sys.exit(INTERRUPTED)
    except OSError as error:  # a connection failed that the next steps need
        raise LabError(f"the demo cannot go on: {error}") from error
    sys.exit(0 if screen.good else 1)


def play(lab: Lab, screen: Screen, connections: int) -> None:
    """Run the demo's parts in a lab that is built."""
    services = Services(lab)
    with screen.working("starting nginx, unbound, sshd, HTTP/3 and the other servers"):
        services.start()
    config = configuration(lab)
    stage = Stage(lab, services, LabGateway(lab, config), config)
    found = life.footprint(lab.gw)
    caught = wire.capture(lab).start()
    with screen.working("enforcer run, until it is ready"):
        stage.gateway.start()

    screen.heading("Which address each kind of traffic leaves from")
    screen.columns()
    _rows(stage, screen, rows.MAIN)
    stage.gateway.reload({**config, "proxy": {"tcp": True, "udp": False}})
    _rows(stage, screen, [rows.UDP_OFF])
    stage.gateway.reload(config)
    life.addresses_away(stage, screen)
    _rows(stage, screen, [rows.ADDRESS_GONE])
    life.addresses_back(stage, screen)
    _rows(stage, screen, [rows.ADDRESS_BACK])

    limit.show(stage, screen, connections)
    life.show(stage, screen)
    commands.show(stage, screen)
    life.down(stage, screen, found)
    wire.show(caught, screen)
    screen.summary()


def _rows(stage: Stage, screen: Screen, which: Iterable[rows.Row]) -> None:
    for row in which:
        screen.title(row.title, row.program)
        for result in rows.play(stage, row):
            screen.result(result)


if __name__ == "__main__":
    try:
        main()
    except EnforcerError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
