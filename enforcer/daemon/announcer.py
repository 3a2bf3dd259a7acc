"""Neighbours on the outside are told where our addresses are, before they find out by themselves.

One that knew an address at another MAC address keeps to that until it doubts it, which takes 15 to 45
seconds, and some more to give it up (RFC 4861, 7.3). So it is told when an interface comes up or changes its
MAC address. Of a range that is on-link (``on_link: true``) nothing tells which addresses the neighbours knew
at the gateway that had it before: each is announced when its first flow is seen.
"""

from __future__ import annotations

import time
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network

import numpy as np

from enforcer.constants import MAPPED
from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.errors import EnforcerError
from enforcer.gateway.availability import AddressSet
from enforcer.kernel import addresses, announce
from enforcer.kernel.addresses import LOOPBACK
from enforcer.kernel.link_watch import LinkWatch

# Seconds: a switch may not forward yet on a port that has just come up, and a frame can be lost.
_REPEATED_AFTER = (1.0, 2.0)
# For so many seconds after a change, in which neighbours have used what they knew or given it up, flows are
# looked at more often than by sweeps: before a connection's second attempt, a second after its first one.
_WINDOW = 60.0
_OFTEN = 0.25
# But each look is followed by a rest of so many times what it took.
_REST = 4
# Announcements in one go, and seconds between goes.
_AT_ONCE = 500
_PAUSE = 0.05
_MOST = 1 << 16
# An address without a flow for so many seconds is announced again with its next one.
_FORGET_AFTER = 600.0
_MAPPED = np.frombuffer(MAPPED, dtype="<u4")


class Announcer:
    """``arrivals`` tells of interfaces; :meth:`note` is to be given flows, by sweeps for one."""

    def __init__(self, loop: Loop, arrivals: LinkWatch, runtime: Runtime):
        self._arrivals = arrivals
        self._runtime = runtime
        self._arrived = set(arrivals.up)
        self._repeats = list(_REPEATED_AFTER)
        self._until = 0.0
        self._slots: dict[int, IPv6Network] = {}
        self._ranges = AddressSet(())
        self._told: dict[bytes, float] = {}
        """Sources of flows, and when each was last seen."""
        self._queue: dict[bytes, None] = {}
        loop.watch(arrivals, self._on_events)
        self._announcement = loop.timer(self._announce, 0.0)
        self._next_sources = loop.timer(self._announce_sources)
        self._next_look = loop.timer(self._look)

    def activate(self) -> None:
        """What is in force: to the neighbours, a range that is on-link since now is another gateway's."""
        slots = {egress.slot: egress.ipv6 for egress in self._runtime.wanted.ours if egress.on_link}
        if slots != self._slots:
            self._slots = dict(slots)
            self._ranges = AddressSet.of((), slots.values())
            self._begin_again()

    def note(self, _: np.ndarray, flows: np.ndarray) -> None:
        """Announces the sources of these flows that are on-link and have not been.

        A live flow keeps its source when its egress IP gets another range, and another gateway may have the
        old one.
        """
        if not self._slots:
            return
        sources = flows["egress_address"][np.isin(flows["slot"], list(self._slots))]
        sources = sources[(sources[:, :3] != _MAPPED).any(axis=1)]
        packed, now = sources.tobytes(), time.monotonic()
        for source in {packed[at : at + 16] for at in range(0, len(packed), 16)}:
            if source not in self._ranges:
                continue
            if now - self._told.get(source, -_FORGET_AFTER) >= _FORGET_AFTER:
                if len(self._queue) >= _MOST:
                    continue  # the next look finds it again
                self._queue[source] = None
            self._told[source] = now
        if self._queue:
            self._next_sources.start()

    def _on_events(self) -> None:
        arrived = self._arrivals.drain().intersection(self._runtime.wanted.outside)
        if arrived:
            self._arrived |= arrived
            self._repeats = list(_REPEATED_AFTER)
            self._announcement.start()

    def _announce(self) -> float | None:
        """What the interfaces that have arrived hold, and all that is on-link, some times."""
        wanted = self._runtime.wanted
        apart = [address for address in announce.settled(LOOPBACK) if address == wanted.shared6]
        for name in self._arrived.intersection(wanted.outside):
            self._tell(name, announce.settled(name) + apart)
        self._begin_again()
        if self._repeats:
            return self._repeats.pop(0)
        self._arrived.clear()
        return None

    def _begin_again(self) -> None:
        self._told.clear()
        self._until = time.monotonic() + _WINDOW
        self._next_look.start()

    def _look(self) -> float | None:
        began = time.monotonic()
        if not self._slots or began > self._until:
            return None
        for keys, flows in self._runtime.maps.flows.chunks():
            self.note(keys, flows)
        return max(_OFTEN, _REST * (time.monotonic() - began))

    def _announce_sources(self) -> float | None:
        now = time.monotonic()
        some = [source for source, _ in zip(self._queue, range(_AT_ONCE), strict=False)]
        held = AddressSet.of((), addresses.ranges() & set(self._slots.values()))
        for source in some:
            del self._queue[source]
            if source not in held:
                self._told.pop(source, None)  # a look finds it again when the gateway has its range
        for name in self._arrivals.up.intersection(self._runtime.wanted.outside):
            self._tell(name, [IPv6Address(source) for source in some if source in held])
        if self._queue:
            return _PAUSE
        self._told = {source: seen for source, seen in self._told.items() if now - seen < _FORGET_AFTER}
        return None

    @staticmethod
    def _tell(name: str, some: list[announce.Address]) -> None:
        with suppress(EnforcerError):  # it has gone down; when it is back it is told again
            announce.announce(name, some)
