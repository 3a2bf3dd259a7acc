"""The watched session file: loads it when it changes, in the daemon or, if it is large, in a worker process.

One load runs at a time, and none while a reload runs, which may put other maps or another file in force:
sessions that a load put into the former maps, or that it read from a file that is no longer watched, would
never end.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from enforcer.control.log import NOTICE
from enforcer.control.protocol import report_of
from enforcer.control.worker import WorkerProcess
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop, Timer
from enforcer.daemon.runtime import Runtime
from enforcer.daemon.session_manager import is_large, load_apart
from enforcer.errors import EnforcerError
from enforcer.facts.rows import FILE
from enforcer.kernel.file_watch import Stamp, stamp

_log = logging.getLogger(__name__)

SETTLE = 1.0
"""Seconds that a tool which replaces a file may need between removing the old one and writing the new one."""

_LOAD = "session file"


class SessionFile:
    """The file in force, and its stamp when it was loaded. ``expiry`` ends sessions whose time is over."""

    def __init__(self, loop: Loop, jobs: Jobs, runtime: Runtime, *, expiry: Timer):
        self._jobs = jobs
        self._runtime = runtime
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
                _log.log(NOTICE, f"no session file is configured any more: {ended:,} sessions ended")
            self._file, self._stamp = None, None
        elif file != self._file or stamp(file) != self._stamp:
            self._file = file
            self.load()

    def load(self) -> None:
        """Loads the file, which has changed."""
        file = self._file
        if file is None:
            return
        self._stamp = stamp(file)
        if self._stamp is None:
            self._vanishing.start(SETTLE)
        elif not self._jobs.waiting(_LOAD):  # a job that waits reads the file when it begins
            self._load(file)

    def _load(self, file: Path) -> None:
        try:
            # Of two loads the one of the newer content must end last.
            if self._jobs.runs(_LOAD) or is_large(file, str(file)):
                self._jobs.add(Job(_LOAD, self._begin, self._finish))
            else:
                self._loaded(file, self._runtime.sessions.load(file, str(file), FILE))
        except EnforcerError as error:
            self._wrong(file, error)

    def _begin(self) -> WorkerProcess | dict[str, Any]:
        """Begins the job; a reload before it may have named another file or none."""
        if self._file is None:
            return {}
        self._stamp = stamp(self._file)
        return load_apart(self._file, str(self._file), FILE)

    def _finish(self, work: WorkerProcess) -> dict[str, Any]:
        file = self._file
        assert file is not None  # no reload runs at the same time
        try:
            result = work.result()
        except EnforcerError as error:
            self._wrong(file, error)
            self._runtime.after(error)
            return report_of(error)
        self._loaded(file, result)
        return result

    def _loaded(self, file: Path, result: dict[str, Any]) -> None:
        self._runtime.sessions.log_loaded(file, result)
        self._expiry.start()

    def _wrong(self, file: Path, error: EnforcerError) -> None:
        self._stamp = None  # so that a reload reads it again
        _log.error(f"the sessions of {file} were not loaded, those in force stay:\n{error}")

    def _vanished(self) -> None:
        if self._file is not None and stamp(self._file) is None:
            _log.warning(f"{self._file} is not there: its sessions stay as they are until it is")
