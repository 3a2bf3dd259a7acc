"""Events of this network namespace's links, addresses, routes, forwarding, filters and nftables, as words.

Only the standard library. Events are hints to look again: their contents are not kept, and a queue that
overflowed is reported as every event.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Self

from enforcer.kernel import netlink

ROUTE, FILTER, NFT = "route", "filter", "nft"
ROUTES = {ROUTE, FILTER}

# include/uapi/linux/rtnetlink.h (enum rtnetlink_groups), nfnetlink.h (enum nfnetlink_groups)
LINK, TRAFFIC_CONTROL, IPV4_ADDRESS, IPV6_ADDRESS, IPV6_ROUTE = 1, 4, 5, 9, 11
IPV4_NETCONF, IPV6_NETCONF = 24, 25  # forwarding was switched
NFTABLES = 7
TRAFFIC_CONTROL_KINDS = range(36, 48)  # RTM_NEWQDISC to RTM_GETTFILTER
ROUTE_KINDS = (24, 25)  # RTM_NEWROUTE, RTM_DELROUTE
RTM_TABLE, RT_TABLE_LOCAL = 4, 255  # where struct rtmsg has the table, and the table's number
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWGEN = 15
NFPROTO_INET = 1
NFTA_TABLE = 1  # the table's name, in the messages of all kinds of nftables objects
NETLINK_ADD_MEMBERSHIP = 1

RECEIVE_BUFFER = 1 << 20


class Watch:
    """A subscription; closed with :meth:`close` or as a context manager.

    "nft" means that somebody else changed the table ``inet <table>``: changes by this program, in whatever
    process, are known by the sender's port number (:func:`enforcer.kernel.netlink.is_own_port`). The other
    two words are said of this program's changes as well.
    """

    def __init__(self, table: str = "enforcer") -> None:
        self._table = table.encode()
        self._route = _subscribe(
            netlink.NETLINK_ROUTE,
            (LINK, TRAFFIC_CONTROL, IPV4_ADDRESS, IPV6_ADDRESS, IPV6_ROUTE, IPV4_NETCONF, IPV6_NETCONF),
        )
        self._nft = _subscribe(netlink.NETLINK_NETFILTER, (NFTABLES,))
        self._poll = select.epoll()
        for source in (self._route, self._nft):
            self._poll.register(source, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription."""
        self._poll.close()
        self._route.close()
        self._nft.close()

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`drain` has something."""
        return self._poll.fileno()

    def drain(self) -> set[str]:
        """What has happened since the last call; never waits."""
        return _drain(self._route, self._of_route, ROUTES) | _drain(self._nft, self._of_nft, {NFT})

    @staticmethod
    def _of_route(kind: int, _port: int, payload: bytes) -> str | None:
        # A gateway that speaks BGP sees thousands of route changes; egress ranges are in the local table.
        if kind in ROUTE_KINDS and payload[RTM_TABLE] != RT_TABLE_LOCAL:
            return None
        return FILTER if kind in TRAFFIC_CONTROL_KINDS else ROUTE

    def _of_nft(self, kind: int, port: int, payload: bytes) -> str | None:
        if kind >> 8 != NFNL_SUBSYS_NFTABLES or kind & 0xFF == NFT_MSG_NEWGEN or netlink.is_own_port(port):
            return None
        table = netlink.attributes(payload, 4).get(NFTA_TABLE, b"").rstrip(b"\0")
        return NFT if payload[0] == NFPROTO_INET and table == self._table else None


def _subscribe(family: int, groups: tuple[int, ...]) -> socket.socket:
    try:
        subscribed = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family
        )
        subscribed.bind((0, 0))
        for group in groups:
            subscribed.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        # Past net.core.rmem_max only with CAP_NET_ADMIN; less is made up for by reporting the overflow.
        subscribed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    except OSError as error:
        raise netlink.failure("subscribing to the kernel's events", error.errno or 0) from error
    return subscribed


def _drain(
    source: socket.socket, meaning: Callable[[int, int, bytes], str | None], every: set[str]
) -> set[str]:
    found: set[str] = set()
    while True:
        try:
            data = source.recv(netlink.RECEIVE_SIZE)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise netlink.failure("reading the kernel's events", error.errno or 0) from error
            found |= every
            continue
        offset = 0
        while offset + netlink.HEADER.size <= len(data):
            length, kind, _, _, port = netlink.HEADER.unpack_from(data, offset)
            word = meaning(kind, port, data[offset + netlink.HEADER.size : offset + length])
            if word is not None:
                found.add(word)
            offset += (length + 3) & ~3
