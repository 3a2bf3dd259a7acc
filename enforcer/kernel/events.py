"""Subscriptions to netlink multicast groups."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import NamedTuple

from enforcer.kernel import netlink

# include/uapi/linux/rtnetlink.h (enum rtnetlink_groups)
LINK, NEIGHBOUR, TRAFFIC_CONTROL, IPV4_ADDRESS, IPV4_ROUTE, IPV4_RULE = 1, 3, 4, 5, 7, 8
IPV6_ADDRESS, IPV6_ROUTE, IPV6_RULE, NEXT_HOP = 9, 11, 19, 32
IPV4_NETCONF, IPV6_NETCONF = 24, 25  # forwarding was switched on or off
# include/uapi/linux/netfilter/nfnetlink.h (enum nfnetlink_groups)
NFTABLES = 7

NETLINK_ADD_MEMBERSHIP = 1


class Event(NamedTuple):
    """One message: its type, the port id of the request that caused it, and the payload after the header."""

    kind: int
    port: int
    payload: bytes


def subscribe(family: int, groups: tuple[int, ...], room: int) -> socket.socket:
    """A non-blocking socket that receives these groups' messages; its buffer holds about ``room`` bytes."""
    try:
        subscribed = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family
        )
        subscribed.bind((0, 0))
        for group in groups:
            subscribed.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        # Beyond net.core.rmem_max only with CAP_NET_ADMIN; a smaller buffer overflows earlier, which is
        # reported.
        subscribed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    except OSError as error:
        raise netlink.failure("subscribing to the kernel's events", error.errno or 0) from error
    return subscribed


def received(subscribed: socket.socket) -> Iterator[Event | None]:
    """The messages since the last call; never blocks. None stands for messages lost to an overflow."""
    while True:
        try:
            data = subscribed.recv(netlink.RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise netlink.failure("reading the kernel's events", error.errno or 0) from error
            yield None
            continue
        offset = 0
        while offset + netlink.HEADER.size <= len(data):
            length, kind, _, _, port = netlink.HEADER.unpack_from(data, offset)
            yield Event(kind, port, data[offset + netlink.HEADER.size : offset + length])
            offset += (length + 3) & ~3
