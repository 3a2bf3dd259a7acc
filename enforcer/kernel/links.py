"""Network interfaces: reading them, and setting allmulti."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from enforcer.kernel import addresses, netlink
from enforcer.kernel.addresses import Interface
from enforcer.kernel.netlink import ACK, REQUEST, Channel, Message

# include/uapi/linux/rtnetlink.h, if_link.h, if.h, if_arp.h
RTM_NEWLINK, RTM_GETLINK = 16, 18
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 1, 4
# Masters that do not take over their ports' packets: they receive frames of a protocol of their own.
_TAKE_NONE = ("batadv",)
IFF_UP, IFF_ALLMULTI = 0x1, 0x200
# Link-layer header length by hardware type; the loopback interface has an Ethernet header of zeros.
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

    ``header`` is the length of the link-layer header in bytes: 14 (Ethernet), 0 (tun, WireGuard, tunnels), or
    None for an unknown hardware type.
    """

    name: str
    index: int
    header: int | None
    up: bool
    mtu: int
    allmulti: bool
    addresses: tuple[Interface, ...]
    mac: bytes = bytes(6)
    kind: str = ""
    """IFLA_INFO_KIND: "vlan", "macvlan", "wireguard", …; empty for hardware."""
    lower: str | None = None
    """Its lower interface in this network namespace: the parent of a VLAN, for example."""
    port_of: str | None = None
    """The bridge, bond, VRF or other master whose port it is; the kernel attributes its packets to that."""


def below(link: Link, found: Mapping[str, Link]) -> Iterator[Link]:
    """The lower interfaces of a link, nearest first."""
    seen = {link.name}
    while link.lower is not None and link.lower in found and link.lower not in seen:
        link = found[link.lower]
        seen.add(link.name)
        yield link


def links() -> dict[str, Link]:
    """All interfaces by name."""
    held: dict[str, list[Interface]] = {}
    for name, interface in addresses.held():
        held.setdefault(name, []).append(interface)
    with Channel(netlink.NETLINK_ROUTE, "reading the interfaces") as channel:
        messages = channel.snapshot(RTM_GETLINK, INFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    every = [(INFO.unpack_from(message), netlink.attributes(message, INFO.size)) for message in messages]
    names = {index: netlink.text(parts[IFLA_IFNAME]) for (_, _, index, _, _), parts in every}
    found = {}
    for (_, hardware, index, flags, _), parts in every:
        name = names[index]
        info = netlink.attributes(parts.get(IFLA_LINKINFO, b""))
        kind = netlink.text(info.get(IFLA_INFO_KIND, b""))
        # IFLA_LINK is also a veth's peer, or an interface of another network namespace.
        lies_on = kind != "veth" and IFLA_LINK_NETNSID not in parts
        # Some masters have no kind (net_failover, netvsc).
        is_port = netlink.text(info.get(IFLA_INFO_SLAVE_KIND, b"")) not in _TAKE_NONE
        found[name] = Link(
            name=name,
            index=index,
            header=HEADERS.get(hardware),
            up=bool(flags & IFF_UP),
            mtu=_number(parts, IFLA_MTU),
            allmulti=bool(flags & IFF_ALLMULTI),
            addresses=tuple(sorted(held.get(name, ()), key=lambda address: (address.version, address))),
            mac=parts.get(IFLA_ADDRESS, b"")[:6].ljust(6, b"\0"),
            kind=kind,
            lower=names.get(_number(parts, IFLA_LINK)) if lies_on else None,
            port_of=names.get(_number(parts, IFLA_MASTER)) if is_port else None,
        )
    return found


def _number(parts: Mapping[int, bytes], kind: int) -> int:
    """The value of a 32-bit attribute; 0 if it is missing."""
    return int.from_bytes(parts.get(kind, b"")[:4], sys.byteorder)


def set_allmulti(name: str, on: bool) -> bool:
    """Sets or clears allmulti; True if that changed the flag.

    Neighbour solicitations for the addresses of a range go to many multicast groups (RFC 4291, 2.7.1).
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
