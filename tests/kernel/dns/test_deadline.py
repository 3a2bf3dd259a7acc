"""Tests of the process that releases DNS answers without a verdict of the daemon after a deadline."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from enforcer.dns import watchdog
from enforcer.dns.deadline import DEADLINE
from enforcer.dns.watchdog import Watchdog
from enforcer.kernel import nfqueue
from enforcer.kernel.nfqueue import Queue
from enforcer.kernel.nft.ruleset import DNS_QUEUE, Dns

from ..conftest import Lab
from ..kernel.test_nfqueue import Conversation, install, nothing, wait_for

LONG = 1.0
"""Seconds within which an answer must arrive on a busy machine: twice the promised time."""
PATIENCE = 10.0


class Scene:
    """The table, the queue and the process; a client and its resolver."""

    def __init__(self, lab: Lab, family: int, dns: Dns, stack: ExitStack) -> None:
        install(lab, dns)
        passes = dns == "pass"
        self.said: list[str] = []
        self.held = stack.enter_context(Queue(DNS_QUEUE, fail_open=passes))
        self.watchdog = Watchdog(self.held, fail_open=passes, say=self.said.append)
        stack.callback(self.watchdog.close)
        self.talk = stack.enter_context(Conversation(lab, family))
        self.talk.client.settimeout(PATIENCE)
        # After the first released answer the process is running.
        self.talk.ask()
        self.talk.answer(b"first")
        soon(lambda: self.count == 0)
        self.talk.client.setblocking(False)
        if passes:
            assert self.talk.client.recv(100) == b"first"
        self.talk.client.settimeout(PATIENCE)

    @property
    def count(self) -> int:
        """The number of held packets."""
        with nfqueue.LISTING.open("rb", buffering=0) as listing:
            return nfqueue.state(listing.fileno(), DNS_QUEUE)[0]


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(params=["pass", "drop"])
def dns(request: pytest.FixtureRequest) -> Dns:
    found: Dns = request.param
    return found


@pytest.fixture
def scene(lab: Lab, family: int, dns: Dns) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(lab, family, dns, stack)


def test_an_answer_that_has_no_verdict_is_held_for_a_deadline(scene: Scene, dns: Dns) -> None:
    began = time.monotonic()
    for number in range(20):
        scene.talk.answer(b"%d" % number)
    assert scene.count == 20
    soon(lambda: scene.count == 0)
    assert DEADLINE < time.monotonic() - began < LONG
    if dns == "pass":
        assert [scene.talk.client.recv(100) for _ in range(20)] == [b"%d" % number for number in range(20)]
    assert nothing(scene.talk.client)
    # The daemon's verdicts are too late, and the queue counts them.
    scene.held.accept([one.number for one in scene.held.receive(100)])
    scene.held.receive(100)
    assert scene.held.late == 21


@pytest.mark.parametrize("dns", ["drop"], indirect=True)
def test_an_answer_with_a_verdict_in_time_is_the_daemons(scene: Scene) -> None:
    scene.held.receive(1)
    for number in range(10):
        scene.talk.answer(b"%d" % number)
        wait_for(scene.held)
        scene.held.accept([one.number for one in scene.held.receive(10)])
        assert scene.talk.client.recv(100) == b"%d" % number
    assert scene.held.late == 0


@pytest.mark.parametrize("dns", ["drop"], indirect=True)
def test_what_is_done_with_late_answers_can_be_changed(scene: Scene) -> None:
    scene.held.fail_open(True)
    scene.watchdog.fail_open(True)
    scene.talk.answer(b"late")
    assert scene.talk.client.recv(100) == b"late"


@pytest.mark.parametrize("dns", ["pass"], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_the_process_is_replaced(scene: Scene, how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "SILENCE", 2.0)
    before = scene.watchdog.pid
    os.kill(before, how)

    def replaced() -> bool:
        scene.watchdog.tick()
        return scene.watchdog.pid != before

    soon(replaced)
    assert len(scene.said) == 1
    scene.talk.answer(b"late")
    assert scene.talk.client.recv(100) == b"late"
    scene.watchdog.tick()
    assert len(scene.said) == 1


def test_the_process_ends_with_the_daemon(scene: Scene, dns: Dns) -> None:
    """Only the socket closes, as when the daemon is killed; held packets get their verdict."""
    scene.talk.answer(b"last")
    scene.watchdog._socket.close()
    if dns == "pass":
        assert scene.talk.client.recv(100) == b"last"
    scene.watchdog._process.wait(PATIENCE)
    assert scene.watchdog._process.returncode == 0
    assert scene.count == 0
