"""The daemon: applies the file, then keeps it so. Never in a packet's way.

One thread, one loop: signals, the control socket, events of the kernel and of files, sessions' expiry, and a
sweep now and then. What needs the compiler or the configuration's models runs in a process of its own
(enforcer/apply.py), as does what would take long; the loop goes on meanwhile.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from enforcer import applying, availability, control
from enforcer.applying import Work
from enforcer.datapath import sweep
from enforcer.datapath.banks import is_crowded
from enforcer.datapath.maps import Maps
from enforcer.desired import Desired
from enforcer.errors import EnforcerError, KernelError, UsageError
from enforcer.facts.inforce import InForce, refill
from enforcer.facts.rows import COMMAND, FILE
from enforcer.facts.store import Store
from enforcer.gateway import Gateway
from enforcer.instance import Instance
from enforcer.kernel import conntrack
from enforcer.kernel.files import FileWatch, Stamp, stamp
from enforcer.kernel.watch import Watch
from enforcer.plan import LoadPrograms, SwitchTables, plan
from enforcer.sessions import Attendance, watched

# A sweep takes a share of one core: it waits for this many times what the last one took.
_SWEEP_REST = 100
_SWEEP_AT_LEAST = 1.0
_AUDIT_EVERY = 60.0
# How many flows a sweep asks conntrack about, at some 10 µs each.
_ASK_UNANSWERED = 2000
_ASK_IDLE = 250
# Files are looked at so often besides their events, and a new database may come in several steps.
_LOOK_EVERY = 5.0
_SETTLE = 1.0
_TICK = 1.0


class Source(Protocol):
    """Something else that the loop serves: readable now and then, with a tick about once a second.

    What is wanted of a configuration is kept over a reload (``use``); what is no more is closed.
    """

    def fileno(self) -> int:
        """Readable when :meth:`drain` has something to do."""

    def drain(self) -> None:
        """Do it; never waits."""

    def tick(self) -> None:
        """What time brings."""

    def use(self, store: Store, tables: InForce, config: Mapping[str, Any]) -> None:
        """Another configuration is in force."""

    def report(self) -> dict[str, Any]:
        """What it has to tell."""

    def close(self) -> None:
        """The end."""


class Maker(Protocol):
    """Makes a source if the configuration in force (its JSON form) asks for it, else None."""

    def __call__(self, daemon: Daemon, config: Mapping[str, Any]) -> Callable[[], Source] | None:
        """What opens the source."""


def _names(daemon: Daemon, config: Mapping[str, Any]) -> Callable[[], Source] | None:
    """What learns names from DNS answers, if a policy asks for names."""
    if daemon.wanted is None or not daemon.wanted.dns:
        return None
    # The library of DNS is for those who need it.
    from enforcer.dns.alive import destinations
    from enforcer.dns.learner import Learner

    def alive() -> Collection[bytes]:
        return destinations(daemon.maps.flows) if daemon.maps is not None else ()

    return lambda: Learner(daemon.store, daemon.tables, config, say=daemon.say, alive=alive)


SOURCES: dict[str, Maker] = {"names": _names}
"""Makers by name. A maker gives what opens the source, which is called only if it isn't open."""


@dataclass
class Job:
    """Work for a process of its own, one at a time, and who waits for its result."""

    kind: str
    begin: Callable[[], Work]
    finish: Callable[[Work], dict[str, Any]]
    callers: list[control.Caller] = field(default_factory=list)
    work: Work | None = None


def notify(message: str) -> None:
    """Tells systemd (sd_notify(3)), if it started us."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)


def watchdog_interval() -> float | None:
    """Seconds between two signs of life that systemd asks for: half its limit."""
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 2e6 if microseconds else None


class Daemon:
    """One gateway's daemon; ``say`` receives lines for the person or the journal."""

    def __init__(self, instance: Instance, file: Path, say: Callable[[str], None]):
        self.instance = instance
        self.file = file
        self.say = say
        self.running = True
        self.due: dict[str, float] = {}
        self.asked_since = 0.0
        self.gateway = Gateway(instance)
        self.wanted: Desired | None = None
        self.maps: Maps | None = None
        self.available: dict[str, tuple[bool, bool]] = {}
        self.timeouts = np.zeros(0)
        self.jobs: deque[Job] = deque()
        self.job: Job | None = None
        self.missed: set[str] = set()
        self.sources: dict[str, Source] = {}
        self.callers: list[control.Caller] = []
        self.session_file: Path | None = None
        self.session_stamp: Stamp = None
        self.store: Store
        self.tables: InForce
        self.attendance: Attendance
        self.watch: Watch
        self.files: FileWatch
        self.selector: selectors.BaseSelector

    def run(self, work: Work) -> None:
        """Until SIGTERM or SIGINT, under the daemon's lock, which the caller holds.

        ``work`` applies the file (enforcer/applying.py). Raises its error.
        """
        with ExitStack() as stack:
            self.watch = stack.enter_context(Watch())
            wake = stack.enter_context(_signals())
            self._report(work.result())
            self.selector = stack.enter_context(selectors.DefaultSelector())
            self.files = FileWatch()
            stack.callback(self.files.close)
            self.store = Store(self.instance.facts_file)
            stack.callback(self.store.close)
            stack.callback(self._close_sources)
            self._load()
            server = control.listen(self.instance.control_socket)
            try:
                self.say(f"ready: location {self._location()}, {self._count()} egress IPs, pid {os.getpid()}")
                notify("READY=1\nSTATUS=enforcing")
                self._loop(server, wake)
            finally:
                notify("STOPPING=1")
                server.close()
                self.instance.control_socket.unlink(missing_ok=True)
        self.say("ended; enforcement goes on without the daemon (enforcer down takes it away)")

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration in force, in its JSON form."""
        return self.gateway.state.config if self.gateway.state else {}

    def _location(self) -> str:
        return str(self.config.get("location", "?"))

    def _count(self) -> int:
        return len(self.wanted.ours) if self.wanted else 0

    def _report(self, result: dict[str, Any]) -> None:
        for line in [*(f"warning: {text}" for text in result["warnings"]), *result["operations"]]:
            self.say(line)

    def _load(self) -> None:
        """Takes up what the child has put in force."""
        before = self.maps
        self.gateway = Gateway(self.instance)
        self.wanted = self.gateway.previous
        self.maps = self.gateway.maps()
        if before is not None:
            if before.directory != self.maps.directory:
                # Other maps: what changed between their filling and now is in the old ones.
                with self.store.change():
                    refill(self.maps, self.store)
            before.close()
        self._refresh()
        self.tables = InForce(self.maps, self.store)
        self.attendance = Attendance(self.store, self.tables, self.maps, self.say)
        self._load_sources()
        self._expire()
        self._load_files()

    # --- what else the loop serves

    def _load_sources(self) -> None:
        for name, maker in SOURCES.items():
            opener = maker(self, self.config)
            if opener is None:
                self._close_source(name)
            elif name in self.sources:
                self.sources[name].use(self.store, self.tables, self.config)
            else:
                self.sources[name] = opener()
                self.selector.register(self.sources[name], selectors.EVENT_READ, self.sources[name].drain)

    def _close_source(self, name: str) -> None:
        if name in self.sources:
            source = self.sources.pop(name)
            self.selector.unregister(source)
            source.close()

    def _close_sources(self) -> None:
        for name in list(self.sources):
            self._close_source(name)

    def _tick(self) -> None:
        self.due["tick"] = time.monotonic() + _TICK
        for source in self.sources.values():
            self._guarded(source.tick)
        if not self.reloading and self.maps is not None and is_crowded(self.maps):
            self.say("the policy tables have little room left: they are made anew")
            self._reload()
        for caller in [caller for caller in self.callers if caller.late]:
            self._hang_up(caller)

    # --- files

    def _watched(self) -> tuple[Path | None, Path | None]:
        database = self.config.get("geoip", {}).get("database")
        return watched(self.config), Path(database) if database else None

    def _load_files(self) -> None:
        """Watches the files that the configuration names; loads the session file if it is another one."""
        sessions, _ = files = self._watched()
        self.files.watch(file for file in files if file is not None)
        if sessions is None:
            ended = self.attendance.forget_file()
            if ended:
                self.say(f"no session file is configured any more: {ended:,} sessions ended")
            self.session_file, self.session_stamp = None, None
        elif sessions != self.session_file or stamp(sessions) != self.session_stamp:
            self.session_file = sessions
            self._load_sessions()

    def _look(self) -> None:
        self.due["look"] = time.monotonic() + _LOOK_EVERY
        self._on_files(self.files.look())

    def _on_files(self, changed: Collection[Path]) -> None:
        sessions, database = self._watched()
        if sessions in changed:
            self._load_sessions()
        if database in changed:
            # Files come in several steps, and tools take the old one away first.
            self.due["database"] = time.monotonic() + _SETTLE

    def _load_database(self) -> None:
        self.due.pop("database", None)
        _, database = self._watched()
        if database is None:
            return
        if stamp(database) is None:
            self.say(f"{database} is gone: places stay as they are until it is there again")
            return
        self.say(f"{database} has changed: reloading")
        self._reload()

    def _load_sessions(self) -> None:
        file = self.session_file
        if file is None:
            return
        self.session_stamp = stamp(file)
        if self.session_stamp is None:
            self.due["vanished"] = time.monotonic() + _SETTLE
            return
        try:
            result = self.attendance.load(file, str(file), FILE)
        except EnforcerError as error:
            self._wrong_sessions(file, error)
            return
        if isinstance(result, Work):
            self._enqueue(
                Job("sessions", partial(_just, result), partial(self._finish_file, file), work=result)
            )
        else:
            self.attendance.tell(file, result)
            self._expire()

    def _finish_file(self, file: Path, work: Work) -> dict[str, Any]:
        try:
            result = work.result()
        except EnforcerError as error:
            self._wrong_sessions(file, error)
            return control.report_of(error)
        self.attendance.tell(file, result)
        self._expire()
        return result

    def _wrong_sessions(self, file: Path, error: EnforcerError) -> None:
        self.session_stamp = None  # a reload reads it again
        self.say(f"the sessions of {file} were not loaded, those in force stay:")
        self.say(str(error))

    def _vanished(self) -> None:
        self.due.pop("vanished", None)
        if self.session_file is not None and stamp(self.session_file) is None:
            self.say(f"{self.session_file} is not there: its sessions stay as they are until it is")

    # --- sessions

    def _expire(self) -> None:
        self.due["expiry"] = time.monotonic() + _TICK
        self.due["expiry"] = time.monotonic() + self.attendance.expire()

    def _session_load(self, request: Mapping[str, Any], caller: control.Caller) -> dict[str, Any] | None:
        file = Path(str(request.get("file")))
        if not file.is_absolute():
            raise UsageError(f"{file}: not an absolute path")
        result = self.attendance.load(file, str(request.get("name") or file), COMMAND)
        if not isinstance(result, Work):
            return result
        self._enqueue(Job("sessions", partial(_just, result), self._finish_load, [caller], work=result))
        return None

    def _finish_load(self, work: Work) -> dict[str, Any]:
        try:
            return work.result()
        except EnforcerError as error:
            return control.report_of(error)
        finally:
            self._expire()

    # --- work in processes of its own

    @property
    def reloading(self) -> bool:
        """Whether a process changes the gateway just now: what is here is of before."""
        return self.job is not None and self.job.kind == "reload"

    def _reload(self, caller: control.Caller | None = None) -> None:
        """Has the file applied, after what is under way; ``caller`` gets the result."""
        callers = [] if caller is None else [caller]
        for job in self.jobs:
            if job.kind == "reload":
                job.callers += callers
                return
        self._enqueue(Job("reload", self._begin_reload, self._finish_reload, callers))

    def _begin_reload(self) -> Work:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        return applying.start(self.file)

    def _finish_reload(self, work: Work) -> dict[str, Any]:
        try:
            result = work.result()
            self._report(result)
            self._load()
        except EnforcerError as error:
            self.say(f"reload failed, what was in force stays: {error}")
            with suppress(EnforcerError):
                self._load()  # what there is to undo may have grown
            return control.report_of(error)
        finally:
            notify("READY=1")
        return result

    def _enqueue(self, job: Job) -> None:
        self.jobs.append(job)
        self._next_job()

    def _next_job(self) -> None:
        while self.job is None and self.jobs:
            job = self.jobs.popleft()
            if not self.running:
                self._answer(job, control.report_of(EnforcerError("the daemon is about to end")))
                continue
            self.job = job
            job.work = job.begin()
            self.selector.register(job.work, selectors.EVENT_READ, self._on_work)

    def _on_work(self) -> None:
        job = self.job
        if job is None or job.work is None or not job.work.ended():
            return
        self.selector.unregister(job.work)
        reloaded, self.job = self.reloading, None
        result: dict[str, Any] = {"error": "the daemon failed", "hint": "See its log.", "exit_code": 1}
        try:
            result = job.finish(job.work)
        finally:
            self._answer(job, result)
            if reloaded:
                self._catch_up()
            self._next_job()

    def _answer(self, job: Job, result: dict[str, Any]) -> None:
        for caller in job.callers:
            caller.answer(result)

    def _catch_up(self) -> None:
        """What the kernel said while a process changed the gateway."""
        missed, self.missed = self.missed, set()
        if missed:
            self._guarded(lambda: self._after(missed))

    # --- keeping it so

    def _refresh(self) -> None:
        """Availability into the maps; says what changed."""
        assert self.maps is not None and self.wanted is not None
        self.timeouts = availability.write_timeouts(self.maps)
        now = availability.refresh(self.maps, self.wanted)
        for name, (ipv4, ipv6) in now.items():
            if self.available.get(name, (True, True)) != (ipv4, ipv6):
                state = {(True, True): "available", (False, False): "unavailable"}.get(
                    (ipv4, ipv6), "IPv4 unavailable" if ipv6 else "IPv6 unavailable"
                )
                self.say(f"egress {name}: {state}")
        self.available = now

    def _keep(self, *, distrust_table: bool = False) -> None:
        """Puts back what somebody took away of the table, the filters and the settings.

        The table's digest doesn't tell of rules that somebody changed: ``distrust_table`` writes it anew.
        """
        assert self.wanted is not None and self.gateway.state is not None
        with self.instance.change_lock():
            state = self.gateway.state
            actual = self.gateway.actual(self.wanted)
            if self.gateway.pins is not None:
                # Newer sources on the disk are for the next start, in a process of its own.
                actual = replace(actual, programs=self.gateway.pins.program_ids())
            # A bank without room is for a reload, too.
            actual = replace(actual, tables=state.tables)
            if distrust_table and actual.table is not None:
                actual = replace(actual, table="")
            operations = plan(self.wanted, actual, self.wanted, state.tables, restore=False)
            if any(isinstance(operation, LoadPrograms | SwitchTables) for operation in operations):
                raise KernelError(
                    "somebody removed pinned programs or settings", "Load them: enforcer reload"
                )
            if operations:
                self.gateway.apply(operations, self.wanted, None, state)
                for operation in operations:
                    self.say(f"put back: {operation}")

    def _sweep(self) -> None:
        """Reaps idle flows, and those that conntrack doesn't have: never had (dropped behind us, no port
        free) or no more (deleted by somebody, or when its table was full).
        """
        if self.reloading:
            self.due["sweep"] = time.monotonic() + _SWEEP_AT_LEAST
            return
        assert self.maps is not None and self.gateway.pins is not None
        began = time.monotonic()
        found = sweep.sweep(self.maps, self.gateway.pins, self.timeouts, self.asked_since, _ASK_IDLE)
        suspects = np.concatenate([sweep.some(found.unanswered, _ASK_UNANSWERED), found.idle])
        if len(suspects):
            unknown = conntrack.missing([_tuple(key) for key in suspects])
            sweep.reap(self.gateway.pins, suspects[unknown], unknown=True)
        if len(found.unanswered) <= _ASK_UNANSWERED:
            self.asked_since = began - 2.5
        sweep.forget_origins(self.maps.origins, self.gateway.pins)
        self.due["sweep"] = time.monotonic() + max(_SWEEP_AT_LEAST, _SWEEP_REST * (time.monotonic() - began))

    def _audit(self) -> None:
        """What no event tells: kernel settings, conntrack's timeouts."""
        if self.reloading:
            self.due["audit"] = time.monotonic() + _TICK
            return
        self._keep()
        self._refresh()
        self.due["audit"] = time.monotonic() + _AUDIT_EVERY

    def _watchdog(self) -> None:
        notify("WATCHDOG=1")
        self.due["watchdog"] = time.monotonic() + (watchdog_interval() or 0)

    def _loop(self, server: socket.socket, wake: socket.socket) -> None:
        start = time.monotonic()
        self.due |= {
            "sweep": start + _SWEEP_AT_LEAST,
            "audit": start + _AUDIT_EVERY,
            "tick": start + _TICK,
            "look": start + _LOOK_EVERY,
        }
        if watchdog_interval():
            self.due["watchdog"] = start
        tasks = {
            "sweep": self._sweep,
            "audit": self._audit,
            "watchdog": self._watchdog,
            "tick": self._tick,
            "look": self._look,
            "expiry": self._expire,
            "database": self._load_database,
            "vanished": self._vanished,
        }
        selector = self.selector
        selector.register(self.watch, selectors.EVENT_READ, self._on_events)
        selector.register(server, selectors.EVENT_READ, lambda: self._on_connection(server))
        selector.register(wake, selectors.EVENT_READ, lambda: self._on_signals(wake))
        selector.register(self.files, selectors.EVENT_READ, lambda: self._on_files(self.files.drain()))
        # What is under way is waited for: half a reload would be found by nobody.
        while self.running or self.job is not None:
            wait = max(0.0, min(self.due.values()) - time.monotonic())
            ready: list[Callable[[], None]] = [key.data for key, _ in selector.select(wait)]
            now = time.monotonic()
            for task in [*ready, *(tasks[name] for name, due in self.due.items() if due <= now)]:
                self._guarded(task)
        for caller in list(self.callers):
            self._hang_up(caller)

    def _guarded(self, task: Callable[[], None]) -> None:
        """An error is said and the loop goes on: enforcement does not depend on it."""
        try:
            task()
        except (EnforcerError, OSError) as error:
            self.say(f"error: {error}")
            # A task that fails at once must not spin.
            for name, due in self.due.items():
                self.due[name] = max(due, time.monotonic() + _SWEEP_AT_LEAST)

    def _on_events(self) -> None:
        kinds = self.watch.drain()
        if self.reloading:
            self.missed |= kinds
        elif kinds:
            self._after(kinds)

    def _after(self, kinds: set[str]) -> None:
        while kinds:
            if "route" in kinds:
                self._refresh()
            self._keep(distrust_table="nft" in kinds)
            # Writing a large table overflows the queue of events, which reads as a change by somebody else.
            kinds = self.watch.drain() - {"nft"} if "nft" in kinds else set()

    def _on_connection(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        caller = control.Caller(connection)
        self.callers.append(caller)
        self.selector.register(caller, selectors.EVENT_READ, lambda: self._on_caller(caller))

    def _on_caller(self, caller: control.Caller) -> None:
        request = caller.receive()
        if request is None:
            return
        self.selector.unregister(caller)
        self.callers.remove(caller)
        try:
            result = self._on_request(request, caller)
        except EnforcerError as error:
            result = control.report_of(error)
        if result is not None:
            caller.answer(result)

    def _hang_up(self, caller: control.Caller) -> None:
        self.selector.unregister(caller)
        self.callers.remove(caller)
        caller.close()

    def _on_request(self, request: Mapping[str, Any], caller: control.Caller) -> dict[str, Any] | None:
        """The answer, or None if the caller gets it later. Raises EnforcerError."""
        name = request.get("request")
        if name == "reload":
            self._reload(caller)
            return None
        if name == "session load":
            return self._session_load(request, caller)
        if name == "session add":
            result = self.attendance.add(request)
            self._expire()
            return result
        if name == "session remove":
            return self.attendance.remove(request)
        if name == "dns":
            return self.sources["names"].report() if "names" in self.sources else {}
        raise EnforcerError(f"unknown request {name!r}", "Daemon and command are of different versions.")

    def _on_signals(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            if number == signal.SIGHUP:
                self._reload()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self.running = False


def _just(work: Work) -> Work:
    return work


class _signals:
    """SIGTERM, SIGINT and SIGHUP as bytes on a socket, for the loop."""

    def __enter__(self) -> socket.socket:
        self.wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno())
        self.before = {
            number: signal.signal(number, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        return self.wake

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.wake.close()
        self.waker.close()


def _tuple(key: Any) -> conntrack.Tuple:
    """A flow's key as conntrack's original tuple."""
    return conntrack.Tuple(
        int(key["protocol"]),
        key["client"].tobytes(),
        key["origin"].tobytes(),
        int(key["client_port"].byteswap()),
        int(key["origin_port"].byteswap()),
    )
