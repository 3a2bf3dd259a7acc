"""Tests of sessions: set by command or by the watched file, ended by command or by time."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from enforcer.gateway.state import State
from enforcer.instance import Instance
from lab.clients import Session, curl, tcp_ask, url
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, ORIGIN2, SHARED, Lab

families = pytest.mark.parametrize("family", [4, 6])

SELECTORS = {
    "email": 'identity.email == "ann@corp.example"',
    "name": 'identity.name == "Ann Example"',
    "group id": 'any(identity.groups[*].id in {"g-17"})',
    "group name": 'any(identity.groups[*].name in {"ops" "sre"})',
    "group email": 'any(identity.groups[*].email == "ops@corp.example")',
    "saml": 'identity.saml_attributes["department"] == "finance"',
    "vnet": 'net.vnet_id == "4f1c"',
    "endpoint": 'proxy.endpoint == "ep1.example"',
}
POSTURE = 'any(device_posture.checks.passed[*] in {"disk-encrypted"})'

# For each selector, the session options that its policy matches.
MATCHING: dict[str, tuple[str, ...]] = {
    "email": ("--email", "ann@corp.example"),
    "name": ("--name", "Ann Example"),
    "group id": ("--group", "id=g-17,name=any"),
    "group name": ("--group", "staff", "--group", "sre"),
    "group email": ("--group", "email=ops@corp.example"),
    "saml": ("--saml", "department=finance"),
    "vnet": ("--vnet", "4f1c"),
    "endpoint": ("--proxy-endpoint", "ep1.example"),
    "posture": ("--posture", "firewall", "--posture", "disk-encrypted"),
}


def policy(name: str, precedence: int, egress: Any, **texts: str) -> dict[str, Any]:
    where = egress if isinstance(egress, str) else {"ipv4": egress[4], "ipv6": egress[6]}
    return {"name": name, "precedence": precedence, "egress": where, **texts}


def rest() -> dict[str, Any]:
    return policy("rest", 1000, "default", traffic='net.protocol in {"tcp" "udp"}')


def by_email(lab: Lab, **changes: Any) -> Document:
    """Policies: ann leaves by lax-1, ops by lax-2, the rest by the shared address."""
    policies = [
        policy("ann", 10, LAX1, identity=SELECTORS["email"]),
        policy("ops", 20, LAX2, identity=SELECTORS["group name"]),
        rest(),
    ]
    return lab.config(policies=policies, **changes)


def seen(lab: Lab, family: int, source: str | None = None) -> str:
    return tcp_ask(lab.client, ORIGIN1[family], source=source).address


def leaves_from(address: str, egress: dict[int, str]) -> bool:
    found = ip_address(address)
    return found in ip_network(egress[found.version])


def is_from(lab: Lab, family: int, egress: dict[int, str]) -> bool:
    return leaves_from(seen(lab, family), egress)


def half_done(lab: Lab) -> bool:
    """Whether a plan is under way."""
    state = State.load(Instance(lab.gw.cookie()).state_file)
    return state is not None and state.half_done is not None


def until(check: Callable[[], bool], patience: float) -> float:
    """The seconds until the check is true; AssertionError after ``patience``."""
    start = time.perf_counter()
    while not check():
        assert time.perf_counter() - start < patience
    return time.perf_counter() - start


@pytest.fixture
def sessions(lab: Lab, services: Services, gateway: LabGateway, tmp_path: Path) -> Iterator[Path]:
    """A running enforcer with policies by session; the path of its watched file, which does not exist yet."""
    file = tmp_path / "sessions" / "sessions.jsonl"
    file.parent.mkdir()
    gateway.write(by_email(lab, sessions={"file": str(file)}))
    gateway.start()
    yield file
    assert "Traceback" not in gateway.said()


def lines(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def replace(file: Path, text: str) -> None:
    """Replace the file by a new one, as editors and tools do."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


@families
def test_every_selector_of_a_session_decides(
    lab: Lab, services: Services, gateway: LabGateway, family: int
) -> None:
    policies = []
    for index, (name, text) in enumerate(SELECTORS.items()):
        policies.append(policy(name, index + 1, LAX1, identity=text))
    policies.append(policy("posture", 50, LAX1, device_posture=POSTURE))
    gateway.write(lab.config(policies=[*policies, rest()]))
    gateway.start()
    client = CLIENT[family]
    assert seen(lab, family) == SHARED[family]
    gateway.run("session", "add", client, "--email", "bob@corp.example", "--group", "staff", "--posture", "x")
    assert seen(lab, family) == SHARED[family]
    for name, options in MATCHING.items():
        said = gateway.run("session", "add", client, *options).stdout
        assert said == f"replaced the session of {client}\n"
        before = {row["name"]: row["matched"] for row in gateway.json("policies")}
        assert leaves_from(seen(lab, family), LAX1), name
        after = {row["name"]: row["matched"] for row in gateway.json("policies")}
        assert [one for one in after if after[one] > before[one]] == [name]
        status, body = curl(lab.client, url(ORIGIN1[family]))
        assert status == 200
        assert leaves_from(body.split()[0], LAX1), name
    assert seen(lab, family, source=f"10.0.1.{3}" if family == 4 else "fd00:1::3") == SHARED[family]
    assert gateway.run("session", "remove", client).stdout == "removed 1 session\n"
    assert seen(lab, family) == SHARED[family]


@families
def test_sessions_by_command(lab: Lab, gateway: LabGateway, sessions: Path, family: int) -> None:
    client = CLIENT[family]
    assert gateway.json("sessions") == []
    options = ("--email", "ann@corp.example", "--name", "Ann", "--group", "id=g1,name=staff", "--ttl", "3600")
    assert gateway.run("session", "add", client, *options).stdout == f"added a session for {client}\n"
    # A session without facts is an error, not a session that removes them.
    said = gateway.run("session", "add", client, "--ttl", "60", check=False)
    assert said.returncode == 2 and "no fact of the client is given" in said.stderr
    assert [row["client"] for row in gateway.json("sessions")].count(client) == 1
    assert leaves_from(seen(lab, family), LAX1)
    (row,) = gateway.json("sessions")
    assert row | {"expires": "", "since": ""} == {
        "client": client,
        "email": "ann@corp.example",
        "name": "Ann",
        "groups": [{"id": "g1", "name": "staff"}],
        "saml_attributes": {},
        "device_posture": [],
        "vnet_id": None,
        "proxy_endpoint": None,
        "expires": "",
        "since": "",
        "origin": "command",
    }
    assert row["expires"] > row["since"]
    table = gateway.run("sessions").stdout
    assert "ann@corp.example" in table and client in table
    done = gateway.run("session", "remove", client, CLIENT2[family], check=False)
    assert (done.returncode, done.stdout) == (1, "removed 1 session\n")
    assert done.stderr == f"no session: {CLIENT2[family]}\n"
    assert seen(lab, family) == SHARED[family]


@families
def test_a_live_flow_keeps_its_address_when_the_session_changes(
    lab: Lab, gateway: LabGateway, sessions: Path, family: int
) -> None:
    client = CLIENT[family]
    gateway.run("session", "add", client, "--email", "ann@corp.example")
    with Session(lab.client, ORIGIN1[family]) as flow:
        before = flow.ask()
        assert leaves_from(before.address, LAX1)
        gateway.run("session", "add", client, "--group", "ops")
        assert flow.ask() == before
        assert leaves_from(seen(lab, family), LAX2)
        gateway.run("session", "remove", client)
        assert flow.ask() == before
        assert seen(lab, family) == SHARED[family]


@families
def test_a_session_ends_within_a_second_of_its_expiry(
    lab: Lab, gateway: LabGateway, sessions: Path, family: int, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.run("session", "add", CLIENT[family], "--email", "ann@corp.example", "--ttl", "2")
    start = time.perf_counter()
    assert leaves_from(seen(lab, family), LAX1)
    late = until(lambda: seen(lab, family) == SHARED[family], 10) + (start - time.perf_counter())
    took = time.perf_counter() - start
    with capsys.disabled():
        print(f"\nIPv{family}: a session of 2 s was over {took * 1000:.0f} ms after the command ({late:.3f})")
    assert took < 3.5
    assert gateway.json("sessions") == []


def test_the_watched_file(
    lab: Lab, gateway: LabGateway, sessions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eventual(gateway, f"{sessions} is not there")
    took = {}
    for what, write in (("written", Path.write_text), ("replaced", replace)):
        for name, egress in (("ann@corp.example", LAX1), ("bob@corp.example", SHARED)):
            entries = [{"client": CLIENT[family], "email": name} for family in (4, 6)]
            write(sessions, lines(*entries))
            start = time.perf_counter()
            for family in (4, 6):
                until(partial(is_from, lab, family, egress), 5)
            took[what, name] = time.perf_counter() - start
    with capsys.disabled():
        said = ", ".join(f"{what} {seconds * 1000:.1f} ms" for (what, _), seconds in took.items())
        print(f"\na change of the file, seen at the origin in both families: {said}")
    assert [row["origin"] for row in gateway.json("sessions")] == ["file", "file"]

    replace(sessions, lines({"client": CLIENT[4], "email": "ann@corp.example"}))
    until(lambda: leaves_from(seen(lab, 4), LAX1), 5)
    assert [row["client"] for row in gateway.json("sessions")] == [CLIENT[4]]

    # A missing or invalid file changes nothing and is logged.
    sessions.unlink()
    eventual(gateway, f"{sessions} is not there", 2)
    assert leaves_from(seen(lab, 4), LAX1)
    wrong = {"client": CLIENT[4], "emial": "x", "ttl": -1}
    sessions.write_text(lines({"client": CLIENT[6]}, wrong) + "{\n")
    eventual(gateway, f"the sessions of {sessions} were not loaded, those in force stay")
    said = eventual(gateway, f"{sessions}:3: ")
    assert f"{sessions}:2: emial: an unknown key; expected one of client, email" in said
    assert f"{sessions}:2: -1: `ttl` is out of range" in said
    assert leaves_from(seen(lab, 4), LAX1)
    assert [row["client"] for row in gateway.json("sessions")] == [CLIENT[4]]

    # Without a file in the configuration its sessions end.
    gateway.run("session", "add", CLIENT[6], "--email", "ann@corp.example")
    gateway.reload(by_email(lab))
    assert seen(lab, 4) == SHARED[4]
    assert leaves_from(seen(lab, 6), LAX1)


def eventual(gateway: LabGateway, text: str, times: int = 1) -> str:
    until(lambda: gateway.said().count(text) >= times, 10)
    return gateway.said()


def test_the_file_owns_the_addresses_that_it_names(lab: Lab, gateway: LabGateway, sessions: Path) -> None:
    gateway.run("session", "add", CLIENT[4], "--group", "ops")
    assert leaves_from(seen(lab, 4), LAX2)
    replace(sessions, lines({"client": CLIENT[4], "email": "ann@corp.example"}))
    until(lambda: leaves_from(seen(lab, 4), LAX1), 5)
    eventual(gateway, f"sessions set by command belong to the file now: {CLIENT[4]}\n")
    refused = f"error: the session of {CLIENT[4]} came from the watched file, which commands do not override"
    bulk = sessions.with_name("bulk")
    bulk.write_text(lines({"client": CLIENT[6]}, {"client": CLIENT[4]}))
    for arguments in (("add", CLIENT[4], "--group", "ops"), ("remove", CLIENT[4]), ("load", str(bulk))):
        done = gateway.run("session", *arguments, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[0] == refused
    assert leaves_from(seen(lab, 4), LAX1)
    assert len(gateway.json("sessions")) == 1


def test_sessions_outlive_the_daemon(lab: Lab, gateway: LabGateway, sessions: Path) -> None:
    gateway.run("session", "add", CLIENT[4], "--email", "ann@corp.example")
    gateway.run("session", "add", CLIENT[6], "--email", "ann@corp.example", "--ttl", "1")
    rows = gateway.json("sessions")
    gateway.kill()
    assert gateway.json("sessions") == rows
    assert leaves_from(seen(lab, 4), LAX1)
    done = gateway.run("session", "add", CLIENT[4], "--group", "ops", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: no daemon runs on this gateway\nStart it: enforcer run\n",
    )
    time.sleep(1)
    gateway.start()
    assert gateway.json("sessions") == rows[:1]
    assert leaves_from(seen(lab, 4), LAX1)
    assert seen(lab, 6) == SHARED[6]
    # A reload rebuilds the policy bank, with the sessions in it from the start.
    gateway.reload(by_email(lab, proxy={"tcp": True, "udp": False}))
    assert leaves_from(seen(lab, 4), LAX1)
    assert seen(lab, 6) == SHARED[6]


ANN = ("--email", "ann@corp.example")
WRONG: list[tuple[tuple[str, ...], str]] = [
    (("add", "10.0.1.0/24", *ANN), "10.0.1.0/24: `client` is no address; expected one IPv4 or IPv6 address"),
    (("add", "::ffff:10.0.1.2", *ANN), "an IPv4 address in IPv6 form; expected 10.0.1.2"),
    (("add", "10.0.1.2", *ANN, "--ttl", "0"), "`ttl` is out of range"),
    (("add", "10.0.1.2", *ANN, "--ttl", "1", "--expires", "2030-01-01T00:00:00Z"), "together; expected one"),
    (("add", "10.0.1.2", *ANN, "--expires", "tomorrow"), "expected a time as in RFC 3339"),
    (("add", "10.0.1.2", *ANN, "--expires", "2001-01-01T00:00:00Z"), "would have expired already"),
    (("add", "10.0.1.2", *ANN, "--group", "id=1,colour=red"), "'colour=red' is not one of id=…"),
    (("add", "10.0.1.2", *ANN, "--saml", "x"), "not of the form KEY=VALUE"),
    (("remove", "everybody"), "everybody: `client` is no address"),
    (("load", "/nowhere"), "/nowhere: cannot be read: No such file or directory"),
    (("load", "/dev/zero"), "/dev/zero: not a regular file"),
]


def test_wrong_commands_change_nothing(lab: Lab, gateway: LabGateway, sessions: Path) -> None:
    for arguments, word in WRONG:
        done = gateway.run("session", *arguments, check=False)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert word in done.stderr
        assert "Traceback" not in done.stderr
        assert gateway.json("sessions") == [], arguments


def write_many(path: Path, count: int, email: Callable[[int], str]) -> None:
    with path.open("w") as file:
        for index in range(count):
            number = index + 2
            client = f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            entry = {
                "client": client if index % 2 else f"fd64::{number:x}",
                "email": email(index),
                "groups": [{"name": "staff"}, {"name": f"team {index % 50}"}],
                "device_posture": ["disk-encrypted"],
                "ttl": 28800,
            }
            file.write(json.dumps(entry) + "\n")


@pytest.mark.slow
def test_a_hundred_thousand_sessions(
    lab: Lab, gateway: LabGateway, sessions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test prints durations and asserts none, because the machine may be busy."""
    bulk = sessions.with_name("bulk.jsonl")
    count = 60_000
    write_many(bulk, count, lambda index: f"user{index}@corp.example")
    with bulk.open("a") as file:
        for family in (4, 6):
            file.write(json.dumps({"client": CLIENT[family], "email": "ann@corp.example"}) + "\n")
    figures = []
    start = time.perf_counter()
    said = gateway.run("session", "load", str(bulk)).stdout
    figures.append(f"loaded {count:,} in {time.perf_counter() - start:.2f} s")
    assert said == f"{count + 2:,} sessions: {count + 2:,} added, 0 were there before\n"
    for family in (4, 6):
        assert leaves_from(seen(lab, family), LAX1)
    start = time.perf_counter()
    gateway.run("session", "add", CLIENT[4], "--group", "ops")
    assert leaves_from(seen(lab, 4), LAX2)
    figures.append(
        f"one more by command in {(time.perf_counter() - start) * 1000:.0f} ms, the command's start included"
    )
    start = time.perf_counter()
    replace(sessions, lines({"client": CLIENT[6], "group": "x"}))
    replace(sessions, lines({"client": CLIENT[6], "groups": [{"name": "ops"}]}))
    until(lambda: leaves_from(seen(lab, 6), LAX2), 5)
    figures.append(f"one by the file in {(time.perf_counter() - start) * 1000:.1f} ms")
    # The same sessions by the watched file: it takes over those set by command.
    start = time.perf_counter()
    bulk.rename(sessions)
    eventual(gateway, f"sessions of {sessions}: {count + 2:,}")
    figures.append(f"the file of {count:,} in {time.perf_counter() - start:.2f} s")
    for family in (4, 6):
        assert leaves_from(seen(lab, family), LAX1)
    replace(sessions, "")
    eventual(gateway, f"ended {count + 2:,}")
    assert gateway.json("sessions") == []
    resident = Path(f"/proc/{gateway.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    figures.append(f"the daemon holds {int(resident) / 1024:.0f} MiB")
    with capsys.disabled():
        print("\n" + "; ".join(figures))


def test_a_reload_is_waited_for_and_does_not_hold_up_others(
    lab: Lab, gateway: LabGateway, sessions: Path
) -> None:
    """The daemon answers other commands while a process applies the file, and the reload afterwards."""
    changed = by_email(lab, sessions={"file": str(sessions)}, proxy={"tcp": True, "udp": False})
    gateway.write(changed)
    reloads = [
        subprocess.Popen([*gateway.enforcer, "reload"], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for index in range(5):
        gateway.run("session", "add", CLIENT[4], "--email", f"user{index}@corp.example")
    gateway.run("session", "add", CLIENT[4], "--email", "ann@corp.example")
    answers = [process.communicate(timeout=30)[0] for process in reloads]
    assert [process.returncode for process in reloads] == [0, 0, 0]
    assert "switch policies and settings\n" in answers
    assert answers.count("nothing changed\n") >= 1
    assert leaves_from(seen(lab, 4), LAX1)
    # A stop requested during a reload follows the reload.
    gateway.write(by_email(lab))
    last = subprocess.Popen([*gateway.enforcer, "reload"], stdout=subprocess.PIPE, text=True)
    until(lambda: half_done(lab), 10)
    assert gateway.stop() == 0
    assert "switch policies and settings" in last.communicate(timeout=30)[0]
    assert last.returncode == 0
    assert gateway.run("plan").stdout.startswith("nothing to do")
    assert tcp_ask(lab.client, ORIGIN2[4]).address == LAX1[4]


def test_sets_of_rules_that_different_processes_add(lab: Lab, gateway: LabGateway, sessions: Path) -> None:
    """The daemon and the process that loads a large file number their rule sets without a clash."""
    gateway.run("session", "add", "10.0.1.9", "--group", "none")
    bulk = sessions.with_name("bulk.jsonl")
    write_many(bulk, 9000, lambda index: f"user{index}@{'x' * 60}.example")
    ann = lines(*({"client": CLIENT[family], "email": "ann@corp.example"} for family in (4, 6)))
    bulk.write_text(ann + bulk.read_text())
    assert bulk.stat().st_size > 1 << 20
    gateway.run("session", "load", str(bulk))
    for family in (4, 6):
        assert leaves_from(seen(lab, family), LAX1)
    gateway.run("session", "add", "10.0.1.8", "--group", "ops")
    for family in (4, 6):
        assert leaves_from(seen(lab, family), LAX1)


@families
def test_facts_that_are_lost_leave_nobody_with_anothers(
    lab: Lab, gateway: LabGateway, sessions: Path, family: int
) -> None:
    """The facts store is lost, as after a crash: other clients must not match old entries in the kernel."""
    gateway.run("session", "add", CLIENT[family], "--email", "ann@corp.example")
    assert is_from(lab, family, LAX1)
    gateway.kill()
    for file in Instance(lab.gw.cookie()).directory.glob("facts.db*"):
        file.unlink()
    assert is_from(lab, family, LAX1)  # the kernel still has the session
    gateway.start()
    assert seen(lab, family) == SHARED[family]
    other = f"{CLIENT[family][:-1]}3"
    gateway.run("session", "add", other, "--group", "ops")
    assert seen(lab, family) == SHARED[family]
    assert leaves_from(seen(lab, family, source=other), LAX2)


def test_more_kinds_of_clients_than_there_was_room_for(lab: Lab, gateway: LabGateway, sessions: Path) -> None:
    """Each client matches its own set of rules: the tables get more room, then the file loads."""
    teams = [policy(f"team {n}", n, LAX1 if n % 2 else LAX2, identity=_member(n)) for n in range(100)]
    gateway.reload(lab.config(policies=[*teams, rest()], sessions={"file": str(sessions)}))
    entries = []
    for index in range(6000):
        members = {index % 100, index // 100, (index * 7 + index // 900) % 100}
        groups = [{"name": f"team {n}"} for n in sorted(members)]
        entries.append({"client": f"10.99.{index >> 8}.{index & 255}", "groups": groups})
    entries.append({"client": CLIENT[4], "groups": [{"name": "team 7"}, {"name": "team 8"}]})
    replace(sessions, lines(*entries))
    until(lambda: is_from(lab, 4, LAX1), 60)
    assert "the policy tables have little room left: they are rebuilt" in gateway.said()


def _member(number: int) -> str:
    return f'any(identity.groups[*].name == "team {number}")'
