"""Watches for changes of the enforcer's objects: links, addresses, local routes, TC filters, nftables.

Changes are reported by category; event contents are not kept. An overflow of the rtnetlink socket counts as
every category. An overflow of the nftables socket does so only if other software has committed a transaction
meanwhile, since writing a large table overflows it too. Standard library only.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Self

from enforcer.errors import EnforcerError
from enforcer.kernel import events, netlink
from enforcer.kernel.addresses import RT_TABLE_LOCAL, RTM_DELROUTE, RTM_NEWROUTE
from enforcer.kernel.events import Event
from enforcer.kernel.nft import generations
from enforcer.kernel.nft.protocol import NEWGEN, NFPROTO_INET, SUBSYSTEM

ROUTE, FILTER, NFT = "route", "filter", "nft"
ROUTES = {ROUTE, FILTER}

# include/uapi/linux/rtnetlink.h, netfilter/nfnetlink.h, netfilter/nf_tables.h
TRAFFIC_CONTROL_KINDS = range(36, 48)  # RTM_NEWQDISC to RTM_GETTFILTER
ROUTE_KINDS = (RTM_NEWROUTE, RTM_DELROUTE)
RTM_TABLE = 4  # where struct rtmsg has the table
# NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN: the chain may be at the ingress hook.
CHAIN_KINDS = (2, 3, 5)
NFTA_TABLE = 1  # the table's name, in messages about every kind of nftables object
GROUPS = (
    *(events.LINK, events.TRAFFIC_CONTROL, events.IPV4_ADDRESS, events.IPV6_ADDRESS, events.IPV6_ROUTE),
    *(events.IPV4_NETCONF, events.IPV6_NETCONF),
)

RECEIVE_BUFFER = 1 << 20


class Watch:
    """A subscription to these events; a context manager.

    "filter" reports changes of TC and of chains in other tables. "nft" reports that other software changed
    the table ``inet <table>``: the port id identifies the enforcer's own changes
    (:func:`enforcer.kernel.netlink.is_own_port`). "route" and "filter" include the enforcer's own changes.
    """

    def __init__(self, table: str = "enforcer") -> None:
        self._table = table.encode()
        self._route = events.subscribe(netlink.NETLINK_ROUTE, GROUPS, RECEIVE_BUFFER)
        self._nft = events.subscribe(netlink.NETLINK_NETFILTER, (events.NFTABLES,), RECEIVE_BUFFER)
        self._generation = generations.generation()
        self._own_commits = generations.OWN.count
        self._poll = select.epoll()
        for subscribed in (self._route, self._nft):
            self._poll.register(subscribed, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the subscription."""
        self._poll.close()
        self._route.close()
        self._nft.close()

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`drain` has something."""
        return self._poll.fileno()

    def drain(self) -> set[str]:
        """The categories of changes since the last call; never blocks."""
        route, overflowed = _drain(self._route, self._of_route)
        return route | (ROUTES if overflowed else set()) | self._drain_nft()

    def _drain_nft(self) -> set[str]:
        """The categories that other software changed; after an overflow both, if it has committed anything.

        The generation is read after the queue was emptied: later overflows are reported again. A commit in
        between may be reported twice, and none is missed.
        """
        before = self._generation
        own, self._own_commits = generations.OWN.count - self._own_commits, generations.OWN.count
        found, overflowed = _drain(self._nft, self._of_nft)
        if not overflowed:
            return found
        try:
            self._generation = generations.generation()
        except EnforcerError:
            return {NFT, FILTER}
        return found if generations.since(before, self._generation) == own else {NFT, FILTER}

    @staticmethod
    def _of_route(event: Event) -> str | None:
        # Only the local table holds egress ranges; a BGP speaker causes thousands of changes in others.
        if event.kind in ROUTE_KINDS and event.payload[RTM_TABLE] != RT_TABLE_LOCAL:
            return None
        return FILTER if event.kind in TRAFFIC_CONTROL_KINDS else ROUTE

    def _of_nft(self, event: Event) -> str | None:
        kind, port, payload = event
        if kind == NEWGEN:
            said = generations.generation_in(payload)
            if said is not None and generations.since(self._generation, said) > 0:
                self._generation = said
            return None
        if kind & ~0xFF != SUBSYSTEM or netlink.is_own_port(port):
            return None
        table = netlink.attributes(payload, 4).get(NFTA_TABLE, b"").rstrip(b"\0")
        if payload[0] == NFPROTO_INET and table == self._table:
            return NFT
        return FILTER if kind & 0xFF in CHAIN_KINDS else None


def _drain(subscribed: socket.socket, meaning: Callable[[Event], str | None]) -> tuple[set[str], bool]:
    """(categories of the received events, whether events were lost to an overflow)."""
    found: set[str] = set()
    overflowed = False
    for event in events.received(subscribed):
        if event is None:
            overflowed = True
            continue
        word = meaning(event)
        if word is not None:
            found.add(word)
    return found, overflowed
