"""Reloads, each by a process of its own: of the file when somebody asks, else of what is in force already.

The latter is for tables that run full and for a new database of places: a file that somebody is just writing
must not come into force by that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from enforcer.control import worker
from enforcer.control.protocol import ControlConnection, report_of
from enforcer.control.worker import WorkerProcess
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.daemon.systemd import notify
from enforcer.datapath.banks import is_crowded
from enforcer.errors import EnforcerError, LostPinError

_TICK = 1.0
# After a reload that failed or did not help, the tables ask for one again in so many seconds.
_PATIENCE = 60.0
_RELOAD, _AGAIN, _HEAL = "reload", "again", "heal"
# After an attempt to heal that failed the next comes in so many seconds, and then in twice as many.
_HEAL_AGAIN, _HEAL_SELDOM = 1.0, 60.0


class Reloader:
    """``activate`` is called when a process has changed the gateway, and again in a while if it fails."""

    def __init__(
        self,
        loop: Loop,
        jobs: Jobs,
        runtime: Runtime,
        file: Path,
        *,
        say: Callable[[str], None],
        activate: Callable[[], None],
    ):
        self._jobs = jobs
        self._runtime = runtime
        self._file = file
        self._say = say
        self._activate = activate
        self._half_done = False
        self._pause = _HEAL_AGAIN
        self._activation = loop.timer(self._again)
        self._next_look = loop.timer(self._look_for_room, _TICK)
        self._healing = loop.timer(self._heal)

    @property
    def under_way(self) -> bool:
        """Whether a process changes the gateway at this moment: what is known here is of before."""
        return self._jobs.changing

    @property
    def half_done(self) -> bool:
        """The same, or one has ended half-way: another is going to put back what is in force."""
        return self._jobs.changing or self._half_done

    def ask(self, caller: ControlConnection | None = None) -> None:
        """Has the file applied, after what is under way; ``caller`` gets the result."""
        callers = [] if caller is None else [caller]
        waiting = self._jobs.waiting(_RELOAD)
        if waiting is not None:
            waiting.callers += callers
        else:
            begin = partial(self._begin, partial(worker.start, self._file))
            self._jobs.add(Job(_RELOAD, begin, self._finish, callers))

    def again(self) -> None:
        """Has the configuration in force applied once more."""
        if not self._jobs.waiting(_RELOAD) and not self._jobs.waiting(_AGAIN):
            self._jobs.add(Job(_AGAIN, partial(self._begin, worker.start_again), self._finish))

    def _heal(self) -> None:
        """Has what is in force put back, before anything else."""
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
            # The process looks for pins and files; it says itself what it lacks.
            self._runtime.restore()
        began = time.monotonic_ns() // 1000
        work = start()
        notify(f"RELOADING=1\nMONOTONIC_USEC={began}")
        return work

    def _finish(self, work: WorkerProcess) -> dict[str, Any]:
        result = self._result(work)
        if self._half_done:
            self._heal()
            hint = "A plan is half done; the daemon puts back what is in force: see `enforcer status`."
            return result | {"hint": hint}
        return self._activated(result)

    def _result(self, work: WorkerProcess) -> dict[str, Any]:
        try:
            result = work.result()
        except EnforcerError as error:
            self._half_done = self._runtime.half_done
            what = "what is in force is put back" if self._half_done else "what was in force stays"
            self._say(f"reload failed, {what}: {error}")
            self._next_look.start(_PATIENCE)
            return report_of(error)
        self._half_done = False
        report(result, self._say)
        return result

    def _activated(self, result: dict[str, Any]) -> dict[str, Any]:
        try:
            self._activate()  # after a failure, too: what there is to undo may have grown
        except Exception:
            self._activation.start(_TICK)
            raise
        finally:
            notify("READY=1")
        return result

    def _again(self) -> float | None:
        if self._jobs.busy:
            return _TICK
        try:
            self._activate()
        except LostPinError:
            self.again()  # removed before they were held
            raise
        self._say("what is in force has been taken up now")
        return None

    def _look_for_room(self) -> float:
        if self.half_done:
            return _TICK
        try:
            crowded = is_crowded(self._runtime.maps)
        except LostPinError:  # the table's pin, which Reconciler makes again
            return _TICK
        if crowded:
            self._say("the policy tables have little room left: they are made anew")
            self.again()
        elif not self._runtime.tables.fits:
            self._say("the policy tables are not those that the facts are about: they are made anew")
            self.again()
            return _PATIENCE  # if that did not help, neither would asking more often
        return _TICK


def report(result: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Says what a process that applied the file has done."""
    for line in [*(f"warning: {text}" for text in result["warnings"]), *result["operations"]]:
        say(line)
