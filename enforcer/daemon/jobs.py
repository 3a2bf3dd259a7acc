"""Jobs, each a worker process: runs one at a time and answers the requests that asked for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from enforcer.control.protocol import ControlConnection, report_of
from enforcer.control.worker import WorkerProcess
from enforcer.daemon.loop import Loop
from enforcer.daemon.requests import FAILED
from enforcer.errors import EnforcerError, KernelError

_TICK = 0.5
INTERRUPTED = report_of(EnforcerError("interrupted: nothing has changed"))
"""The answer to a caller that has withdrawn its request before anything changed."""


@dataclass(eq=False)
class Job:
    """A worker process to start when the jobs before it are done, and the callers that wait for it."""

    name: str
    begin: Callable[[], WorkerProcess | dict[str, Any]]
    """Starts the process; returns a result instead if there is nothing left to do."""
    finish: Callable[[WorkerProcess], dict[str, Any]]
    """Returns the answer. An error that it raises is the answer too, and the loop logs it."""
    callers: list[ControlConnection] = field(default_factory=list)
    urgent: bool = False
    """Whether the job comes before all others, and begins although the daemon is about to end."""
    revocable: bool = False
    """Whether the job is dropped if its caller hangs up before anything has changed."""


class Jobs:
    """The job that runs and the queue behind it."""

    def __init__(self, loop: Loop):
        self._loop = loop
        self._queue: deque[Job] = deque()
        self._running: tuple[Job, WorkerProcess] | None = None
        self._ending = False
        self._listening: set[ControlConnection] = set()
        self._next_job = loop.timer(self._next)
        self._next_look = loop.timer(self._look)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self._running is not None or bool(self._queue)

    def runs(self, name: str) -> bool:
        """Whether a job of this name is running."""
        return self._running is not None and self._running[0].name == name

    @property
    def changing(self) -> bool:
        """Whether a process changes the gateway at this moment."""
        return self._running is not None and self._running[1].changing

    def waiting(self, name: str) -> Job | None:
        """The first job of this name that has not begun."""
        return next((job for job in self._queue if job.name == name), None)

    def add(self, job: Job) -> None:
        """Queues a job."""
        if job.urgent:
            self._queue.appendleft(job)
        else:
            self._queue.append(job)
        if job.revocable:
            for caller in job.callers:
                self._listening.add(caller)
                self._loop.watch(caller, partial(self._listen, job, caller))
        self._next_job.start()

    def end(self) -> None:
        """Begins no further job but urgent ones, and kills a process that has changed nothing yet."""
        self._ending = True
        if self._running is not None and self._running[1].prepares:
            self._running[1].kill("was ended with its daemon")
        self._next_job.start()

    def _listen(self, job: Job, caller: ControlConnection) -> None:
        if not caller.has_left():
            return
        self._ignore(caller)
        if job in self._queue:
            self._queue.remove(job)
            self._answer(job, INTERRUPTED)
        elif self._running is not None and self._running[0] is job:
            self._running[1].interrupt()

    def _ignore(self, caller: ControlConnection) -> None:
        if caller in self._listening:
            self._listening.remove(caller)
            self._loop.unwatch(caller)

    def _answer(self, job: Job, result: dict[str, Any]) -> None:
        for caller in job.callers:
            self._ignore(caller)
            caller.answer(result)

    def _next(self) -> None:
        while self._running is None and self._queue:
            job = self._queue.popleft()
            begun = self._begin(job)
            if isinstance(begun, WorkerProcess):
                self._running = job, begun
                self._loop.watch(begun, self._read)
                self._next_look.start(_TICK)
            else:
                self._answer(job, begun)

    def _begin(self, job: Job) -> WorkerProcess | dict[str, Any]:
        if self._ending and not job.urgent:
            return report_of(EnforcerError("the daemon is about to end"))
        try:
            return job.begin()
        except OSError as error:
            failure = KernelError(f"no process can be started: {error.strerror}")
            self._answer(job, report_of(failure))
            raise failure from error
        except Exception:
            self._answer(job, FAILED)
            raise

    def _read(self) -> None:
        if self._running is None:
            return
        if self._running[1].ended():
            self._finish(*self._running)

    def _look(self) -> float | None:
        """Kills a process that hangs; does not wait for one that cannot be killed."""
        if self._running is None:
            return None
        if not self._running[1].look():
            self._finish(*self._running)
        return _TICK

    def _finish(self, job: Job, work: WorkerProcess) -> None:
        self._loop.unwatch(work)
        self._running = None
        result = FAILED
        try:
            result = job.finish(work)
        except EnforcerError as error:
            result = report_of(error)
            raise
        finally:
            self._answer(job, INTERRUPTED if job.revocable and work.interrupted else result)
            # Timers that were started meanwhile are due before the next job.
            self._next_job.start()
