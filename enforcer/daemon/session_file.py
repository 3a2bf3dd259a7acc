"""The watched session file: loaded when it changes, by the daemon itself or by a process of its own.

One load at a time, and none while a reload runs that might put other maps or another file in force: sessions
that came into maps of before, or of a file that nobody watches any more, would be nobody's to end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from enforcer.control.protocol import report_of
from enforcer.control.worker import WorkerProcess
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop, Timer
from enforcer.daemon.runtime import Runtime
from enforcer.daemon.session_manager import is_large, load_apart
from enforcer.errors import EnforcerError
from enforcer.facts.rows import FILE
from enforcer.kernel.file_watch import Stamp, stamp

SETTLE = 1.0
"""Tools that replace a file may take the old one away first: seconds until the new one is there."""

_LOAD = "session file"


class SessionFile:
    """The file in force, and its stamp when it was loaded. ``expiry`` ends sessions whose time is over."""

    def __init__(
        self, loop: Loop, jobs: Jobs, runtime: Runtime, say: Callable[[str], None], *, expiry: Timer
    ):
        self._jobs = jobs
        self._runtime = runtime
        self._say = say
        self._file: Path | None = None
        self._stamp: Stamp = None
        self._expiry = expiry
        self._vanishing = loop.timer(self._vanished)

    def activate(self) -> None:
        """Loads the file that the configuration in force names, if it is another one or has changed."""
        file = self._runtime.session_file
        if file is None:
            ended = self._runtime.sessions.forget_file()
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
            self._vanishing.start(SETTLE)
        elif not self._jobs.waiting(_LOAD):  # what waits reads the file as it is then
            self._load(file)

    def _load(self, file: Path) -> None:
        try:
            # What an older content says must not come after what a newer one does.
            if self._jobs.runs(_LOAD) or is_large(file, str(file)):
                self._jobs.add(Job(_LOAD, self._begin, self._finish))
            else:
                self._loaded(file, self._runtime.sessions.load(file, str(file), FILE))
        except EnforcerError as error:
            self._wrong(file, error)

    def _begin(self) -> WorkerProcess | dict[str, Any]:
        """At its turn: a reload may have come before, with another file or none."""
        if self._file is None:
            return {}
        self._stamp = stamp(self._file)
        return load_apart(self._file, str(self._file), FILE)

    def _finish(self, work: WorkerProcess) -> dict[str, Any]:
        file = self._file
        assert file is not None  # no reload comes in between
        try:
            result = work.result()
        except EnforcerError as error:
            self._wrong(file, error)
            self._runtime.after(error)
            return report_of(error)
        self._loaded(file, result)
        return result

    def _loaded(self, file: Path, result: dict[str, Any]) -> None:
        self._runtime.sessions.tell(file, result)
        self._expiry.start()

    def _wrong(self, file: Path, error: EnforcerError) -> None:
        self._stamp = None  # a reload reads it again
        self._say(f"the sessions of {file} were not loaded, those in force stay:")
        self._say(str(error))

    def _vanished(self) -> None:
        if self._file is not None and stamp(self._file) is None:
            self._say(f"{self._file} is not there: its sessions stay as they are until it is")
