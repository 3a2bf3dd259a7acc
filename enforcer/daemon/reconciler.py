"""Keeping it so: availability follows the kernel's events, and what somebody took away is put back."""

from __future__ import annotations

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

_AUDIT_EVERY = 60.0
# While a process changes the gateway: look again after so many seconds.
_TICK = 1.0
# An attempt to begin again that failed is repeated after so many seconds.
_REST = 60.0
# Seconds that the loop waits for a process that is about to say that it changes the gateway, or just did.
_PATIENCE = 0.2


class LastSeen:
    """The last link of each name, by its index: tells a link that was made again from one that was renamed.

    ``indexes`` are those of all links by name at the start.
    """

    def __init__(self, indexes: Mapping[str, int]):
        self._indexes = dict(indexes)
        self._gone: set[str] = set()

    def made_again(self, listed: Iterable[str], indexes: Mapping[str, int]) -> set[str]:
        """The listed names whose link is another one now, or was gone meanwhile; remembers ``indexes``."""
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
    """``reloading`` tells whether a process changes the gateway or heals it, which is then left alone.

    ``known`` are the indexes of all links by name before what is in force was applied.
    """

    def __init__(
        self,
        loop: Loop,
        watch: Watch,
        runtime: Runtime,
        reloading: Callable[[], bool],
        *,
        say: Callable[[str], None],
        again: Callable[[], None],
        known: Mapping[str, int] = MappingProxyType({}),
    ):
        self._watch = watch
        self._runtime = runtime
        self._reloading = reloading
        self._say = say
        self._again = again
        self._again_after = 0.0
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
        """Availability into the maps; says what changed."""
        maps, wanted = self._runtime.maps, self._runtime.wanted
        self.timeouts = availability.write_timeouts(maps)
        there = availability.refresh(maps, wanted)
        back = {
            link.listed
            for link in self._seen.renamed - there.links.renamed
            if there.links.indexes.get(link.listed) == link.index
        }
        again = self._last_seen.made_again((*wanted.inside, *wanted.outside), there.links.indexes)
        # A link that is made again has lost what we had put on it; one that was renamed still has it.
        self._made_again |= again - back
        now = {f"egress {name}": pair for name, pair in there.egresses.items()}
        now["the shared address"] = there.shared
        for name, (ipv4, ipv6) in now.items():
            if self._available.get(name, (True, True)) != (ipv4, ipv6):
                state = {(True, True): "available", (False, False): "unavailable"}.get(
                    (ipv4, ipv6), "IPv4 unavailable" if ipv6 else "IPv6 unavailable"
                )
                self._say(f"{name}: {state}")
        self._available = now
        for link in there.links.renamed - self._seen.renamed:
            self._say(str(link))
        for name in sorted(back):
            self._say(f"{name} has its name back")
        for port in there.links.taken - self._seen.taken:
            self._say(str(port))
        for name, taker in self._seen.taken - there.links.taken:
            if name not in {port.name for port in there.links.taken}:
                self._say(f"{name} is no port of {taker} any more")
        self._seen = there.links
        if there.links.uncertain:
            self._second_look.start(_TICK)

    def catch_up(self) -> None:
        """What the kernel has said has its turn next."""
        self._following.start()

    def _put_back(self, *, distrust_table: bool = False) -> None:
        """Puts back what somebody took away of the table, the filters and the settings.

        The table's digest doesn't tell of rules that somebody changed: ``distrust_table`` writes it anew.
        """
        gateway, wanted = self._runtime.gateway, self._runtime.wanted
        assert gateway.state is not None
        with suppress(EnforcerError):  # said once a second by _look_at_hooks
            self._runtime.restore()
        with self._runtime.instance.change_lock(_PATIENCE):
            if not gateway.is_current():
                raise LockedError("another process has changed this gateway")
            state = gateway.state
            # Newer sources on the disk are for the next start, in a process of its own.
            actual = gateway.actual(wanted, upgrade=False)
            # A bank without room is for a reload, too.
            actual = replace(actual, tables=state.tables)
            if distrust_table and actual.table is not None:
                actual = replace(actual, table="")
            operations = plan(wanted, actual, wanted, state.tables, restore=self._made_again)
            if any(isinstance(operation, LoadPrograms | SwitchTables) for operation in operations):
                self._begin_again(*gateway.lost())
                # What closes the gateway needs no pins.
                operations = [operation for operation in operations if isinstance(operation, InstallTable)]
            if operations:
                gateway.apply(operations, wanted, None, state)
                for operation in operations:
                    self._say(f"put back: {operation}")
                self._runtime.hold()
                # Read meanwhile, they may be those of whom it is put back from.
                self.timeouts = availability.write_timeouts(self._runtime.maps)
            self._made_again = set()

    def _audit(self) -> float:
        """What no event tells: kernel settings, conntrack's timeouts."""
        if self._reloading():
            return _TICK
        with suppress(LockedError):
            self._put_back()
            self.refresh()
            return _AUDIT_EVERY
        return _TICK

    def _look_again(self) -> float | None:
        """What could not be read because it changed meanwhile."""
        if self._reloading():
            return _TICK
        self.refresh()
        return None

    def _look_at_hooks(self) -> float:
        """Nothing tells of a program that is taken off its hook, nor of a pin or file that is removed."""
        if self._reloading():
            return _TICK
        with suppress(LockedError):
            self._runtime.restore()
        gateway, wanted = self._runtime.gateway, self._runtime.wanted
        lost = gateway.lost()
        if lost:
            self._begin_again(*lost)
        elif not gateway.hooked(wanted):
            with suppress(LockedError):
                self._put_back()
        else:
            self._again_after = 0.0
        return _TICK

    def _begin_again(self, *lost: str) -> None:
        """What is held here cannot mend it: programs and maps are made by a process of their own."""
        now = time.monotonic()
        if now >= self._again_after:
            self._again_after = now + _REST
            names = ", ".join(lost) or "settings"
            self._say(f"the configuration in force is applied again; lost: {names}")
            self._again()

    def _on_events(self) -> None:
        self._news |= self._watch.drain()
        if self._news and not self._reloading():
            self.catch_up()

    def _follow(self) -> None:
        """Does what the events ask for; they are kept until it is done.

        A table that others may have changed is written anew once a tick at most, however often they change
        nftables; one that is gone is put back at once.
        """
        while self._news and not self._reloading():
            kinds = self._news
            wait = self._write_table_after - time.monotonic() if NFT in kinds else 0.0
            distrust = NFT in kinds and wait <= 0
            if kinds & {ROUTE, FILTER}:
                self.refresh()
            try:
                self._put_back(distrust_table=distrust)
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
