"""Watches for interfaces that come up or change their MAC address, so that addresses can be announced.

The kernel announces by itself only if arp_notify and ndisc_notify are set (ip-sysctl.rst), not for ranges,
and not when a carrier returns. Standard library only.
"""

from __future__ import annotations

import socket
from typing import Self

from enforcer.kernel import events, netlink
from enforcer.kernel.events import Event
from enforcer.kernel.links import IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, INFO, RTM_GETLINK, RTM_NEWLINK
from enforcer.kernel.netlink import Channel

# include/uapi/linux/rtnetlink.h, if.h
RTM_DELLINK = 17
IFF_LOWER_UP = 0x10000

_ROOM = 1 << 18


class LinkWatch:
    """A subscription to link events; a context manager."""

    def __init__(self) -> None:
        self._events = events.subscribe(netlink.NETLINK_ROUTE, (events.LINK,), _ROOM)
        self._up: dict[int, tuple[str, bytes]] = {}
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the subscription."""
        self._events.close()

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`drain` has something."""
        return self._events.fileno()

    @property
    def up(self) -> set[str]:
        """Names of the interfaces that are up and have a carrier, as of the last :meth:`drain`."""
        return {name for name, _ in self._up.values()}

    def drain(self) -> set[str]:
        """Names of interfaces that came up or changed their MAC address since the last call; never blocks.

        All interfaces that are up, if an event was lost.
        """
        arrived: set[str] = set()
        for event in events.received(self._events):
            if event is None:
                self._read()
                arrived = self.up
            else:
                arrived |= self._arrived(event)
        return arrived & self.up

    def _read(self) -> None:
        self._up = {}
        with Channel(netlink.NETLINK_ROUTE, "reading the interfaces") as channel:
            for message in channel.snapshot(RTM_GETLINK, INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
                self._arrived(Event(RTM_NEWLINK, 0, message))

    def _arrived(self, event: Event) -> set[str]:
        if event.kind not in (RTM_NEWLINK, RTM_DELLINK):
            return set()
        family, _, index, flags, _ = INFO.unpack_from(event.payload)
        if family != socket.AF_UNSPEC:  # AF_BRIDGE: a bridge's message about its port
            return set()
        before = self._up.pop(index, None)
        if event.kind == RTM_DELLINK or not (flags & IFF_UP and flags & IFF_LOWER_UP):
            return set()
        parts = netlink.attributes(event.payload, INFO.size)
        name, mac = netlink.text(parts[IFLA_IFNAME]), parts.get(IFLA_ADDRESS, b"")
        self._up[index] = (name, mac)
        return set() if before and before[1] == mac else {name}
