"""The effect on packets and flows of repeated policy switches under full load."""

from __future__ import annotations

import json
import random
import subprocess
import time
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.figures import reloads
from bench.report.results import Claim, Row, Sample, bound
from bench.rig import documents, traffic_facts
from bench.rig.generator import Stream
from bench.rig.measure import Bench, entered
from bench.rig.peers import Enforcer
from enforcer.address import port, unpack
from enforcer.config import Configuration
from enforcer.constants import UDP
from enforcer.control.interpreter import PYTHON
from enforcer.datapath.maps import Maps
from enforcer.gateway.state import State
from enforcer.policy.facts import Connection
from enforcer.policy.tables import MatchTables, compile_tables
from lab.netns import LabError

ASKED = 500
STORM = "Policies switched every 100 ms under load"
_LOST, _CHANGED, _WRONG = (
    "packets lost",
    "established flows changed",
    f"of {ASKED} new flows, decided by neither generation",
)
_POLICIES = 100
_OLD, _NEW = 16384, 512
"""Packets of established flows and new flows, sent in alternation: conntrack has room for some 200,000."""
_ORIGINS = 256
_SECONDS = 3.0


class Storm:
    """The process that switches policies; a context manager."""

    def __init__(self, peer: Enforcer, regions: Path):
        command = [*PYTHON, "-m", "bench.figures.reloads", str(_POLICIES), str(regions)]
        self._process = subprocess.Popen(
            peer.wire.gateway.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Storm:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__()
            raise LabError("the process that switches did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> list[float]:
        """Ends the process; returns when each switch was in force, in seconds since the first one began."""
        said, _ = self._process.communicate("end\n", timeout=30)
        if self._process.returncode:
            raise LabError(f"the process that switches ended with exit code {self._process.returncode}")
        return list(json.loads(said))


def storm(bench: Bench) -> None:
    """Counts lost packets, old flows whose egress changed, and new flows that neither generation decided."""
    bench.say(STORM)
    regions = traffic_facts.write_regions(bench.directory / "regions.mmdb", prefixes=1000)
    generations = reloads.generations(_POLICIES)
    with ExitStack() as stack:
        peer = Enforcer(
            bench.programs,
            bench.directory,
            documents.located(generations[0], regions),
            "-storm",
            informed=True,
        )
        entered([peer], stack)
        maps = stack.enter_context(closing(peer.maps()))
        judge = Judge(generations, peer)
        rows: list[Row] = []
        for family in (4, 6):
            rows += _rage(bench, peer, family, regions=regions, maps=maps, judge=judge)
    claims = [
        Claim(row.figure, row.case, row.subject, row.unit, row.median, 0.0)
        for row in rows
        if row.subject in (_LOST, _CHANGED, _WRONG)
    ]
    claims += [bound(row, 1.2 * reloads.EVERY, row.subject) for row in rows if row.unit == "s"]
    bench.add(rows, claims)


def _rage(bench: Bench, peer: Enforcer, family: int, *, regions: Path, maps: Maps, judge: Judge) -> list[Row]:
    peer.reset()
    old = Stream(family, UDP, origins=16, flows=4096, origin_port=8001)
    new = Stream(family, UDP, origins=_ORIGINS)
    bench.generator.send(peer.wire, old, old.flows, timed=False)
    before = _decided(maps)
    if len(before) != old.flows:
        raise LabError(f"{len(before):,} of {old.flows:,} flows are there before the first switch")
    sent = lost = fresh = 0
    with Storm(peer, regions) as raging:
        end = time.monotonic() + (2.0 if bench.quick else _SECONDS)
        while time.monotonic() < end:
            for stream, count, start in ((old, _OLD, 0), (new, _NEW, fresh)):
                run = bench.generator.send(peer.wire, stream, count, start=start, timed=False)
                sent += run.sent
                lost += run.sent - peer.delivered(run)
            fresh += _NEW
        switches = raging.end()
    after = _decided(maps)
    changed = sum(after.get(key) != decision for key, decision in before.items())
    others = {key: decision for key, decision in after.items() if key not in before}
    chosen = random.Random(family).sample(sorted(others), min(ASKED, len(others)))
    wrong = sum(not judge.allows(key, others[key]) for key in chosen)
    took = [later - earlier for earlier, later in pairwise(switches)]
    figures: list[tuple[str, str, list[float]]] = [
        ("switches", "", [len(switches)]),
        ("from one switch to the next", "s", took),
        ("packets sent", "", [sent]),
        (_LOST, "", [lost]),
        (_CHANGED, "", [changed]),
        ("new flows", "", [len(others)]),
        (_WRONG, "", [wrong]),
    ]
    return [
        Row(STORM, f"IPv{family}", what, unit, tuple(Sample(value) for value in values))
        for what, unit, values in figures
    ]


Decision = tuple[int, int, bytes, int]
"""Policy, slot, source address, and time of the flow's creation."""


def _decided(maps: Maps) -> dict[bytes, Decision]:
    keys, flows = maps.flows.items()
    return {
        key.tobytes(): (
            int(flow["policy"]),
            int(flow["slot"]),
            flow["egress_address"].tobytes(),
            int(flow["created"]),
        )
        for key, flow in zip(keys, flows, strict=True)
    }


class Judge:
    """Compares decisions with those that the policies of each generation make."""

    def __init__(self, generations: tuple[list[dict[str, Any]], ...], peer: Enforcer):
        state = State.load(peer.instance.state_file)
        assert state is not None
        self._key = np.dtype(peer.maps().flows.key)
        self._generations: list[tuple[MatchTables, list[tuple[int, int]]]] = []
        slots = {entry["ipv4"]: state.slots[entry["name"]] for entry in state.config["egress_ips"]}
        for policies in generations:
            config = Configuration.model_validate(documents.gateway(policies))
            outcomes = [
                (state.policies[policy["name"]], slots[policy["egress"]["ipv4"]])
                for policy in sorted(policies, key=lambda one: one["precedence"])
            ]
            self._generations.append((compile_tables(config.policies), outcomes))

    def allows(self, key: bytes, decision: Decision) -> bool:
        """Whether one of the generations makes this decision."""
        connection = self._connection(key)
        for tables, outcomes in self._generations:
            index = tables.decide(connection)
            if index is not None and outcomes[index] == decision[:2]:
                return True
        return False

    def _connection(self, key: bytes) -> Connection:
        row = np.frombuffer(key, dtype=self._key)[0]
        return traffic_facts.connection(
            unpack(row["client"]), unpack(row["origin"]), port(row["client_port"]), int(row["protocol"])
        )
