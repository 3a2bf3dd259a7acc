"""Reloads by worker processes: applies the file on request, or the configuration in force again.

The daemon itself only asks for the latter, for tables without room and for a new GeoIP database: so no
unfinished edit of the file comes into force without a request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from enforcer.control import worker
from enforcer.control.log import NOTICE
from enforcer.control.protocol import ControlConnection, report_of
from enforcer.control.worker import WorkerProcess
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.daemon.systemd import notify
from enforcer.datapath.banks import is_crowded
from enforcer.errors import EnforcerError, LostPinError

_log = logging.getLogger(__name__)

_TICK = 1.0
# Seconds until tables without room cause another reload, if the last one failed or did not help.
_ROOM_AGAIN = 60.0
_RELOAD, _REAPPLY, _HEAL = "reload", "reapply", "heal"
# Seconds until the next attempt to heal; they double with each failure, up to the second number.
_HEAL_AGAIN, _HEAL_SELDOM = 1.0, 60.0


class Reloader:
    """Calls ``activate`` after a process has changed the gateway, and again if it fails."""

    def __init__(
        self,
        loop: Loop,
        jobs: Jobs,
        runtime: Runtime,
        file: Path,
        *,
        activate: Callable[[], None],
    ):
        self._jobs = jobs
        self._runtime = runtime
        self._file = file
        self._activate = activate
        self._half_done = False
        self._pause = _HEAL_AGAIN
        self._activation = loop.timer(self._activate_again)
        self._next_look = loop.timer(self._look_for_room, _TICK)
        self._healing = loop.timer(self._heal)

    @property
    def under_way(self) -> bool:
        """Whether a process changes the gateway at this moment, so that the daemon's state is out of date."""
        return self._jobs.changing

    @property
    def half_done(self) -> bool:
        """Whether a process changes the gateway, or has left a plan incomplete that another one will heal."""
        return self._jobs.changing or self._half_done

    def ask(self, caller: ControlConnection | None = None) -> None:
        """Has the file applied, after the jobs before it; ``caller`` gets the result."""
        callers = [] if caller is None else [caller]
        waiting = self._jobs.waiting(_RELOAD)
        if waiting is not None:
            waiting.callers += callers
        else:
            begin = partial(self._begin, partial(worker.start, self._file))
            self._jobs.add(Job(_RELOAD, begin, self._finish, callers))

    def reapply(self) -> None:
        """Has the configuration in force applied again."""
        if not self._jobs.waiting(_RELOAD) and not self._jobs.waiting(_REAPPLY):
            self._jobs.add(Job(_REAPPLY, partial(self._begin, worker.start_again), self._finish))

    def _heal(self) -> None:
        """Has the configuration in force restored, before any other job."""
        if not self._jobs.waiting(_HEAL) and not self._jobs.runs(_HEAL):
            self._jobs.add(Job(_HEAL, partial(self._begin, worker.start_again), self._healed, urgent=True))

    def _healed(self, work: WorkerProcess) -> dict[str, Any]:
        result = self._result(work)
        if self._half_done:
            self._healing.start(self._pause)
            self._pause = min(2 * self._pause, _HEAL_SELDOM)
            return result
        self._pause = _HEAL_AGAIN
        return self._activated(result)

    def _begin(self, start: Callable[[], WorkerProcess]) -> WorkerProcess:
        with suppress(EnforcerError):
            # The process needs pins and files; it reports itself which ones it lacks.
            self._runtime.restore()
        began = time.monotonic_ns() // 1000
        work = start()
        notify(f"RELOADING=1\nMONOTONIC_USEC={began}")
        return work

    def _finish(self, work: WorkerProcess) -> dict[str, Any]:
        result = self._result(work)
        if self._half_done:
            self._heal()
            hint = "A plan is half done; the daemon restores what was in force: see `enforcer status`."
            return result | {"hint": hint}
        return self._activated(result)

    def _result(self, work: WorkerProcess) -> dict[str, Any]:
        try:
            result = work.result()
        except EnforcerError as error:
            self._half_done = self._runtime.half_done
            what = "is restored" if self._half_done else "stays"
            _log.error(f"reload failed, the configuration in force {what}: {error}")
            self._next_look.start(_ROOM_AGAIN)
            return report_of(error)
        self._half_done = False
        log_report(result)
        return result

    def _activated(self, result: dict[str, Any]) -> dict[str, Any]:
        try:
            self._activate()  # after a failure, too: the undo list may be longer
        except Exception:
            self._activation.start(_TICK)
            raise
        finally:
            notify("READY=1")
        return result

    def _activate_again(self) -> float | None:
        if self._jobs.busy:
            return _TICK
        try:
            self._activate()
        except LostPinError:
            self.reapply()  # removed before the daemon had opened them
            raise
        _log.info("the daemon has read the configuration in force now")
        return None

    def _look_for_room(self) -> float:
        if self.half_done:
            return _TICK
        try:
            crowded = is_crowded(self._runtime.maps)
        except LostPinError:  # Reconciler pins the map again
            return _TICK
        if crowded:
            _log.log(NOTICE, "the policy tables have little room left: they are rebuilt")
            self.reapply()
        elif not self._runtime.tables.fits:
            _log.warning("the policy tables do not match the facts: they are rebuilt")
            self.reapply()
            return _ROOM_AGAIN  # if one reload does not help, more of them do not either
        return _TICK


def log_report(result: Mapping[str, Any]) -> None:
    """Logs what a process that applied a configuration has reported (enforcer/workers/apply.py)."""
    for text in result["warnings"]:
        _log.warning(f"warning: {text}")
    for text in result.get("restored", ()):
        _log.warning(f"restored: {text}")
    for text in result["operations"]:
        _log.info(text)
