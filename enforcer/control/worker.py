"""Starts a worker process (enforcer/workers/), supervises it and takes its result.

It imports little, so that `run` can start the process first and import the rest meanwhile.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from enforcer.control import protocol
from enforcer.control.interpreter import PYTHON
from enforcer.errors import EnforcerError

STATE_FORMAT = 2
"""The state file's format. In format 1 maps and fields have other names (enforcer/datapath/former_names.py):
a version of format 1 refuses format 2 instead of losing flows."""
AGAIN, START, PROGRESS = "--again", "--start", "--progress"
READS = f"--reads={STATE_FORMAT}"
"""The state format that the starting daemon reads; after an upgrade the process may be of a later version."""
CHANGING = "changing"
"""The progress line after which the process changes the gateway, under the change lock."""

# A process hangs if it reports no progress and uses no CPU time for these seconds: it is stopped, or waits
# for a file of an unreachable server. Preparing may wait longer for such a server.
_STILL_PREPARING = 20.0
_STILL_CHANGING = 5.0
# Seconds of CPU use without a progress line after which a process counts as looping.
_BUSY = 120.0
# Seconds to wait for a killed process; one that blocks in the kernel does not end.
_UNKILLABLE = 5.0
_LOOK = 0.5
# Upper bound of a counted interval: a suspended machine must not count as a hung process.
_LONGEST_LOOK = 1.0


class LostError(EnforcerError):
    """A worker process ended without a result: it was killed, or it hung and the daemon killed it."""


class WorkerProcess:
    """A module run as a process, whose stdout is read without blocking.

    Lines that begin with "#" report progress, the rest is one JSON document.
    """

    def __init__(self, module: str, *arguments: str):
        self.module = module
        self.changing = False
        """Whether the process has begun to change the gateway."""
        self._said = b""
        self._step = "start"
        self._fault = ""
        self._still = self._busy = 0.0
        self._looked = time.monotonic()
        self._used = -1
        self._process = subprocess.Popen([*PYTHON, "-m", module, *arguments], stdout=subprocess.PIPE)

    @property
    def prepares(self) -> bool:
        """Whether the process will change the gateway but has not begun."""
        return _applies(self.module) and not self.changing

    def fileno(self) -> int:
        """Readable when :meth:`ended` can proceed."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ended(self) -> bool:
        """Reads some output; True at its end."""
        data = os.read(self.fileno(), 1 << 16)
        self._said += data
        self._take_progress()
        return not data

    def look(self) -> bool:
        """Checks for progress and kills a process that hangs; to be called at least once a second.

        Returns False if the killed process does not end; the caller must not wait for it.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _LONGEST_LOOK), now
        used = _processor_time(self._process.pid)
        self._still = 0.0 if used != self._used else self._still + passed
        self._busy += passed
        self._used = used
        if self._fault:
            return self._still < _UNKILLABLE
        limit = _STILL_CHANGING if self.changing else _STILL_PREPARING
        if self._still > limit or self._busy > _BUSY:
            seconds = limit if self._still > limit else _BUSY
            self.kill(f"made no progress for {seconds:.0f} s and was killed ({self._step})")
        return True

    def kill(self, fault: str) -> None:
        """Kills the process; ``fault`` becomes the message of its result."""
        self._fault = fault
        self._still = 0.0
        self._process.kill()

    def interrupt(self) -> None:
        """Sends SIGTERM, which ends the process unless it has begun to change anything."""
        self._process.terminate()

    @property
    def interrupted(self) -> bool:
        """Whether SIGTERM ended the process."""
        return self._process.returncode == -signal.SIGTERM

    def result(self) -> dict[str, Any]:
        """The result of the ended process. Raises ReportedError with the process's error, LostError."""
        if self._fault and self.look() and self._process.poll() is None:
            self._wait_killed()
        if not self._fault:
            self._said += self._process.communicate()[0]
            self._take_progress()
        try:
            result = dict(json.loads(self._said))
        except ValueError:
            raise self._lost() from None
        if "error" in result:
            raise protocol.ReportedError(result)
        return result

    def wait(self) -> dict[str, Any]:
        """Waits for the end of the process, as long as it makes progress; then as :meth:`result`."""
        while self.look():
            if select.select([self], [], [], _LOOK)[0] and self.ended():
                break
        return self.result()

    def _wait_killed(self) -> None:
        try:
            self._process.wait(_UNKILLABLE)
        except subprocess.TimeoutExpired:
            return

    def _take_progress(self) -> None:
        """Removes complete progress lines from the output."""
        while self._said.startswith(b"#") and b"\n" in self._said:
            line, _, self._said = self._said.partition(b"\n")
            self._step = line[1:].strip().decode(errors="replace")
            self.changing |= self._step == CHANGING
            self._busy = self._still = 0.0

    def _lost(self) -> LostError:
        what = "the process that applies the configuration" if _applies(self.module) else self.module
        if self._fault:
            happened = self._fault
        elif (self._process.returncode or 0) < 0:
            happened = f"was killed by signal {-(self._process.returncode or 0)} ({self._step})"
        else:
            happened = f"ended with exit code {self._process.returncode} and no result"
        return LostError(f"{what} {happened}")


def _applies(module: str) -> bool:
    return module == "enforcer.workers.apply"


def _processor_time(pid: int) -> int:
    """A process's CPU time in clock ticks (proc(5), utime and stime); -1 if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return int(fields[11]) + int(fields[12])


def start(file: Path, *options: str) -> WorkerProcess:
    """Starts a process that applies the file."""
    return WorkerProcess("enforcer.workers.apply", str(file), PROGRESS, READS, *options)


def start_again() -> WorkerProcess:
    """Starts a process that reapplies the configuration in force, or completes or reverts a plan."""
    return WorkerProcess("enforcer.workers.apply", AGAIN, PROGRESS, READS)
