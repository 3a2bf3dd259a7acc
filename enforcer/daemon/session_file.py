"""The watched session file: loaded when it changes, by the daemon itself or by a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from enforcer.applying import Work
from enforcer.control import report_of
from enforcer.daemon.enforced import Enforced
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop
from enforcer.errors import EnforcerError
from enforcer.facts.rows import FILE
from enforcer.kernel.files import Stamp, stamp

SETTLE = 1.0
"""Tools that replace a file may take the old one away first: seconds until the new one is there."""


class SessionFile:
    """The file in force, and its stamp when it was loaded."""

    def __init__(self, loop: Loop, jobs: Jobs, enforced: Enforced, say: Callable[[str], None]):
        self._loop = loop
        self._jobs = jobs
        self._enforced = enforced
        self._say = say
        self._file: Path | None = None
        self._stamp: Stamp = None
        loop.task("vanished", self._vanished)

    def take_up(self) -> None:
        """Loads the file that the configuration in force names, if it is another one or has changed."""
        file = self._enforced.session_file
        if file is None:
            ended = self._enforced.attendance.forget_file()
            if ended:
                self._say(f"no session file is configured any more: {ended:,} sessions ended")
            self._file, self._stamp = None, None
        elif file != self._file or stamp(file) != self._stamp:
            self._file = file
            self.load()

    def load(self) -> None:
        """The file has changed."""
        file = self._file
        if file is None:
            return
        self._stamp = stamp(file)
        if self._stamp is None:
            self._loop.call("vanished", SETTLE)
            return
        try:
            result = self._enforced.attendance.load(file, str(file), FILE)
        except EnforcerError as error:
            self._wrong(file, error)
            return
        if isinstance(result, Work):
            self._jobs.add(Job("sessions", lambda: result, partial(self._finish, file)))
        else:
            self._loaded(file, result)

    def _finish(self, file: Path, work: Work) -> dict[str, Any]:
        try:
            result = work.result()
        except EnforcerError as error:
            self._wrong(file, error)
            return report_of(error)
        self._loaded(file, result)
        return result

    def _loaded(self, file: Path, result: dict[str, Any]) -> None:
        self._enforced.attendance.tell(file, result)
        self._loop.call("expiry")

    def _wrong(self, file: Path, error: EnforcerError) -> None:
        self._stamp = None  # a reload reads it again
        self._say(f"the sessions of {file} were not loaded, those in force stay:")
        self._say(str(error))

    def _vanished(self) -> None:
        if self._file is not None and stamp(self._file) is None:
            self._say(f"{self._file} is not there: its sessions stay as they are until it is")
