"""Tests of an applying process that is stopped, hangs, or is killed with its daemon: no command hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from halfdone import (
    LAX3,
    Enforced,
    Knocking,
    Live,
    after,
    before,
    check_new,
    enforced,
    knocking,
    second_of,
    watched,
)
from interrupted import AT_ONCE
from snapshot import difference, snapshot
from truth import wait_for

from lab.gateway import LabGateway
from lab.topology import SHARED, Lab

__all__ = ["enforced", "knocking"]


@pytest.mark.parametrize("effect", ["add", "attach", "nft last"])
def test_stopped_the_process_is_ended_by_the_daemon(
    lab: Lab, enforced: Enforced, knocking: Knocking, effect: str
) -> None:
    """Until then `status` reports a half-done plan, and `plan` and connections work."""
    gateway = enforced.gateway
    old, new = before(lab), after(lab, flows=4096)
    gateway.write(old)
    gateway.start()
    with watched(lab, knocking), contextlib.closing(Live(lab)) as live:
        gateway.reload(new)
        effects = enforced.effects()
        gateway.reload(old)
        number = len(effects) - 1 - effects[::-1].index("apply") if effect == "nft last" else 0
        enforced.interrupt(number or effects.index(effect), "SIGSTOP")
        gateway.write(new)
        with reloading(gateway) as reload:
            wait_for(lambda: enforced.interrupted, "stopped")
            half_done = enforced.status()["half_done"]
            assert half_done["under_way"]
            assert half_done["operations"]
            gateway.run("plan")
            live.check(effect)
            check_new(lab, (SHARED, LAX3), effect)
            _, error = reload.communicate(timeout=60)
        assert "made no progress for 5 s" in error
        assert reload.returncode == 1
        enforced.healed()
        live.check(f"healed, {effect}")
        check_new(lab, (second_of(enforced),), effect)


@contextlib.contextmanager
def reloading(gateway: LabGateway) -> Iterator[subprocess.Popen[str]]:
    """`enforcer reload` as a running process."""
    process = subprocess.Popen(
        [*gateway.enforcer, "reload"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("effect", ["apply", "refresh", "attach"])
def test_a_link_that_is_made_again_meanwhile(lab: Lab, enforced: Enforced, effect: str) -> None:
    """The new link gets everything back, whatever the process has read or written of the old one."""
    gateway = enforced.gateway
    old, new = before(lab), after(lab)
    gateway.write(old)
    gateway.start()
    gateway.reload(new)
    effects = enforced.effects()
    gateway.reload(old)
    enforced.interrupt(effects.index(effect), "SIGSTOP")
    gateway.write(new)
    with reloading(gateway) as reload:
        replug_meanwhile(lab, enforced)
        reload.communicate(timeout=60)
    wait_for(lambda: gateway.json("plan") == [], "all that belongs to out0")
    check_new(lab, (LAX3,), effect)


def replug_meanwhile(lab: Lab, enforced: Enforced) -> None:
    """Create the uplink again while the applying process is stopped, then continue the process."""
    wait_for(lambda: enforced.interrupted, "stopped")
    lab.replug()
    half_done = enforced.state().half_done
    assert half_done is not None
    os.kill(half_done["pid"], signal.SIGCONT)


def test_a_link_that_is_made_again_while_a_daemon_starts(lab: Lab, enforced: Enforced) -> None:
    gateway = enforced.gateway
    gateway.write(before(lab))
    gateway.start()
    effects = enforced.effects()
    gateway.down()
    enforced.interrupt(effects.index("refresh"), "SIGSTOP")
    gateway.launch()
    replug_meanwhile(lab, enforced)
    gateway.wait()
    wait_for(lambda: gateway.json("plan") == [], "all that belongs to out0")
    check_new(lab, (SHARED,), "started")


def test_a_process_that_hangs_before_it_changes_anything_holds_up_nothing(
    lab: Lab, enforced: Enforced
) -> None:
    """Simulates a file server that is gone: the daemon restores a removed table, and `down` works."""
    gateway = enforced.gateway
    gateway.write(before(lab))
    gateway.start()
    enforced.interrupt(AT_ONCE, "SIGSTOP")
    with reloading(gateway) as reload:
        wait_for(lambda: enforced.interrupted, "stopped")
        lab.gw.run("nft", "delete", "table", "inet", "enforcer")
        wait_for(lambda: "restored: install nftables table" in gateway.said(), "put back")
        assert enforced.status()["half_done"] is None
        gateway.run("down")
        assert "was ended with its daemon" in reload.communicate(timeout=60)[1]
    assert gateway.json("status")["state"] == "down"


@pytest.mark.parametrize("command", ["run", "down"])
@pytest.mark.parametrize("what", ["SIGKILL", "SIGSTOP"])
def test_with_the_daemon_dead_too_the_next_command_heals(
    lab: Lab, enforced: Enforced, knocking: Knocking, command: str, what: str
) -> None:
    gateway = enforced.gateway
    untouched = snapshot(lab.gw)
    gateway.write(before(lab))
    gateway.start()
    with watched(lab, knocking):
        gateway.reload(after(lab))
        number = enforced.effects().index("attach")
        gateway.reload(before(lab))
        enforced.interrupt(number, what)
        (enforced.place / "effects").unlink()
        gateway.write(after(lab))
        with reloading(gateway):
            wait_for((enforced.place / "effects").exists, "begun")
            os.kill(gateway.pid, signal.SIGSTOP)  # the daemon would repair the plan
            wait_for(lambda: enforced.interrupted, "interrupted")
            gateway.kill()
        half_done = gateway.json("status")["half_done"]
        assert half_done is not None
        assert "half done" in gateway.run("status").stdout
        if command == "down":
            gateway.run("down")
            assert difference(untouched, snapshot(lab.gw)) == ""
            return
        gateway.start()
        enforced.healed()
        check_new(lab, (LAX3,), "the next run")
    gateway.stop()


def test_down_ends_a_daemon_that_was_stopped(lab: Lab, enforced: Enforced) -> None:
    gateway = enforced.gateway
    gateway.write(before(lab))
    gateway.start()
    os.kill(gateway.pid, signal.SIGSTOP)
    assert f"ended the daemon (pid {gateway.pid})" in gateway.run("down").stdout
    assert gateway.json("status")["state"] == "down"
