"""Route look-ups: the interface by which the kernel would send packets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from enforcer.constants import MAPPED
from enforcer.kernel import netlink
from enforcer.kernel.addresses import ROUTE, RTA_DST, RTA_OIF, RTM_GETROUTE
from enforcer.kernel.netlink import NETLINK_ROUTE, REQUEST, Channel, Message


def interfaces_to(addresses: Sequence[bytes]) -> list[int | None]:
    """The index of the interface towards each address (16 bytes); None without a route."""
    requests = [Message(RTM_GETROUTE, REQUEST, _request(address)) for address in addresses]
    with Channel(NETLINK_ROUTE, "looking up routes") as channel:
        return [None if isinstance(answer, int) else _interface(answer) for answer in channel.ask(requests)]


def _request(address: bytes) -> bytes:
    family, raw = socket.AF_INET6, address
    if address.startswith(MAPPED):
        family, raw = socket.AF_INET, address[12:]
    return ROUTE.pack(family, 8 * len(raw), 0, 0, 0, 0, 0, 0, 0) + netlink.attribute(RTA_DST, raw)


def _interface(answer: bytes) -> int | None:
    found = netlink.attributes(answer, ROUTE.size).get(RTA_OIF)
    return None if found is None else int(struct.unpack("=I", found)[0])
