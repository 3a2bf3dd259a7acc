"""Announces the gateway's addresses to neighbours on the outside: gratuitous ARP, unsolicited advertisements.

A neighbour whose cache has an outdated MAC address uses it for 15 to 45 seconds, and needs some more seconds
to discard it (RFC 4861, 7.3). So the addresses are announced when an interface comes up or changes its MAC
address. For an on-link range (``on_link: true``) the gateway does not know which addresses neighbours have in
their caches: it announces each address when it sees its first flow.
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

# Seconds until each repetition: a switch may not forward yet on a port that has come up, and frames get lost.
_REPEATED_AFTER = (1.0, 2.0)
# For this many seconds after a change, until neighbours' caches have expired, the announcer reads all flows
# every _OFTEN seconds: more often than sweeps do, and before a connection's second SYN, one second after its
# first.
_WINDOW = 60.0
_OFTEN = 0.25
# After each reading it pauses for this many times the reading's duration.
_REST = 4
# Announcements in one batch, and seconds between batches.
_AT_ONCE = 500
_PAUSE = 0.05
# Addresses in the queue, at most.
_MOST = 1 << 16
# Seconds without a flow after which an address is announced again with its next flow.
_FORGET_AFTER = 600.0
_MAPPED = np.frombuffer(MAPPED, dtype="<u4")


class Announcer:
    """``arrivals`` reports interfaces; :meth:`note` gets flows, also from sweeps."""

    def __init__(self, loop: Loop, arrivals: LinkWatch, runtime: Runtime):
        self._arrivals = arrivals
        self._runtime = runtime
        self._arrived = set(arrivals.up)
        self._repeats = list(_REPEATED_AFTER)
        self._until = 0.0
        self._slots: dict[int, IPv6Network] = {}
        self._ranges = AddressSet(())
        self._announced: dict[bytes, float] = {}
        """Egress addresses of flows, and when a flow of each was last seen."""
        self._queue: dict[bytes, None] = {}
        """Addresses to announce, in order."""
        loop.watch(arrivals, self._on_events)
        self._announcement = loop.timer(self._announce, 0.0)
        self._next_batch = loop.timer(self._announce_batch)
        self._next_reading = loop.timer(self._read_flows)

    def activate(self) -> None:
        """Reads the configuration in force. Neighbours' caches may hold addresses of a new on-link range."""
        slots = {egress.slot: egress.ipv6 for egress in self._runtime.wanted.ours if egress.on_link}
        if slots != self._slots:
            self._slots = dict(slots)
            self._ranges = AddressSet.of((), slots.values())
            self._restart_window()

    def note(self, _: np.ndarray, flows: np.ndarray) -> None:
        """Announces those egress addresses of the flows that are on-link and were not announced yet.

        A live flow keeps its address when its egress IP gets another range. Another gateway may have the
        former range, so its addresses are not announced.
        """
        if not self._slots:
            return
        found = flows["egress_address"][np.isin(flows["slot"], list(self._slots))]
        found = found[(found[:, :3] != _MAPPED).any(axis=1)]
        packed, now = found.tobytes(), time.monotonic()
        for address in {packed[at : at + 16] for at in range(0, len(packed), 16)}:
            if address not in self._ranges:
                continue
            if now - self._announced.get(address, -_FORGET_AFTER) >= _FORGET_AFTER:
                if len(self._queue) >= _MOST:
                    continue  # the next reading finds the address again
                self._queue[address] = None
            self._announced[address] = now
        if self._queue:
            self._next_batch.start()

    def _on_events(self) -> None:
        arrived = self._arrivals.drain().intersection(self._runtime.wanted.outside)
        if arrived:
            self._arrived |= arrived
            self._repeats = list(_REPEATED_AFTER)
            self._announcement.start()

    def _announce(self) -> float | None:
        """Announces the addresses of arrived interfaces and restarts the window; so does each repetition."""
        wanted = self._runtime.wanted
        apart = [address for address in announce.settled(LOOPBACK) if address == wanted.shared6]
        for name in self._arrived.intersection(wanted.outside):
            self._send(name, announce.settled(name) + apart)
        self._restart_window()
        if self._repeats:
            return self._repeats.pop(0)
        self._arrived.clear()
        return None

    def _restart_window(self) -> None:
        self._announced.clear()
        self._until = time.monotonic() + _WINDOW
        self._next_reading.start()

    def _read_flows(self) -> float | None:
        began = time.monotonic()
        if not self._slots or began > self._until:
            return None
        for keys, flows in self._runtime.maps.flows.chunks():
            self.note(keys, flows)
        return max(_OFTEN, _REST * (time.monotonic() - began))

    def _announce_batch(self) -> float | None:
        now = time.monotonic()
        batch = [address for address, _ in zip(self._queue, range(_AT_ONCE), strict=False)]
        held = AddressSet.of((), addresses.ranges() & set(self._slots.values()))
        for address in batch:
            del self._queue[address]
            if address not in held:
                self._announced.pop(address, None)  # a reading finds it again when the gateway has its range
        for name in self._arrivals.up.intersection(self._runtime.wanted.outside):
            self._send(name, [IPv6Address(address) for address in batch if address in held])
        if self._queue:
            return _PAUSE
        self._announced = {
            address: seen for address, seen in self._announced.items() if now - seen < _FORGET_AFTER
        }
        return None

    @staticmethod
    def _send(name: str, batch: list[announce.Address]) -> None:
        with suppress(EnforcerError):  # the interface is down; its next arrival repeats the announcement
            announce.announce(name, batch)
