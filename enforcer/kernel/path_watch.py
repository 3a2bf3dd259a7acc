"""Watches for events that may make fast-path entries wrong.

These are changes of routes of any table, policy routing rules, next hops, links, addresses, TC filters and
neighbours' MAC addresses, and other software's changes of nftables. Standard library only.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Self

from enforcer.kernel import events, netlink
from enforcer.kernel.events import Event
from enforcer.kernel.netlink import Channel
from enforcer.kernel.nft.protocol import NEWGEN

# include/uapi/linux/neighbour.h, rtnetlink.h
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NDA_DST, NDA_LLADDR = 1, 2
NTF_PROXY, NUD_FAILED = 8, 0x20
NEIGHBOUR = struct.Struct("=BxxxiHBx")  # struct ndmsg: family, interface, state, flags
AF_BRIDGE = 7  # forwarding entries of bridges, reported to the same group

GROUPS = (
    *(events.LINK, events.TRAFFIC_CONTROL, events.NEXT_HOP, events.IPV4_NETCONF, events.IPV6_NETCONF),
    *(events.IPV4_ADDRESS, events.IPV4_ROUTE, events.IPV4_RULE),
    *(events.IPV6_ADDRESS, events.IPV6_ROUTE, events.IPV6_RULE),
)

# A small buffer: one event is enough, and lost ones cost no time. A routing daemon that loads its table
# causes 100,000 events a second.
_LITTLE_ROOM = 1 << 13
_ROOM = 1 << 20
# Neighbours remembered, at some 200 bytes each; the kernel keeps 1,024 of a family by default.
_NEIGHBOURS = 1 << 14


class PathWatch:
    """A subscription to these events; a context manager."""

    def __init__(self) -> None:
        self._routes = events.subscribe(netlink.NETLINK_ROUTE, GROUPS, _LITTLE_ROOM)
        self._neighbours = events.subscribe(netlink.NETLINK_ROUTE, (events.NEIGHBOUR,), _ROOM)
        self._nft = events.subscribe(netlink.NETLINK_NETFILTER, (events.NFTABLES,), _ROOM)
        self._known = Neighbours()
        with Channel(netlink.NETLINK_ROUTE, "reading the neighbours") as channel:
            for message in channel.dump(RTM_GETNEIGH, bytes(NEIGHBOUR.size)):
                self._known.are_new(Event(RTM_NEWNEIGH, 0, message))
        self._poll = select.epoll()
        for each in self._sockets:
            self._poll.register(each, select.EPOLLIN)

    @property
    def _sockets(self) -> tuple[socket.socket, ...]:
        return self._routes, self._neighbours, self._nft

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the subscription."""
        self._poll.close()
        for each in self._sockets:
            each.close()

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`drain` has something."""
        return self._poll.fileno()

    def drain(self) -> bool:
        """Whether such an event occurred since the last call; never blocks."""
        changed = [True for _ in events.received(self._routes)]
        changed += [self._known.are_new(event) for event in events.received(self._neighbours)]
        changed += [_is_others(event) for event in events.received(self._nft)]
        return any(changed)


class Neighbours:
    """The neighbours' link-layer addresses as last reported.

    Most neighbour events report only another reachability state of the same address.
    """

    def __init__(self, most: int = _NEIGHBOURS) -> None:
        self._most = most
        self._known: dict[tuple[int, bytes], bytes] = {}
        self._complete = True

    def are_new(self, event: Event | None) -> bool:
        """Whether fast-path entries may hold another address of the neighbour in this event.

        None stands for lost events: from then on an unknown neighbour may have had another address.
        """
        if event is None:
            self._forget()
            return True
        family, interface, state, flags = NEIGHBOUR.unpack_from(event.payload)
        if family == AF_BRIDGE or flags & NTF_PROXY:
            return False
        parts = netlink.attributes(event.payload, NEIGHBOUR.size)
        neighbour, address = (interface, parts.get(NDA_DST, b"")), parts.get(NDA_LLADDR)
        before = self._known.pop(neighbour, None)
        if event.kind == RTM_DELNEIGH or state & NUD_FAILED or address is None:
            return before is not None
        if len(self._known) >= self._most:
            self._forget()
        self._known[neighbour] = address
        return address != before if before is not None else not self._complete

    def _forget(self) -> None:
        self._known.clear()
        self._complete = False


def _is_others(event: Event | None) -> bool:
    """Whether other software has changed nftables."""
    return event is None or (event.kind == NEWGEN and not netlink.is_own_port(event.port))
