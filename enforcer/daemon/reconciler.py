"""Reconciles the kernel with the configuration in force: follows its events, restores what others remove."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.errors import EnforcerError, LockedError
from enforcer.gateway import availability
from enforcer.gateway.operations import (
    InstallTable,
    LoadPrograms,
    SwitchTables,
)
from enforcer.gateway.plan import (
    plan,
)
from enforcer.gateway.roles import LinkStatus
from enforcer.kernel.watch import FILTER, NFT, ROUTE, Watch

_log = logging.getLogger(__name__)

# Seconds between checks of what no event reports.
_AUDIT_EVERY = 60.0
# Seconds between checks of hooks, and until the next attempt while a process changes the gateway.
_TICK = 1.0
# Seconds between two requests to apply the configuration in force again.
_REAPPLY_EVERY = 60.0
# Seconds for which the loop waits for the change lock: a process may hold it that has not reported so yet.
_LOCK_PATIENCE = 0.2


class LastSeen:
    """The index of the last link of each name: distinguishes a recreated link from a renamed one.

    ``indexes`` are the indexes of all links by name at the start.
    """

    def __init__(self, indexes: Mapping[str, int]):
        self._indexes = dict(indexes)
        self._gone: set[str] = set()

    def made_again(self, listed: Iterable[str], indexes: Mapping[str, int]) -> set[str]:
        """The listed names whose link has been recreated since the last call."""
        listed = set(listed)
        again = {
            name
            for name in listed & indexes.keys()
            if name in self._gone or self._indexes.get(name, indexes[name]) != indexes[name]
        }
        missing = {name: self._indexes[name] for name in listed & self._indexes.keys() - indexes.keys()}
        self._gone = {name for name in missing if name in self._gone or missing[name] not in indexes.values()}
        self._indexes = {**indexes, **missing}
        return again


class Reconciler:
    """Changes nothing while ``reloading()`` is true: a process changes the gateway or heals it.

    ``reapply`` has a process apply the configuration in force again. ``known`` are the indexes of all links
    by name before the configuration in force was applied.
    """

    def __init__(
        self,
        loop: Loop,
        watch: Watch,
        runtime: Runtime,
        reloading: Callable[[], bool],
        *,
        reapply: Callable[[], None],
        known: Mapping[str, int] = MappingProxyType({}),
    ):
        self._watch = watch
        self._runtime = runtime
        self._reloading = reloading
        self._reapply = reapply
        self._reapply_after = 0.0
        self._available: dict[str, tuple[bool, bool]] = {}
        self._seen = LinkStatus({}, frozenset())
        self._last_seen = LastSeen(known)
        self._made_again: set[str] = set()
        self._news: set[str] = set()
        self._write_table_after = 0.0
        self.timeouts = np.zeros(0)
        """conntrack's timeouts: nanoseconds by state."""
        loop.watch(watch, self._on_events)
        loop.timer(self._audit, _AUDIT_EVERY)
        self._following = loop.timer(self._follow)
        loop.timer(self._look_at_hooks, _TICK)
        self._second_look = loop.timer(self._look_again)

    def refresh(self) -> None:
        """Writes availability into the maps; logs what changed."""
        maps, wanted = self._runtime.maps, self._runtime.wanted
        self.timeouts = availability.write_timeouts(maps)
        there = availability.refresh(maps, wanted)
        back = {
            link.listed
            for link in self._seen.renamed - there.links.renamed
            if there.links.indexes.get(link.listed) == link.index
        }
        again = self._last_seen.made_again((*wanted.inside, *wanted.outside), there.links.indexes)
        # A recreated link has lost its filters and sysctls; a renamed one still has them.
        self._made_again |= again - back
        now = {f"egress {name}": pair for name, pair in there.egresses.items()}
        now["the shared address"] = there.shared
        for name, (ipv4, ipv6) in now.items():
            if self._available.get(name, (True, True)) != (ipv4, ipv6):
                state = {(True, True): "available", (False, False): "unavailable"}.get(
                    (ipv4, ipv6), "IPv4 unavailable" if ipv6 else "IPv6 unavailable"
                )
                _log.log(logging.INFO if ipv4 and ipv6 else logging.WARNING, f"{name}: {state}")
        self._available = now
        for link in there.links.renamed - self._seen.renamed:
            _log.warning(str(link))
        for name in sorted(back):
            _log.info(f"{name} has its name back")
        for port in there.links.taken - self._seen.taken:
            _log.warning(str(port))
        for name, taker in self._seen.taken - there.links.taken:
            if name not in {port.name for port in there.links.taken}:
                _log.info(f"{name} is no port of {taker} any more")
        self._seen = there.links
        if there.links.uncertain:
            self._second_look.start(_TICK)

    def catch_up(self) -> None:
        """Handles the events that arrived during a reload next."""
        self._following.start()

    def _restore(self, *, distrust_table: bool = False) -> None:
        """Restores what other software removed of the table, the filters and the sysctls.

        The table's digest does not show rules that other software changed: ``distrust_table`` rewrites it.
        """
        gateway, wanted = self._runtime.gateway, self._runtime.wanted
        assert gateway.state is not None
        with suppress(EnforcerError):  # _look_at_hooks logs it
            self._runtime.restore()
        with self._runtime.instance.change_lock(_LOCK_PATIENCE):
            if not gateway.is_current():
                raise LockedError("another process has changed this gateway")
            state = gateway.state
            # Newer sources on the disk take effect with the next start or reload, in another process.
            actual = gateway.actual(wanted, upgrade=False)
            # A bank without room needs a reload, too.
            actual = replace(actual, tables=state.tables)
            if distrust_table and actual.table is not None:
                actual = replace(actual, table="")
            operations = plan(wanted, actual, wanted, state.tables, restore=self._made_again)
            if any(isinstance(operation, LoadPrograms | SwitchTables) for operation in operations):
                self._request_reapply(*gateway.lost())
                # The table, which closes the gateway, needs no pins.
                operations = [operation for operation in operations if isinstance(operation, InstallTable)]
            if operations:
                gateway.apply(operations, wanted, None, state)
                for operation in operations:
                    _log.warning(f"restored: {operation}")
                self._runtime.hold()
                # An earlier read may have returned the values that other software had set.
                self.timeouts = availability.write_timeouts(self._runtime.maps)
            self._made_again = set()

    def _audit(self) -> float:
        """Checks what no event reports: sysctls, conntrack's timeouts."""
        if self._reloading():
            return _TICK
        with suppress(LockedError):
            self._restore()
            self.refresh()
            return _AUDIT_EVERY
        return _TICK

    def _look_again(self) -> float | None:
        """Repeats :meth:`refresh` after nftables chains changed while they were read."""
        if self._reloading():
            return _TICK
        self.refresh()
        return None

    def _look_at_hooks(self) -> float:
        """Checks hooks, pins and files, whose removal no event reports."""
        if self._reloading():
            return _TICK
        with suppress(LockedError):
            self._runtime.restore()
        gateway, wanted = self._runtime.gateway, self._runtime.wanted
        lost = gateway.lost()
        if lost:
            self._request_reapply(*lost)
        elif not gateway.hooked(wanted):
            with suppress(LockedError):
                self._restore()
        else:
            self._reapply_after = 0.0
        return _TICK

    def _request_reapply(self, *lost: str) -> None:
        """Has the configuration in force applied again: only a worker process can make programs and maps."""
        now = time.monotonic()
        if now >= self._reapply_after:
            self._reapply_after = now + _REAPPLY_EVERY
            names = ", ".join(lost) or "settings"
            _log.warning(f"the configuration in force is applied again; lost: {names}")
            self._reapply()

    def _on_events(self) -> None:
        self._news |= self._watch.drain()
        if self._news and not self._reloading():
            self.catch_up()

    def _follow(self) -> None:
        """Handles the kinds of events that have arrived; they are kept until that has succeeded.

        A table that other software may have changed is rewritten once in _TICK seconds at most, however often
        other software changes nftables; a table that is gone is restored at once.
        """
        while self._news and not self._reloading():
            kinds = self._news
            wait = self._write_table_after - time.monotonic() if NFT in kinds else 0.0
            distrust = NFT in kinds and wait <= 0
            if kinds & {ROUTE, FILTER}:
                self.refresh()
            try:
                self._restore(distrust_table=distrust)
            except LockedError:
                self._following.start(_TICK)
                return
            if distrust:
                self._write_table_after = time.monotonic() + _TICK
            if wait > 0:
                self._news = {NFT}
                self._following.start(wait)
                return
            self._news = set()
