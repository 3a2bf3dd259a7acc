"""Network interfaces: what there is, and the one flag that is set on them."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass, replace

from enforcer.kernel import addresses, netlink
from enforcer.kernel.addresses import Interface
from enforcer.kernel.netlink import ACK, REQUEST, Channel, Message

# include/uapi/linux/rtnetlink.h, if_link.h, if.h, if_arp.h
RTM_NEWLINK, RTM_GETLINK = 16, 18
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_INFO_SLAVE_KIND = 4
# Interfaces that take all packets of their ports; a VRF, say, takes none.
_TAKERS = ("bridge", "bond", "team")
IFF_UP, IFF_ALLMULTI = 0x1, 0x200
# Hardware types by the length of the header; the loopback interface has an Ethernet header, of zeroes.
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
ARPHRD_PPP, ARPHRD_RAWIP, ARPHRD_TUNNEL, ARPHRD_TUNNEL6, ARPHRD_SIT = 512, 519, 768, 769, 776
ARPHRD_IPGRE, ARPHRD_IP6GRE, ARPHRD_NONE = 778, 823, 0xFFFE
INFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, hardware type, index, flags, change mask

HEADERS = dict.fromkeys((ARPHRD_ETHER, ARPHRD_LOOPBACK), 14) | dict.fromkeys(
    (
        ARPHRD_PPP,
        ARPHRD_RAWIP,
        ARPHRD_TUNNEL,
        ARPHRD_TUNNEL6,
        ARPHRD_SIT,
        ARPHRD_IPGRE,
        ARPHRD_IP6GRE,
        ARPHRD_NONE,
    ),
    0,
)


@dataclass(frozen=True)
class Link:
    """One interface.

    ``header`` is its packets' link-layer header in bytes: 14 (Ethernet), 0 (tun, WireGuard, tunnels), or None
    for a kind of link that this program doesn't know.
    """

    name: str
    index: int
    header: int | None
    up: bool
    mtu: int
    allmulti: bool
    addresses: tuple[Interface, ...]
    mac: bytes = bytes(6)
    port_of: str | None = None
    """The bridge or bond whose port it is: that one's the packets are then."""


def links() -> dict[str, Link]:
    """All interfaces by name."""
    held: dict[str, list[Interface]] = {}
    for name, interface in addresses.held():
        held.setdefault(name, []).append(interface)
    found, masters = {}, {}
    with Channel(netlink.NETLINK_ROUTE, "reading the interfaces") as channel:
        for message in channel.snapshot(RTM_GETLINK, INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, hardware, index, flags, _ = INFO.unpack_from(message)
            parts = netlink.attributes(message, INFO.size)
            name = netlink.text(parts[IFLA_IFNAME])
            (mtu,) = struct.unpack("=I", parts[IFLA_MTU])
            found[name] = Link(
                name=name,
                index=index,
                header=HEADERS.get(hardware),
                up=bool(flags & IFF_UP),
                mtu=mtu,
                allmulti=bool(flags & IFF_ALLMULTI),
                addresses=tuple(sorted(held.get(name, ()), key=lambda address: (address.version, address))),
                mac=parts.get(IFLA_ADDRESS, b"")[:6].ljust(6, b"\0"),
            )
            kinds = netlink.attributes(parts.get(IFLA_LINKINFO, b""))
            if netlink.text(kinds.get(IFLA_INFO_SLAVE_KIND, b"")) in _TAKERS:
                (masters[name],) = struct.unpack("=I", parts[IFLA_MASTER])
    names = {link.index: name for name, link in found.items()}
    return found | {
        name: replace(found[name], port_of=names[index]) for name, index in masters.items() if index in names
    }


def set_allmulti(name: str, on: bool) -> bool:
    """Make the interface take in all multicast, or only what was joined; True if that was a change.

    Neighbour solicitations for an IPv6 range arrive at as many multicast groups as the range has addresses.
    """
    link = links().get(name)
    operation = f"{'setting' if on else 'unsetting'} allmulti on {name}"
    if link is None:
        raise netlink.failure(operation, errno.ENODEV)
    if link.allmulti is on:
        return False
    payload = INFO.pack(socket.AF_UNSPEC, 0, link.index, IFF_ALLMULTI if on else 0, IFF_ALLMULTI)
    with Channel(netlink.NETLINK_ROUTE, operation) as channel:
        for refusal in channel.change([Message(RTM_NEWLINK, REQUEST | ACK, payload)]):
            raise netlink.failure(operation, refusal.code, refusal.detail)
    return True
