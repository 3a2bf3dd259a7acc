"""Tests of the log lines of a daemon whose stderr is the journal: each but the ready line has its level
(sd-daemon(3)).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.topology import Lab


class Journal:
    """A daemon with a socket as stderr, as under systemd; collects the lines of both streams."""

    def __init__(self, gateway: LabGateway) -> None:
        self._ours, theirs = socket.socketpair()
        found = os.fstat(theirs.fileno())
        with theirs:
            self.process = subprocess.Popen(
                gateway.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=theirs.fileno(),
                env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self.stdout: list[str] = []
        streams = (self._ours.makefile("rb"), self.lines), (self.process.stdout, self.stdout)
        self._readers = [
            threading.Thread(target=lambda stream=stream, kept=kept: kept.extend(map(_text, stream)))
            for stream, kept in streams
        ]
        for reader in self._readers:
            reader.start()

    def expect(self, line: str) -> None:
        deadline = time.monotonic() + 60
        while not any(one.startswith(line) for one in self.lines):
            assert self.process.poll() is None and time.monotonic() < deadline, (line, self.lines)
            time.sleep(0.02)

    def end(self) -> int:
        """End the daemon as systemd does and read the remaining lines; returns the exit code."""
        self.process.terminate()
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join(60)
        self._ours.close()
        return code


def _text(line: bytes) -> str:
    return line.decode().rstrip("\n")


@contextmanager
def running(gateway: LabGateway) -> Iterator[Journal]:
    journal = Journal(gateway)
    try:
        deadline = time.monotonic() + 60
        while not journal.stdout:
            assert journal.process.poll() is None and time.monotonic() < deadline, journal.lines
            time.sleep(0.02)
        yield journal
    finally:
        if journal.process.poll() is None:
            journal.process.kill()
            journal.end()


def test_each_line_has_its_level(lab: Lab, gateway: LabGateway) -> None:
    config = lab.config()
    with running(gateway) as journal:
        assert [line.split(":")[0] for line in journal.stdout] == ["ready"]
        journal.expect("<6>install nftables table inet enforcer")
        for address in (f"addr {{}} {LAX1[4]}/32 dev out0", f"route {{}} local {LAX1[6]} dev lo table local"):
            lab.gw.ip(address.format("del"))
        journal.expect("<4>egress lax-1: unavailable")
        lab.gw.run("nft", "delete", "table", "inet", "enforcer")
        journal.expect("<4>restored: install nftables table inet enforcer")
        gateway.write("{")
        os.kill(journal.process.pid, signal.SIGHUP)
        journal.expect("<3>reload failed, the configuration in force stays: ")
        gateway.write(config)
        os.kill(journal.process.pid, signal.SIGHUP)
        journal.expect("<6>add address")
        journal.expect("<6>egress lax-1: available")
        assert journal.end() == 0
    assert journal.lines[-1].startswith("<5>ended; enforcement continues without the daemon")
    assert all(line[0] == "<" and line[1] in "23456" and line[2] == ">" for line in journal.lines)


def test_a_start_that_fails_is_an_error(lab: Lab, gateway: LabGateway) -> None:
    gateway.write("{")
    journal = Journal(gateway)
    journal.process.wait(60)
    journal.end()
    assert journal.stdout == []
    assert journal.lines and all(line.startswith("<3>") for line in journal.lines)
    assert "enforcer.yaml:1" in journal.lines[0]
