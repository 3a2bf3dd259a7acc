"""The command `python -m bench [--quick] [--rounds N] [--only NAME] [--write]`: measures, prints, writes."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from bench.figures import (
    changes,
    closes,
    crowded,
    established,
    flows,
    memory,
    names,
    process,
    refused,
    scale,
    stall,
    storm,
    throughput,
    web,
)
from bench.report import report
from bench.report.results import Results
from bench.rig.generator import Generator
from bench.rig.machine import machine
from bench.rig.measure import Bench
from bench.rig.programs import Programs
from bench.rig.wire import remove, stale
from enforcer.errors import EnforcerError

DOCUMENTATION = Path("docs/bench")
_PAGE = 140  # columns, where there is no terminal
FIGURES: dict[str, Callable[[Bench], None]] = {
    "new": flows.new,
    "established": established.established,
    "crowded": crowded.crowded,
    "refused": refused.refused,
    "stall": stall.stall,
    "iperf": throughput.iperf,
    "web": web.short,
    "closes": closes.closes,
    "memory": memory.memory,
    "policies": scale.policies,
    "packet-policies": scale.packet_policies,
    "egress-ips": scale.egress_ips,
    "switch": changes.policies,
    "storm": storm.storm,
    "sessions": changes.sessions,
    "regions": changes.regions,
    "names": names.names,
    "start": process.start,
    "rest": process.rest,
}


@click.command()
@click.option("--quick", is_flag=True, help="2 rounds: to see that it works.")
@click.option("--rounds", type=click.IntRange(1, 25), help="Rounds of each figure; default 5.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(FIGURES)), help="Only this figure; may be repeated."
)
@click.option("--write", is_flag=True, help=f"Write the results into {DOCUMENTATION}.")
@click.option("--cpu", type=int, default=1, show_default=True, help="The generator's processor.")
def main(quick: bool, rounds: int | None, only: tuple[str, ...], write: bool, cpu: int) -> None:
    """Speed and memory against plain nftables, in network namespaces of its own.

    Exit code 1: a limit is missed.
    """
    if write and only:
        raise click.UsageError("--write writes the whole page: it needs all figures, so leave --only out")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    console = Console() if sys.stdout.isatty() else Console(width=_PAGE)
    remove(list(stale()))
    try:
        with Programs() as programs, tempfile.TemporaryDirectory(prefix="enforcer-bench-") as directory:
            generator = Generator(programs, cpu)
            results = Results(machine(generator))
            with console.status("") as status:
                rounds = rounds or (2 if quick else 5)
                bench = Bench(
                    programs,
                    generator,
                    Path(directory),
                    results,
                    rounds,
                    quick,
                    status.update,
                    report.written(DOCUMENTATION),
                )
                for name in only or FIGURES:
                    began = time.monotonic()
                    try:
                        FIGURES[name](bench)
                    except EnforcerError as error:  # the others can still be measured
                        results.failures[name] = str(error)
                    results.took[name] = round(time.monotonic() - began, 1)
            results.machine["generator_had_cpu_alone"] = generator.alone
    except EnforcerError as error:
        raise click.ClickException(str(error)) from error
    report.show(results, console)
    if write:
        report.write(results, DOCUMENTATION)
    sys.exit(0 if not results.failures and all(claim.holds for claim in results.claims) else 1)


if __name__ == "__main__":
    main()
