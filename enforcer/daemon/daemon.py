"""One gateway's daemon: makes its parts, connects them, and handles requests and signals."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from enforcer.control import worker as applying
from enforcer.control.log import NOTICE
from enforcer.control.protocol import ControlConnection, report_of
from enforcer.control.worker import LostError, WorkerProcess
from enforcer.daemon.announcer import Announcer
from enforcer.daemon.fast_path_invalidator import FastPathInvalidator
from enforcer.daemon.feeds import Feeds
from enforcer.daemon.files import Files
from enforcer.daemon.flow_sweeper import FlowSweeper
from enforcer.daemon.jobs import Job, Jobs
from enforcer.daemon.loop import Loop, signals
from enforcer.daemon.reconciler import Reconciler
from enforcer.daemon.reloader import Reloader, log_report
from enforcer.daemon.requests import Requests
from enforcer.daemon.runtime import Runtime
from enforcer.daemon.session_file import SessionFile
from enforcer.daemon.session_manager import is_large, load_apart
from enforcer.daemon.systemd import notify, watchdog_interval
from enforcer.errors import EnforcerError, UsageError
from enforcer.facts.rows import COMMAND
from enforcer.instance import Instance
from enforcer.kernel.link_watch import LinkWatch
from enforcer.kernel.links import links
from enforcer.kernel.path_watch import PathWatch
from enforcer.kernel.watch import Watch

_log = logging.getLogger(__name__)

# Attempts to apply the file at the start, if the process that applies it is lost.
_ATTEMPTS = 3


def _notify_watchdog() -> float | None:
    notify("WATCHDOG=1")
    return watchdog_interval()


class Daemon:
    """``on_ready`` gets the ready line; all other lines go to the log."""

    def __init__(self, instance: Instance, file: Path, on_ready: Callable[[str], None]):
        self._instance = instance
        self._file = file
        self._on_ready = on_ready
        self._running = True

    def run(self, work: WorkerProcess) -> None:
        """Runs until SIGTERM or SIGINT, under the daemon's lock, which the caller holds.

        ``work`` applies the file (enforcer/control/worker.py). Raises its error.
        """
        # Each hook holds a descriptor (datapath/held_pins.py), and there may be hundreds of interfaces.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        with ExitStack() as stack:
            watch = stack.enter_context(Watch())
            known = {name: link.index for name, link in links().items()}
            wake = stack.enter_context(signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
            log_report(self._started(work))
            self._loop = stack.enter_context(closing(Loop()))
            self._compose(stack, watch, known)
            self._activate()
            handlers = {
                "reload": self._reload,
                "session load": self._load_sessions,
                "session add": self._add_session,
                "session remove": lambda request, _: self._runtime.sessions.remove(request),
                "dns": lambda *_: self._feeds.report("names"),
                "warnings": lambda *_: {"warnings": self._flow_sweeper.warnings},
            }
            stack.enter_context(closing(Requests(self._loop, self._instance.control_socket, handlers)))
            self._loop.watch(wake, lambda: self._on_signals(wake))
            self._ready(stack)
            # Waits for the running job: nothing would complete half a reload.
            self._loop.run(lambda: self._running or self._jobs.busy)
        _log.log(NOTICE, "ended; enforcement continues without the daemon (enforcer down removes it)")

    def _started(self, work: WorkerProcess) -> dict[str, Any]:
        """The result of the process that applies the file. A process that is lost half-way is replaced."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return work.wait()
            except LostError as error:
                _log.warning(f"{error}; trying again")
                work = applying.start(self._file, applying.START)
        return work.wait()

    def _compose(self, stack: ExitStack, watch: Watch, known: Mapping[str, int]) -> None:
        loop = self._loop
        self._jobs = Jobs(loop)
        self._runtime = stack.enter_context(closing(Runtime(self._instance)))
        self._reloader = Reloader(loop, self._jobs, self._runtime, self._file, activate=self._after_reload)
        self._reconciler = Reconciler(
            loop,
            watch,
            self._runtime,
            lambda: self._reloader.half_done,
            reapply=self._reloader.reapply,
            known=known,
        )
        self._fast_path = FastPathInvalidator(loop, stack.enter_context(PathWatch()), self._runtime)
        self._announcer = Announcer(loop, stack.enter_context(LinkWatch()), self._runtime)
        self._flow_sweeper = FlowSweeper(
            loop,
            self._runtime,
            lambda: self._reloader.under_way,
            lambda: self._reconciler.timeouts,
            look=self._announcer.note,
        )
        self._feeds = stack.enter_context(closing(Feeds(loop, self._runtime)))
        self._expiry = loop.timer(self._expire)
        session_file = SessionFile(loop, self._jobs, self._runtime, expiry=self._expiry)
        files = Files(loop, self._runtime, session_file, self._reloader.reapply)
        self._files = stack.enter_context(closing(files))

    def _ready(self, stack: ExitStack) -> None:
        location, count = self._runtime.config.get("location", "?"), len(self._runtime.wanted.ours)
        self._on_ready(f"ready: location {location}, {count} egress IPs, pid {os.getpid()}")
        notify("READY=1\nSTATUS=enforcing")
        stack.callback(notify, "STOPPING=1")
        if watchdog_interval():
            self._loop.timer(_notify_watchdog, 0.0)

    def _activate(self) -> None:
        """Has each part read the configuration in force now."""
        self._reconciler.refresh()
        self._fast_path.activate()
        self._announcer.activate()
        self._expiry.start(self._expire())
        self._files.activate()
        self._feeds.activate()

    def _expire(self) -> float:
        return self._runtime.sessions.expire()

    def _after_reload(self) -> None:
        self._reconciler.catch_up()
        self._flow_sweeper.catch_up()
        self._runtime.activate()
        self._activate()

    # --- requests and signals

    def _reload(self, _: Mapping[str, Any], caller: ControlConnection) -> None:
        self._reloader.ask(caller)

    def _add_session(self, request: Mapping[str, Any], _: ControlConnection) -> dict[str, Any]:
        result = self._runtime.sessions.add(request)
        self._expiry.start()
        return result

    def _load_sessions(self, request: Mapping[str, Any], caller: ControlConnection) -> dict[str, Any] | None:
        file = Path(str(request.get("file")))
        if not file.is_absolute():
            raise UsageError(f"{file}: not an absolute path")
        name = str(request.get("name") or file)
        if not is_large(file, name):
            return self._runtime.sessions.load(file, name, COMMAND)
        begin = partial(load_apart, file, name, COMMAND, time.time())
        self._jobs.add(Job("sessions", begin, self._loaded_sessions, [caller], revocable=True))
        return None

    def _loaded_sessions(self, work: WorkerProcess) -> dict[str, Any]:
        self._expiry.start()
        try:
            return work.result()
        except EnforcerError as error:
            if not work.interrupted:
                self._runtime.after(error)
            return report_of(error)

    def _on_signals(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            if number == signal.SIGHUP:
                self._reloader.ask()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._running = False
                self._jobs.end()
