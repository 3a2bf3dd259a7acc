"""Tests of `make demo` as a user runs it: every row as expected, readable in a file, no leftovers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.errors import EnforcerError
from enforcer.kernel.namespace import RUN_NETNS
from lab.netns import Namespace
from lab.topology import ROLES, STATE, Lab

PATIENCE = 280.0  # seconds; an idle machine needs 40

pytestmark = pytest.mark.usefixtures("machine")


class Demo:
    """The demo as a process, and its leftovers on the machine."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab.demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.prefix = f"demo{self.process.pid}"
        self.cookie = 0

    def learn_cookie(self) -> None:
        """Wait until the lab's gateway exists; its cookie names its pins and its state."""
        gateway = Namespace(f"{self.prefix}-gw")
        deadline = time.monotonic() + PATIENCE
        while not self.cookie and time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.cookie = gateway.cookie()
            except EnforcerError:  # not created yet
                time.sleep(0.05)
        assert self.cookie, self.process.communicate()

    def left(self) -> list[str]:
        """The demo's files, namespaces and processes that exist."""
        paths = [RUN_NETNS / f"{self.prefix}-{role}" for role in ROLES]
        paths += [STATE / self.prefix]
        paths += [Path(root) / f"{self.cookie:x}" for root in ("/run/enforcer", "/sys/fs/bpf/enforcer")]
        return [str(path) for path in paths if path.exists()] + self.processes()

    def processes(self) -> list[str]:
        """Processes whose command line names the lab."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if entry.name.isdigit() and re.search(rf"\b{self.prefix}\b", line):
                found.append(f"{entry.name}: {line}")
        return found


@pytest.fixture
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    if demo.process.poll() is None:
        os.kill(demo.process.pid, signal.SIGKILL)
    demo.process.communicate()
    Lab(demo.prefix).down()


@pytest.mark.slow
def test_the_demo_shows_everything_as_it_should_be_and_leaves_nothing(demo: Demo) -> None:
    demo.learn_cookie()
    output, errors = demo.process.communicate(timeout=PATIENCE)

    assert demo.process.returncode == 0, output + errors
    assert "✗" not in output
    assert errors == ""
    # 23 kinds of traffic, each in both families.
    assert re.search(r"✓ 46 of 46 rows as they should be, (\d+) of \1 other checks\n$", output)
    for shown in (
        "proxy.udp off",
        "TCP reset",
        "ICMP administratively prohibited",
        "kill -9",
        "$ enforcer plan",
    ):
        assert shown in output
    assert "no packet left with an unplanned source" in output
    # Readable in a file: no escape sequences or carriage returns.
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", output)
    assert demo.left() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing(demo: Demo, number: signal.Signals, code: int) -> None:
    demo.learn_cookie()
    assert demo.process.stdout
    for line in demo.process.stdout:
        if "TCP that policy bank matches" in line:  # the enforcer runs, and traffic passes
            break
    os.kill(demo.process.pid, number)
    _, errors = demo.process.communicate(timeout=PATIENCE)

    assert demo.process.returncode == code, errors
    assert "Traceback" not in errors
    assert demo.left() == []
