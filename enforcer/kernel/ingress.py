"""The nftables chains that look at packets as they arrive at an interface (nft(8), ingress hook).

TC programs run before them (net/core/dev.c, __netif_receive_skb_core).
"""

from __future__ import annotations

import struct

from enforcer.kernel import netlink
from enforcer.kernel.netlink import Channel
from enforcer.kernel.nft import protocol

# include/uapi/linux/netfilter/nf_tables.h, netfilter.h
NFPROTO_UNSPEC, NFPROTO_NETDEV = 0, 5
GETCHAIN = protocol.SUBSYSTEM | 4
NFTA_CHAIN_HOOK = 4
NFTA_HOOK_HOOKNUM, NFTA_HOOK_DEV, NFTA_HOOK_DEVS = 1, 3, 4
NFTA_DEVICE_NAME = 1
NUMBERS = {NFPROTO_NETDEV: 0, protocol.NFPROTO_INET: 5}
"""The hook's number, by family."""


def devices() -> set[str]:
    """Names of the interfaces at which there is such a chain."""
    found: set[str] = set()
    with Channel(netlink.NETLINK_NETFILTER, "reading the nftables chains") as channel:
        for message in channel.snapshot(GETCHAIN, struct.pack(">BBH", NFPROTO_UNSPEC, 0, 0)):
            parts = netlink.attributes(message, len(protocol.NFGEN))
            hook = netlink.attributes(parts.get(NFTA_CHAIN_HOOK, b""))
            number = int.from_bytes(hook.get(NFTA_HOOK_HOOKNUM, b"\xff" * 4), "big")
            if NUMBERS.get(message[0]) == number:
                found |= _names(hook)
    return found


def _names(hook: dict[int, bytes]) -> set[str]:
    names = {netlink.text(hook[NFTA_HOOK_DEV])} if NFTA_HOOK_DEV in hook else set()
    # All are attributes of one type, of which a mapping keeps the last.
    rest = hook.get(NFTA_HOOK_DEVS, b"")
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        if kind == NFTA_DEVICE_NAME:
            names.add(netlink.text(rest[4:length]))
        rest = rest[(length + 3) & ~3 :]
    return names
