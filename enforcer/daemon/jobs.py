"""Work in processes of its own, one at a time, and the answers to those who wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from enforcer.applying import Work
from enforcer.control import Caller, report_of
from enforcer.daemon.loop import Loop
from enforcer.errors import EnforcerError


@dataclass
class Job:
    """Work to begin when its turn comes, and who waits for its result."""

    name: str
    begin: Callable[[], Work]
    finish: Callable[[Work], dict[str, Any]]
    callers: list[Caller] = field(default_factory=list)
    work: Work | None = None


class Jobs:
    """The job that runs and the queue behind it."""

    def __init__(self, loop: Loop):
        self._loop = loop
        self._queue: deque[Job] = deque()
        self._job: Job | None = None
        self._ending = False
        loop.task("next job", self._next)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self._job is not None or bool(self._queue)

    def runs(self, name: str) -> bool:
        """Whether a job of this name runs just now."""
        return self._job is not None and self._job.name == name

    def waiting(self, name: str) -> Job | None:
        """The first job of this name that has not begun."""
        return next((job for job in self._queue if job.name == name), None)

    def add(self, job: Job) -> None:
        """Does it after what is under way."""
        self._queue.append(job)
        self._loop.call("next job")

    def end(self) -> None:
        """Nothing is begun any more."""
        self._ending = True
        self._loop.call("next job")

    def _next(self) -> None:
        while self._job is None and self._queue:
            job = self._queue.popleft()
            if self._ending:
                _answer(job, report_of(EnforcerError("the daemon is about to end")))
                continue
            self._job = job
            job.work = job.begin()
            self._loop.watch(job.work, self._read)

    def _read(self) -> None:
        job = self._job
        if job is None or job.work is None or not job.work.ended():
            return
        self._loop.unwatch(job.work)
        self._job = None
        result: dict[str, Any] = {"error": "the daemon failed", "hint": "See its log.", "exit_code": 1}
        try:
            result = job.finish(job.work)
        finally:
            _answer(job, result)
            # What was put off has its turn first.
            self._loop.call("next job")


def _answer(job: Job, result: dict[str, Any]) -> None:
    for caller in job.callers:
        caller.answer(result)
