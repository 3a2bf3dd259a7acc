"""The daemon: applies the file, then keeps it so. Never in a packet's way.

One thread, one loop: signals, the control socket, kernel events, and a sweep now and then. What needs the
compiler or the configuration's models runs in a process of its own (enforcer/apply.py).
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from enforcer import applying, availability, control
from enforcer.datapath import sweep
from enforcer.datapath.maps import Maps
from enforcer.desired import Desired
from enforcer.errors import EnforcerError, KernelError
from enforcer.gateway import Gateway
from enforcer.instance import Instance
from enforcer.kernel import conntrack
from enforcer.kernel.watch import Watch
from enforcer.plan import LoadPrograms, SwitchTables, plan

# A sweep takes a share of one core: it waits for this many times what the last one took.
_SWEEP_REST = 100
_SWEEP_AT_LEAST = 1.0
_AUDIT_EVERY = 60.0
# How many flows a sweep asks conntrack about, at some 10 µs each.
_ASK_UNANSWERED = 2000
_ASK_IDLE = 250


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

    def run(self, process: subprocess.Popen[str]) -> None:
        """Until SIGTERM or SIGINT, under the daemon's lock, which the caller holds.

        ``process`` applies the file (enforcer/applying.py). Raises its error.
        """
        with Watch() as watch, _signals() as wake:
            self._report(applying.finish(process))
            self._load()
            server = control.listen(self.instance.control_socket)
            try:
                self.say(f"ready: location {self._location()}, {self._count()} egress IPs, pid {os.getpid()}")
                notify("READY=1\nSTATUS=enforcing")
                self._loop(watch, server, wake)
            finally:
                notify("STOPPING=1")
                server.close()
                self.instance.control_socket.unlink(missing_ok=True)
        self.say("ended; enforcement goes on without the daemon (enforcer down takes it away)")

    def _location(self) -> str:
        return str(self.gateway.state.config["location"]) if self.gateway.state else "?"

    def _count(self) -> int:
        return len(self.wanted.ours) if self.wanted else 0

    def _report(self, result: dict[str, Any]) -> None:
        for line in [*(f"warning: {text}" for text in result["warnings"]), *result["operations"]]:
            self.say(line)

    def _load(self) -> None:
        """Takes up what the child has put in force."""
        if self.maps is not None:
            self.maps.close()
        self.gateway = Gateway(self.instance)
        self.wanted = self.gateway.previous
        self.maps = self.gateway.maps()
        self._refresh()

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

    def _reload(self) -> dict[str, Any]:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            result = applying.finish(applying.start(self.file))
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

    def _sweep(self) -> None:
        """Reaps idle flows, and those that conntrack doesn't have: never had (dropped behind us, no port
        free) or no more (deleted by somebody, or when its table was full).
        """
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
        self._keep()
        self._refresh()
        self.due["audit"] = time.monotonic() + _AUDIT_EVERY

    def _watchdog(self) -> None:
        notify("WATCHDOG=1")
        self.due["watchdog"] = time.monotonic() + (watchdog_interval() or 0)

    def _loop(self, watch: Watch, server: socket.socket, wake: socket.socket) -> None:
        start = time.monotonic()
        self.due = {"sweep": start + _SWEEP_AT_LEAST, "audit": start + _AUDIT_EVERY}
        if watchdog_interval():
            self.due["watchdog"] = start
        tasks = {"sweep": self._sweep, "audit": self._audit, "watchdog": self._watchdog}
        with selectors.DefaultSelector() as selector:
            selector.register(watch, selectors.EVENT_READ, lambda: self._on_events(watch))
            selector.register(server, selectors.EVENT_READ, lambda: self._on_request(server))
            selector.register(wake, selectors.EVENT_READ, lambda: self._on_signals(wake))
            while self.running:
                wait = max(0.0, min(self.due.values()) - time.monotonic())
                ready: list[Callable[[], None]] = [key.data for key, _ in selector.select(wait)]
                now = time.monotonic()
                for task in [*ready, *(tasks[name] for name, due in self.due.items() if due <= now)]:
                    self._guarded(task)

    def _guarded(self, task: Callable[[], None]) -> None:
        """An error is said and the loop goes on: enforcement does not depend on it."""
        try:
            task()
        except (EnforcerError, OSError) as error:
            self.say(f"error: {error}")
            # A task that fails at once must not spin.
            for name, due in self.due.items():
                self.due[name] = max(due, time.monotonic() + _SWEEP_AT_LEAST)

    def _on_events(self, watch: Watch) -> None:
        kinds = watch.drain()
        while kinds:
            if "route" in kinds:
                self._refresh()
            self._keep(distrust_table="nft" in kinds)
            # Writing a large table overflows the queue of events, which reads as a change by somebody else.
            kinds = watch.drain() - {"nft"} if "nft" in kinds else set()

    def _on_request(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            request = control.read_request(connection)
            if request == "reload":
                control.answer(connection, self._reload())
            else:
                control.answer(
                    connection, {"error": f"unknown request {request!r}", "hint": None, "exit_code": 1}
                )

    def _on_signals(self, wake: socket.socket) -> None:
        for number in wake.recv(64):
            if number == signal.SIGHUP:
                self._reload()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self.running = False


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
