"""Finds the interfaces with nftables chains at the ingress hook (nft(8)), of any table.

TC programs run before these chains (net/core/dev.c, __netif_receive_skb_core).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from enforcer.kernel import netlink
from enforcer.kernel.netlink import Channel
from enforcer.kernel.nft import protocol

# include/uapi/linux/netfilter/nf_tables.h, netfilter.h
NFPROTO_UNSPEC, NFPROTO_NETDEV = 0, 5
GETCHAIN = protocol.SUBSYSTEM | 4
NFTA_CHAIN_HOOK = 4
NFTA_HOOK_HOOKNUM, NFTA_HOOK_DEV, NFTA_HOOK_DEVS = 1, 3, 4
NFTA_DEVICE_NAME, NFTA_DEVICE_PREFIX = 1, 2
NUMBERS = {NFPROTO_NETDEV: 0, protocol.NFPROTO_INET: 5}
"""Number of the ingress hook by family."""


@dataclass(frozen=True)
class Devices:
    """Interfaces with an ingress chain; `in` takes a name."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    """Name prefixes: "eth" for ``devices = { "eth*" }``."""

    def __contains__(self, name: str) -> bool:
        return name in self.names or name.startswith(self.prefixes)


def devices() -> Devices | None:
    """The interfaces with ingress chains; None if chains changed while they were read."""
    names: set[str] = set()
    prefixes: set[str] = set()
    with Channel(netlink.NETLINK_NETFILTER, "reading the nftables chains") as channel:
        for message in channel.dump(GETCHAIN, struct.pack(">BBH", NFPROTO_UNSPEC, 0, 0)):
            parts = netlink.attributes(message, len(protocol.NFGEN))
            hook = netlink.attributes(parts.get(NFTA_CHAIN_HOOK, b""))
            number = int.from_bytes(hook.get(NFTA_HOOK_HOOKNUM, b"\xff" * 4), "big")
            if NUMBERS.get(message[0]) == number:
                found = _devices(hook)
                names |= found.names
                prefixes.update(found.prefixes)
        return None if channel.interrupted else Devices(frozenset(names), tuple(prefixes))


def _devices(hook: dict[int, bytes]) -> Devices:
    """The interfaces of one chain's hook."""
    names = {netlink.text(hook[NFTA_HOOK_DEV])} if NFTA_HOOK_DEV in hook else set()
    prefixes = set()
    for kind, value in netlink.each_attribute(hook.get(NFTA_HOOK_DEVS, b"")):
        # Linux 6.16 writes a prefix as a name without terminating NUL, later versions as an attribute type.
        if kind == NFTA_DEVICE_PREFIX or (kind == NFTA_DEVICE_NAME and not value.endswith(b"\0")):
            prefixes.add(netlink.text(value))
        elif kind == NFTA_DEVICE_NAME:
            names.add(netlink.text(value))
    return Devices(frozenset(names), tuple(prefixes))
