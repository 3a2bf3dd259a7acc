"""The time that starting and commands take, and what the daemon uses at rest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.report.results import Row, Sample, bound
from bench.rig import documents, traffic_facts
from bench.rig.measure import Bench
from bench.rig.wire import Wire
from enforcer.constants.bpf import State
from enforcer.control.interpreter import PYTHON
from enforcer.datapath import sweep
from enforcer.datapath.maps import Maps
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance
from lab.configuration import Document, dump
from lab.netns import LabError, execute
from lab.program import Program

START = "Start and commands"
REST = "Daemon at rest with 1,000,000 flows"
MILLION = 1_000_000
_MAP_ENTRIES = 1_048_576
_POLICIES = 1000
_TICKS = os.sysconf("SC_CLK_TCK")
_SWEEP_COMES = 300.0
_SWEEP_TAKES = 0.1  # seconds; a sweep of a million flows takes more, the daemon's other work less


class Daemon(Program):
    """`enforcer run` on a gateway, and commands with the same configuration file."""

    def __init__(self, wire: Wire, directory: Path, document: Document):
        self.wire = wire
        self.file = directory / f"{wire.gateway.name}.yaml"
        self.write(document)
        self.enforcer = [*PYTHON, "-m", "enforcer", "--config", str(self.file)]
        super().__init__(wire.gateway, [*self.enforcer, "run"], directory, "daemon", ready=self._is_ready)

    def _is_ready(self) -> bool:
        return any(line.startswith("ready") for line in self.said().splitlines())

    def write(self, document: Document) -> None:
        """Replaces the content of the configuration file."""
        self.file.write_text(dump(document))

    def run(self, *arguments: str) -> float:
        """Runs one command to its end; returns the seconds that it took."""
        began = time.monotonic()
        execute(self.namespace.command([*self.enforcer, *arguments]))
        return time.monotonic() - began

    def down(self) -> None:
        """Ends the daemon and removes what it installed, so that the next start is a cold one."""
        self.stop()
        self.run("down")
        self.output.unlink(missing_ok=True)


@contextmanager
def running(bench: Bench, name: str, document: Document, *, sinks: bool = True) -> Iterator[Daemon]:
    """A daemon on a gateway of its own; the block starts it, and it is stopped after the block."""
    with Wire(name, bench.programs, sinks=sinks) as wire:
        daemon = Daemon(wire, bench.directory, document)
        try:
            yield daemon
        finally:
            daemon.stop()


def start(bench: Bench) -> None:
    """Measures a cold start until ready, compilation included, and status with 1,000 policies."""
    bench.say(START)
    regions = traffic_facts.write_regions(bench.directory / "regions.mmdb", prefixes=1000)
    many = documents.located(documents.policies(_POLICIES), regions)
    with running(bench, "start", documents.gateway()) as daemon:
        found: dict[str, list[Sample]] = {}

        def keep(what: str, seconds: float) -> None:
            found.setdefault(what, []).append(Sample(seconds))

        for number in range(bench.few):
            daemon.write(documents.gateway())
            began = time.monotonic()
            daemon.start()
            keep("`enforcer run` until ready", time.monotonic() - began)
            keep("the same, processor time of all its processes", _processor_time(daemon.pid, children=True))
            daemon.write(many)
            daemon.run("reload")
            keep(f"`enforcer status`, {_POLICIES:,} policies", daemon.run("status"))
            daemon.down()
            bench.say(f"{START}: round {number + 1}")
    limits = (2.0, None, 0.5)
    rows = [Row(START, "", subject, "s", tuple(samples)) for subject, samples in found.items()]
    bench.add(
        rows,
        [bound(row, limit, row.subject) for row, limit in zip(rows, limits, strict=True) if limit],
    )


def rest(bench: Bench) -> None:
    """Measures memory and processor time of a daemon that only sweeps."""
    bench.say(REST)
    document = documents.gateway(limits={"connections_per_origin": 40000, "flows": _MAP_ENTRIES})
    with running(bench, "rest", document) as daemon:
        daemon.start()
        gateway = Gateway(Instance(daemon.namespace.cookie()))
        maps = gateway.maps()
        fill(maps, MILLION)
        bench.say(f"{REST}: waiting for sweeps")
        share = _share(daemon.pid)
        resident = _resident(daemon.pid)
        daemon.stop()
        assert gateway.pins is not None
        _, timeouts = maps.timeouts.items()
        sweeps = []
        for _ in range(bench.few):
            result = sweep.sweep(maps, gateway.pins, timeouts, time.monotonic(), sample=250)
            # The daemon has released some flows: its sweep takes a sample, of which conntrack has none.
            if result.flows < 0.99 * MILLION or result.reaped:
                raise LabError(f"swept {result.flows} flows and reaped {result.reaped}")
            sweeps.append(Sample(result.seconds))
        maps.close()
    rows = [
        Row(REST, "", "resident memory", "MiB", (Sample(resident),)),
        Row(REST, "", "share of one core", "%", (Sample(share),)),
        Row(REST, "", "a sweep", "s", tuple(sweeps)),
    ]
    bench.add(
        rows, [bound(row, limit, row.subject) for row, limit in zip(rows, (64.0, 2.0, 1.0), strict=True)]
    )


def fill(maps: Maps, count: int) -> None:
    """Adds established TCP flows with the current time as their last activity."""
    keys = np.zeros(count, dtype=maps.flows.key)
    number = np.arange(count, dtype=np.uint32)
    keys["client"][:, 2] = 0xFFFF0000
    keys["client"][:, 3] = (0x0A400000 + number // 60000).astype(">u4").view("<u4")
    keys["client_port"] = (1024 + number % 60000).astype(">u2").view("<u2")
    keys["origin"][:, 2] = 0xFFFF0000
    keys["origin"][:, 3] = int.from_bytes(bytes([198, 18, 0, 1]), "little")
    keys["origin_port"] = int.from_bytes((443).to_bytes(2, "big"), "little")
    keys["protocol"] = 6
    flows = np.zeros(count, dtype=maps.flows.value)
    flows["last_seen"] = flows["created"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    flows["state"] = flows["timeout"] = State.ESTABLISHED
    flows["counted"] = flows["replied"] = 1
    maps.flows.put_many(keys, flows)


def _share(pid: int) -> float:
    """Percent of one core that the daemon takes from the end of one sweep to the end of the next.

    A sweep takes a part of a second and the pause after it a hundred times as long: any other interval
    contains too many sweeps, or none.
    """
    _next_sweep(pid)
    before, began = _processor_time(pid), time.monotonic()
    _next_sweep(pid)
    return 100 * (_processor_time(pid) - before) / (time.monotonic() - began)


def _next_sweep(pid: int) -> None:
    """Returns when the daemon has taken processor time for a sweep and is idle again."""
    deadline = time.monotonic() + _SWEEP_COMES
    before = now = _processor_time(pid)
    while now - before < _SWEEP_TAKES or _processor_time(pid) > now:
        if time.monotonic() > deadline:
            raise LabError(f"the daemon did not sweep within {_SWEEP_COMES:.0f} s")
        now = _processor_time(pid)
        time.sleep(0.5)


def _processor_time(pid: int, *, children: bool = False) -> float:
    """Seconds of user and system time together (proc_pid_stat(5)); with those of children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11 : 15 if children else 13]) / _TICKS


def _resident(pid: int) -> float:
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise LabError(f"no VmRSS of process {pid}")
