"""Tests of a downgrade: this version's daemon and commands on a gateway that a later version has enforced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from snapshot import difference, snapshot
from truth import families, leaves_from

from enforcer.cli.app import NOUNS
from enforcer.instance import Instance
from lab.clients import Session, tcp_ask
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, Lab

TELEPORT = {"kind": "teleport", "to": 7}
QUESTION = ("--src", CLIENT[4], "--dst", ORIGIN1[4], "--protocol", "tcp", "--dport", "9000")


def arguments(noun: str) -> tuple[str, ...]:
    return (noun, *QUESTION) if noun == "explain" else (noun,)


def state_file(lab: Lab) -> Path:
    return Instance(lab.gw.cookie()).state_file


def written(lab: Lab, change: Callable[[dict[str, Any]], None]) -> None:
    """Replace the state file atomically, as a later version does."""
    file = state_file(lab)
    content = json.loads(file.read_text())
    change(content)
    new = file.with_suffix(".later")
    new.write_text(json.dumps(content))
    new.rename(file)


def unknown_keys(content: dict[str, Any]) -> None:
    """Add keys that a later version may add in the same format."""
    content |= {"version": "9.1", "colour": "red", "layers": [{"depth": 3}]}
    content["config"] |= {"weather": {"wind": 3}}
    for part in (
        content["config"]["interfaces"],
        content["config"]["limits"],
        content["config"]["policies"][0],
    ):
        part["later"] = [1]
    content["config"]["egress_ips"][0]["later"] = None
    content["undo"] += [TELEPORT, {"what": "?"}]
    content["program_ids"]["from_nowhere"] = 1
    content["layouts"]["later"] = {"key": "u128", "value": ["later", []]}


def half_done(content: dict[str, Any]) -> None:
    unknown_keys(content)
    other = {name: content[name] for name in ("config", "slots", "layout", "layouts", "maps")}
    content["half_done"] = {"since": 1.0, "pid": 1, "operations": ["teleport"], "phase": 3, **other}


def another_format(content: dict[str, Any]) -> None:
    unknown_keys(content)
    content |= {"format": 3, "config": {"everything": "is different"}, "half_done": {"phase": 3}}


@contextmanager
def left_behind(lab: Lab, gateway: LabGateway, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """A gateway whose later daemon has ended; asserts that nothing is left at the end."""
    before = snapshot(lab.gw)
    gateway.start()
    gateway.stop()
    written(lab, change)
    yield
    assert difference(before, snapshot(lab.gw)) == ""
    assert not state_file(lab).exists()


@pytest.mark.parametrize("change", [unknown_keys, half_done])
def test_commands_pass_over_what_they_do_not_know(
    lab: Lab, services: Services, gateway: LabGateway, change: Callable[[dict[str, Any]], None]
) -> None:
    with left_behind(lab, gateway, change):
        for noun in NOUNS:
            if noun == "dns":
                continue  # needs the daemon
            for more in ((), ("--json",)):
                done = gateway.run(*arguments(noun), *more)
                assert "Traceback" not in done.stderr, noun
        assert gateway.json("status")["versions"]["applied_by"] == "9.1"
        assert (gateway.json("status")["half_done"] is not None) == (change is half_done)
        said = gateway.run("down").stdout.splitlines()
        assert said[-1] == "left: what enforcer 9.1 has changed and this version cannot undo: teleport"


@families
@pytest.mark.parametrize("change", [unknown_keys, half_done])
def test_the_daemon_takes_over(
    lab: Lab,
    services: Services,
    gateway: LabGateway,
    change: Callable[[dict[str, Any]], None],
    family: int,
) -> None:
    """Live connections go on, and the later version's undo entries stay in the state file."""
    with left_behind(lab, gateway, lambda _: None):
        gateway.start()
        with Session(lab.client, ORIGIN1[family]) as session:
            gateway.stop()
            written(lab, change)
            gateway.start()
            assert session.ask() == session.seen
            assert tcp_ask(lab.client, ORIGIN1[family]).address == leaves_from(LAX1, family)
            assert gateway.reload() == "nothing changed\n"
        assert gateway.json("status")["half_done"] is None
        assert TELEPORT in json.loads(state_file(lab).read_text())["undo"]
        assert "Traceback" not in gateway.said()
        gateway.down()


def test_another_format_is_one_message(lab: Lab, services: Services, gateway: LabGateway) -> None:
    """Every command that needs the state reports it; the gateway stays enforced until `down`."""
    with left_behind(lab, gateway, another_format):
        content = state_file(lab).read_text()
        for command in (*(arguments(noun) for noun in NOUNS), ("run",), ("relearn",)):
            done = gateway.run(*command, check=False)
            assert (done.returncode, done.stdout) == (1, ""), command
            assert done.stderr.splitlines() == [
                "error: this gateway's state was written by a later version of the enforcer (9.1): "
                f"{state_file(lab)} is of format 3, this version reads format 2",
                "Use that version. Or begin again with this one: enforcer down, then enforcer run",
            ], command
        assert state_file(lab).read_text() == content
        for family in (4, 6):
            assert tcp_ask(lab.client, ORIGIN1[family]).address == leaves_from(LAX1, family)
        said = gateway.run("down").stdout.splitlines()
        assert "removed nftables table inet enforcer" in said
        assert said[-1] == "left: what enforcer 9.1 has changed and this version cannot undo: teleport"


def test_down_ends_the_later_versions_daemon(lab: Lab, gateway: LabGateway) -> None:
    """A daemon that lives on would write its state over the one that `down` reads."""
    before = snapshot(lab.gw)
    gateway.start()
    pid = gateway.pid
    written(lab, another_format)
    said = gateway.run("down").stdout.splitlines()
    assert said[0] == f"ended the daemon (pid {pid})"
    assert gateway.process is not None and gateway.process.wait(20) == 0
    assert difference(before, snapshot(lab.gw)) == ""


def test_bytes_that_are_no_state(lab: Lab, services: Services, gateway: LabGateway) -> None:
    """Every command reports it in one message; the daemon and `down` work without the file."""
    content = bytes(range(256))
    gateway.start()
    gateway.stop()
    state_file(lab).write_bytes(content)
    for command in (*(arguments(noun) for noun in NOUNS if noun not in ("dns", "plan")), ("reload",)):
        done = gateway.run(*command, check=False)
        assert (done.returncode, done.stdout) == (1, ""), command
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr, command
    gateway.run("plan")
    gateway.start()
    assert gateway.json("status")["state"] == "running"
    assert tcp_ask(lab.client, ORIGIN1[4]).address == leaves_from(LAX1, 4)
    gateway.stop()
    state_file(lab).write_bytes(content)
    done = gateway.run("down")
    assert "removed nftables table inet enforcer" in done.stdout and "Traceback" not in done.stderr
    assert not state_file(lab).exists()
