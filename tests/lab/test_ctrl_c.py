"""Tests of Ctrl-C while the daemon works for a command: all or nothing changes, as the command reports."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from truth import families, running, stopped, wait_for

from enforcer.facts.store import Store
from enforcer.instance import Instance
from lab.clients import tcp_ask
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, Lab

MANY = 25_000  # of both families; more than 1 MiB, so a separate process loads them
NOTHING = "error: interrupted: nothing has changed\n"


def by_email(lab: Lab, egress: dict[int, str]) -> Document:
    ann = {"name": "ann", "precedence": 10, "identity": 'identity.email == "ann@corp.example"'}
    return lab.config(policies=[ann | {"egress": {"ipv4": egress[4], "ipv6": egress[6]}}])


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab, by_email(lab, LAX2)) as gateway:
        yield gateway
    assert "Traceback" not in gateway.said()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sessions.jsonl"
    first = [int(ip_address(text)) for text in ("100.64.0.2", "fd64::2")]
    with path.open("w") as written:
        for number in range(MANY):
            client = ip_address(first[number % 2] + number)
            written.write(f'{{"client": "{client}", "email": "user{number}@corp.example"}}\n')
    return path


@pytest.fixture(autouse=True)
def without_sessions(enforced: LabGateway) -> None:
    """Remove all sessions."""
    found = [row["client"] for row in enforced.json("sessions")]
    for some in range(0, len(found), 2000):
        enforced.run("session", "remove", *found[some : some + 2000])


def begin(gateway: LabGateway, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*gateway.enforcer, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def is_asking(process: subprocess.Popen[str]) -> bool:
    """Whether the command is connected to the daemon's socket (proc(5), /proc/net/unix)."""
    place = Path(f"/proc/{process.pid}")
    with suppress(FileNotFoundError):
        links = {str(path.readlink()) for path in (place / "fd").iterdir()}
        lines = [line.split() for line in (place / "net/unix").read_text().splitlines()]
        if any(line[5] == "03" and f"socket:[{line[6]}]" in links for line in lines):
            time.sleep(0.2)
            return True
    return False


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


def count(gateway: LabGateway) -> int:
    with Store(Instance(gateway.lab.gw.cookie()).facts_file, create=False) as store:
        return store.count_sessions()


def pid_of(gateway: LabGateway) -> int:
    assert gateway.pid is not None
    return gateway.pid


def test_before_the_daemon_has_begun(enforced: LabGateway, file: Path) -> None:
    with stopped(pid_of(enforced)):
        process = begin(enforced, "session", "load", str(file))
        wait_for(lambda: is_asking(process))
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert end_of(process) == (1, "", NOTHING)
    time.sleep(1)
    assert count(enforced) == 0
    assert not list(Instance(enforced.lab.gw.cookie()).directory.glob("sessions-*"))


def test_a_second_time(enforced: LabGateway, file: Path) -> None:
    """The second Ctrl-C ends the wait for the answer; the daemon does not execute the request."""
    with stopped(pid_of(enforced)):
        process = begin(enforced, "session", "load", str(file))
        wait_for(lambda: is_asking(process))
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        code, said, complained = end_of(process)
    assert (code, said) == (1, "")
    assert complained.startswith("error: interrupted: the daemon was asked to take back `session load`\n")
    enforced.json("dns")  # the daemon has handled the earlier request by then
    assert count(enforced) == 0
    assert not list(Instance(enforced.lab.gw.cookie()).directory.glob("sessions-*"))


@pytest.mark.parametrize("question", ["status", "dns"])
def test_a_question(enforced: LabGateway, question: str) -> None:
    """A query changes nothing, and an interrupted query prints nothing."""
    with stopped(pid_of(enforced)):
        process = begin(enforced, question)
        wait_for(lambda: is_asking(process))
        process.send_signal(signal.SIGINT)
        assert end_of(process) == (1, "", "\nAborted!\n")


def test_while_another_change_is_under_way(enforced: LabGateway, file: Path) -> None:
    """The request waits for the reload; the interruption removes it from the queue at once."""
    reload = begin(enforced, "reload")
    process = begin(enforced, "session", "load", str(file))
    wait_for(lambda: is_asking(process))
    process.send_signal(signal.SIGINT)
    said = end_of(process)
    assert reload.wait(60) == 0
    assert said == (1, "", NOTHING)
    assert count(enforced) == 0


def test_when_the_first_are_in_force(enforced: LabGateway, file: Path) -> None:
    """Too late to interrupt: the command loads all sessions and reports that."""
    process = begin(enforced, "session", "load", str(file))
    wait_for(lambda: count(enforced) > 0)
    process.send_signal(signal.SIGINT)
    assert end_of(process) == (0, f"{MANY:,} sessions: {MANY:,} added, 0 were there before\n", "")
    assert count(enforced) == MANY


@pytest.mark.parametrize("after", [0.3, 0.6, 0.9, 1.2])
def test_at_whatever_moment(enforced: LabGateway, file: Path, after: float) -> None:
    process = begin(enforced, "session", "load", str(file))
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    code, said, complained = end_of(process)
    assert "Traceback" not in complained
    if code:  # the signal may arrive before the interpreter reaches the command
        assert said == ""
        assert complained in (NOTHING, "\nAborted!\n") or code == -signal.SIGINT
    time.sleep(1)
    assert count(enforced) == (0 if code else MANY)


def test_while_it_reads_standard_input(enforced: LabGateway) -> None:
    process = subprocess.Popen(
        [*enforced.enforcer, "session", "load", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    directory = Instance(enforced.lab.gw.cookie()).directory
    wait_for(lambda: bool(list(directory.glob("sessions-*"))))
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert end_of(process) == (1, "", NOTHING)
    assert not list(directory.glob("sessions-*"))


@families
def test_one_session(enforced: LabGateway, family: int) -> None:
    """The daemon cannot take back a single session; the command reports that the daemon goes on."""
    lab = enforced.lab
    with stopped(pid_of(enforced)):
        process = begin(enforced, "session", "add", CLIENT[family], "--email", "ann@corp.example")
        wait_for(lambda: is_asking(process))
        process.send_signal(signal.SIGINT)
        code, said, complained = end_of(process)
    assert (code, said) == (1, "")
    assert complained.startswith(
        "error: interrupted: the daemon goes on with `session add`\n`enforcer status`"
    )
    wait_for(lambda: count(enforced) == 1)
    assert leaves_by(lab, family, LAX2)


@families
def test_a_reload(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    enforced.run("session", "add", CLIENT[family], "--email", "ann@corp.example")
    try:
        enforced.write(by_email(lab, LAX1))
        process = begin(enforced, "reload")
        wait_for(lambda: is_asking(process))
        process.send_signal(signal.SIGINT)
        code, said, complained = end_of(process)
        assert (code, said) == (1, "")
        assert complained.startswith("error: interrupted: the daemon goes on with `reload`\n")
        wait_for(lambda: leaves_by(lab, family, LAX1))
    finally:
        enforced.reload(by_email(lab, LAX2))


def leaves_by(lab: Lab, family: int, egress: dict[int, str]) -> bool:
    """Whether the client's connections leave by this egress IP."""
    found = tcp_ask(lab.client, ORIGIN1[family]).address
    return found == egress[4] if family == 4 else found.startswith(egress[6].partition("/")[0])
