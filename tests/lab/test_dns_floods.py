"""Tests of other clients' DNS look-ups during a client's flood of questions or while a daemon hangs."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from truth import families, leaves_from, running, stopped, wait_for

from enforcer.instance import Instance
from lab import names
from lab.clients import TIMEOUT, family_of
from lab.configuration import LAX1, Document
from lab.dns_flood import POOL
from lab.gateway import LabGateway
from lab.program import Program, module, start_all
from lab.servers import Reporter
from lab.topology import CLIENT, CLIENT2, ORIGIN1, RESOLVER, Lab

RATE = 300
"""Questions a second of the flood, with 64 addresses per answer: twice the rate that once stopped all DNS."""
VISITS = 60
UNNOTICED = 0.5
"""Maximum seconds of a look-up on a busy machine; without flood protection it takes seconds or fails."""
ZONE = "shop.lab"
BYTES = 32 << 20
"""Maximum size of the facts store: one client's share, the log, and the other facts."""


def config(lab: Lab, **dns: object) -> Document:
    egress = {"ipv4": LAX1[4], "ipv6": LAX1[6]}
    shop = {
        "name": "shop",
        "precedence": 10,
        "traffic": f'any(net.fqdn.domains[*] == "{ZONE}")',
        "egress": egress,
    }
    rest = {"name": "rest", "precedence": 1000, "traffic": "", "egress": "default"}
    return lab.config(policies=[shop, rest], dns=dns)


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[None]:
    """origin1 with the pool's addresses and a reporter, and the resolver."""
    lab.net.ip(f"route add {POOL[4]}/18 via {ORIGIN1[4]}", f"route add {POOL[6]}/64 via {ORIGIN1[6]}")
    lab.origin1.ip(f"route add local {POOL[4]}/18 dev lo", f"route add local {POOL[6]}/64 dev lo")
    programs = [
        Reporter(lab.origin1, lab.directory),
        talking(lab, "resolver", "serve", RESOLVER[4], RESOLVER[6]),
    ]
    try:
        start_all(programs)
        yield
    finally:
        for program in programs:
            program.stop()


def talking(lab: Lab, role: str, *arguments: str) -> Program:
    """A process of lab.dns_flood."""
    name = f"dns-{arguments[0]}"
    program = Program(
        getattr(lab, role),
        module("dns_flood", *arguments),
        lab.directory,
        name,
        ready=lambda: "ready" in program.said(),
    )
    return program


class Visits(NamedTuple):
    seen: set[str]
    slowest: float
    usual: float
    """The 95th percentile."""


def visit(lab: Lab, family: int, first: int) -> Visits:
    """Another client looks up names that no cache holds and connects to each at once."""

    def work() -> list[names.Visit]:
        with socket.socket(family_of(RESOLVER[family]), socket.SOCK_DGRAM) as server:
            server.settimeout(TIMEOUT)
            server.connect((RESOLVER[family], 53))
            kind = "A" if family == 4 else "AAAA"
            return [
                names.visit(server, f"n{number}.{ZONE}", kind, 9000, number)
                for number in range(first, first + VISITS)
            ]

    visits = lab.client2.call(work)
    took = sorted(one.look_up for one in visits)
    return Visits({one.seen for one in visits}, took[-1], took[-VISITS // 20])


def bytes_of_facts(lab: Lab) -> int:
    file = Instance(lab.gw.cookie()).facts_file
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))


def count(gateway: LabGateway, what: str) -> int:
    found: dict[str, int] = {row["what"]: row["number"] for row in gateway.json("dns")}
    return found.get(what, 0)


@families
@pytest.mark.parametrize("listed", [False, True], ids=["any-resolver", "listed-resolver"])
def test_a_flood_is_not_noticed_by_another_client(
    lab: Lab, servers: None, family: int, listed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    resolvers = [RESOLVER[family]] if listed else []
    with running(lab, config(lab, resolvers=resolvers)) as gateway:
        before = visit(lab, family, 0)
        with talking(lab, "client", "ask", CLIENT[family], RESOLVER[family], str(RATE)):
            wait_for(lambda: count(gateway, "answer-backlog") > RATE, "the flood above its share")
            during = visit(lab, family, 1000)
        size = bytes_of_facts(lab)
        with capsys.disabled():
            print(
                f"\n95 % of look-ups: {before.usual * 1e3:.1f} ms, "
                f"under the flood {during.usual * 1e3:.1f} ms (slowest {during.slowest * 1e3:.0f} ms); "
                f"facts {size / 1e6:.1f} MB"
            )
        # Each first connection matched the policy of its name, so each name was learnt.
        assert during.seen == before.seen == {leaves_from(LAX1, family, CLIENT2[6])}
        assert during.usual < UNNOTICED
        assert size < BYTES
        assert count(gateway, "answer-overflow") == count(gateway, "question-overflow") == 0


def look_up(lab: Lab, family: int, number: int) -> float | None:
    """The seconds until the answer; None without an answer."""
    with lab.client.socket(family_of(RESOLVER[family]), socket.SOCK_DGRAM) as server:
        server.settimeout(2.0)
        server.connect((RESOLVER[family], 53))
        began = time.monotonic()
        try:
            assert names.look_up(server, f"n{number}.{ZONE}", "A" if family == 4 else "AAAA", number)
        except TimeoutError:
            return None
        return time.monotonic() - began


@families
def test_a_daemon_that_hangs_where_answers_are_to_be_dropped(lab: Lab, servers: None, family: int) -> None:
    with running(lab, config(lab, when_down="drop")) as gateway:
        with stopped(gateway.pid):
            assert look_up(lab, family, 4000) is None
        assert look_up(lab, family, 4001) is not None


def deadline_processes(daemon: int) -> list[int]:
    """The deadline processes among this daemon's children."""
    found = []
    for children in Path(f"/proc/{daemon}/task").glob("*/children"):
        for pid in children.read_text(encoding="ascii").split():
            with suppress(FileNotFoundError):
                if b"enforcer.dns.deadline" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
    return found


def test_it_ends_with_the_daemon(lab: Lab, servers: None) -> None:
    with running(lab, config(lab)) as gateway:
        (process,) = deadline_processes(gateway.pid)
        gateway.kill()
        wait_for(lambda: not Path(f"/proc/{process}").exists(), "the end of the process")
        assert look_up(lab, 4, 6000) is not None
        gateway.start()
        assert look_up(lab, 4, 6001) is not None
        (process,) = deadline_processes(gateway.pid)
        gateway.stop()
        assert not Path(f"/proc/{process}").exists()


# The following tests share an enforcer.


@pytest.fixture(scope="module")
def enforced(lab: Lab, servers: None) -> Iterator[LabGateway]:
    with running(lab, config(lab)) as gateway:
        yield gateway


@families
def test_a_daemon_that_hangs_holds_up_no_answer(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    late = count(enforced, "answer-late")
    with stopped(enforced.pid):
        took = [look_up(lab, family, number) for number in range(2000, 2008)]
    assert all(one is not None and one < 1.0 for one in took), took
    assert visit(lab, family, 3000).seen == {leaves_from(LAX1, family, CLIENT2[6])}
    assert count(enforced, "answer-late") - late == len(took)


@families
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_the_process_that_bounds_it_is_kept_alive(enforced: LabGateway, family: int, how: int) -> None:
    lab = enforced.lab
    (before,) = deadline_processes(enforced.pid)
    os.kill(before, how)
    assert look_up(lab, family, 5000) is not None
    wait_for(lambda: deadline_processes(enforced.pid) not in ([], [before]), "another process")
    assert "bounds how long DNS answers are held" in enforced.said()
    with stopped(enforced.pid):
        took = look_up(lab, family, 5001)
    assert took is not None
    assert took < 1.0
