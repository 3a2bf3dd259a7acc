"""The time until changed policies, sessions and regions are in force."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import closing
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.figures.process import Daemon, running
from bench.report.results import Row, Sample, bound
from bench.rig import documents, traffic_facts
from bench.rig.measure import Bench
from enforcer.address import words
from enforcer.control import protocol
from enforcer.control.interpreter import PYTHON
from enforcer.datapath import settings
from enforcer.datapath.maps import Maps
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance
from lab.netns import LabError

POLICIES = "Policies changed"
SESSIONS = "Sessions changed"
REGIONS = "Regions changed"
MANY = 100_000
_PREFIXES = 500_000
_WATCHED = (100, 1000, MANY)
_POLL = 0.0002
_PATIENCE = 30.0


class Figures:
    """Samples by subject, in the order of each subject's first sample."""

    def __init__(self, figure: str):
        self.figure = figure
        self._found: dict[str, list[Sample]] = {}
        self._limits: dict[str, float] = {}

    def keep(self, what: str, seconds: float, limit: float | None = None) -> None:
        """Adds a sample; ``limit`` is the limit of its row, in seconds."""
        self._found.setdefault(what, []).append(Sample(seconds))
        if limit is not None:
            self._limits[what] = limit

    def into(self, bench: Bench) -> None:
        """Adds the samples to the results as rows, and the limits as claims."""
        rows = [Row(self.figure, "", what, "s", tuple(samples)) for what, samples in self._found.items()]
        bench.add(
            rows,
            [
                bound(row, self._limits[row.subject], row.subject)
                for row in rows
                if row.subject in self._limits
            ],
        )


def policies(bench: Bench) -> None:
    """Measures compiling and switching alone, and a whole `enforcer reload`; also with many sessions."""
    figures = Figures(POLICIES)
    regions = traffic_facts.write_regions(bench.directory / "regions.mmdb", prefixes=1000)
    sessions = _session_file(bench.directory / "many.jsonl", range(1, MANY + 1))
    with running(bench, "switch", documents.gateway()) as daemon:
        daemon.start()
        for many in (False, True):
            known_of = f", {MANY:,} sessions" if many else ""
            if many:
                daemon.run("session", "load", str(sessions))
            for count, limit in ((1000, None),) if many else ((1000, 0.5), (4000, 2.0)):
                bench.say(f"{POLICIES}: {count:,}{known_of}")
                reloads = bench.few if count == 1000 else 1  # reading a file of 4,000 policies takes seconds
                for chosen in islice(_alternately(documents.policies(count)), reloads):
                    daemon.write(documents.located(chosen, regions))
                    took = daemon.run("reload")
                    figures.keep(f"`enforcer reload`, {count:,} policies{known_of}, as a user waits", took)
                for _ in range(bench.few):
                    took_compile, took_switch = _switch(daemon)
                    figures.keep(f"compile, {count:,} policies{known_of}", took_compile)
                    figures.keep(f"switch, {count:,} policies{known_of}", took_switch)
                    figures.keep(
                        f"compile and switch, {count:,} policies{known_of}", took_compile + took_switch, limit
                    )
    figures.into(bench)


def _alternately(policies: list[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    while True:
        yield policies
        yield documents.swapped(policies)


def _switch(daemon: Daemon) -> tuple[float, float]:
    """Fills the other bank with the policies in force and switches to it, in a child; returns both times."""
    took = json.loads(daemon.namespace.run(*PYTHON, "-m", "bench.figures.switch").stdout)
    return took["compile"], took["switch"]


# --- sessions


def _session_file(path: Path, numbers: Iterable[int]) -> Path:
    """Writes sessions as JSON Lines, each of another user."""
    path.write_text("".join(json.dumps(_session(number)) + "\n" for number in numbers))
    return path


def _client(number: int) -> str:
    return str(ip_address("10.96.0.0") + number)


def _session(number: int) -> dict[str, Any]:
    facts = traffic_facts.session(number)
    return {
        "client": _client(number),
        "email": traffic_facts.user(number),
        "name": facts["identity.name"][0],
        "groups": [{"name": name} for name in facts["identity.groups.name"]],
        "device_posture": list(facts["device_posture.checks.passed"]),
        "vnet_id": facts["net.vnet_id"][0],
        "ttl": 86400,
    }


def sessions(bench: Bench) -> None:
    """Measures loading many sessions and changing one of them, until the classifier's map has the change."""
    figures = Figures(SESSIONS)
    regions = traffic_facts.write_regions(bench.directory / "regions.mmdb", prefixes=1000)
    many = _session_file(bench.directory / "many.jsonl", range(1, MANY + 1))
    own = range(MANY + 1, MANY + 1 + _WATCHED[0])
    watched = _session_file(bench.directory / "watched.jsonl", own)
    document = documents.located(documents.policies(1000), regions, sessions={"file": str(watched)})
    with running(bench, "sessions", document) as daemon:
        for number in range(min(bench.rounds, 2)):
            bench.say(f"{SESSIONS}: round {number + 1}")
            daemon.start()
            with closing(_maps(daemon)) as maps:
                _wait_for(maps, len(own))
                took = daemon.run("session", "load", str(many))
                found = len(maps.sessions.items()[0])
                if found != MANY + len(own):
                    raise LabError(f"{found:,} sessions are in force, {MANY + len(own):,} were loaded")
                figures.keep(f"`enforcer session load`, {MANY:,} sessions", took, 2.0)
                for change in range(5):
                    name = f"changed-{number}-{change}@example.com"
                    took = _ask(daemon, maps, change, name)
                    figures.keep(f"one session changed by the control socket, of {MANY:,}", took, 0.05)
                    took = daemon.run("session", "add", _client(1000 + change), "--email", name)
                    figures.keep("one session changed by command, as a user waits", took)
                    took = _rewrite(maps, watched, own, name)
                    figures.keep(f"one session changed in a watched file of {len(own):,}", took, 0.05)
            daemon.down()
    for count in _WATCHED[1:]:
        _watch_many(bench, figures, regions, count)
    figures.into(bench)


def _watch_many(bench: Bench, figures: Figures, regions: Path, count: int) -> None:
    """Measures changing one session in a watched file of many: the daemon reads the whole file again."""
    numbers = range(1, count + 1)
    watched = _session_file(bench.directory / "watched.jsonl", numbers)
    document = documents.located(documents.policies(1000), regions, sessions={"file": str(watched)})
    with running(bench, f"watched{count}", document) as daemon:
        daemon.start()
        with closing(_maps(daemon)) as maps:
            _wait_for(maps, count)
            for number in range(min(bench.rounds, 2)):
                bench.say(f"{SESSIONS}: a file of {count:,}, round {number + 1}")
                took = _rewrite(maps, watched, numbers, f"changed-{number}@example.com")
                figures.keep(f"one session changed in a watched file of {count:,}", took)


def _wait_for(maps: Maps, sessions: int) -> None:
    _wait(lambda: len(maps.sessions.items()[0]) >= sessions, f"{sessions:,} sessions of the watched file")


def _maps(daemon: Daemon) -> Maps:
    return Gateway(Instance(daemon.namespace.cookie())).maps()


def _wait(done: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not in force after {_PATIENCE:.0f} s")
        time.sleep(_POLL)


def _profile(maps: Maps, client: str) -> int:
    key = np.zeros((), dtype=maps.sessions.key)
    key["client"] = words(ip_address(client))
    found = maps.sessions.get(key)
    return int(found) if found is not None else 0


def _ask(daemon: Daemon, maps: Maps, number: int, email: str) -> float:
    """Seconds from connecting until the daemon reports success; LabError if the map has no new facts then."""
    client = _client(1 + number)
    before = _profile(maps, client)
    socket = Instance(daemon.namespace.cookie()).control_socket
    began = time.monotonic()
    protocol.ask(socket, "session add", session=_session(1 + number) | {"email": email})
    took = time.monotonic() - began
    if _profile(maps, client) in (0, before):
        raise LabError(f"the session of {client} is not in force when the daemon says so")
    return took


def _rewrite(maps: Maps, file: Path, numbers: range, email: str) -> float:
    """Seconds from the rename of a file whose first session has changed until a look-up finds the change."""
    client = _client(numbers[0])
    before = _profile(maps, client)
    lines = [_session(number) for number in numbers]
    lines[0]["email"] = email
    new = file.with_suffix(".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    began = time.monotonic()
    new.rename(file)
    _wait(lambda: _profile(maps, client) != before, f"the session of {client}")
    return time.monotonic() - began


# --- regions


def regions(bench: Bench) -> None:
    """Measures `reload` with a large database of regions; the policies name every country in it."""
    figures = Figures(REGIONS)
    bench.say(f"{REGIONS}: writing a database")
    small = traffic_facts.write_regions(bench.directory / "small.mmdb", prefixes=1000)
    large = traffic_facts.write_regions(bench.directory / "large.mmdb", prefixes=_PREFIXES)
    policies = documents.policies(1000)
    with running(bench, "regions", documents.located(policies, small)) as daemon:
        daemon.start()
        with closing(_maps(daemon)) as maps:
            bench.say(f"{REGIONS}: {_PREFIXES:,} prefixes")
            daemon.write(documents.located(policies, large))
            took = daemon.run("reload")
            bank = settings.read(maps).bank_number
            found = len(maps.inner("regions", bank).items()[0])
            if found < _PREFIXES:
                raise LabError(f"{found:,} prefixes are in force, {_PREFIXES:,} were written")
            figures.keep(f"`enforcer reload`, {_PREFIXES:,} prefixes, 1,000 policies", took, 10.0)
    figures.into(bench)
