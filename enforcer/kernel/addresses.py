"""The gateway's addresses: single addresses on interfaces, IPv6 ranges as local routes.

Added addresses and routes have the protocol number 233 (0xe9, unassigned in iproute2's rt_addrprotos and
rt_protos), which identifies them: ``ip address`` and ``ip route`` show it, ``ours=True`` selects it. Adding
an existing address and removing a missing one succeed. pyroute2 is not used: it takes 200 µs for each
address, and a start adds 4,000.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, IPv6Network
from typing import NamedTuple, TypeVar

from enforcer.kernel import netlink
from enforcer.kernel.netlink import ACK, CREATE, EXCL, REQUEST, Channel, Message

Interface = IPv4Interface | IPv6Interface
InterfaceAddress = tuple[str, Interface]

PROTOCOL = 0xE9
LOOPBACK = "lo"

# include/uapi/linux/rtnetlink.h, if_addr.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
IFA_F_NODAD, IFA_F_DADFAILED = 0x02, 0x08
RTA_DST, RTA_OIF = 1, 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RT_TABLE_LOCAL, RTN_LOCAL, RTPROT_KERNEL = 255, 2, 2
ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, interface index
ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths, TOS, table, protocol, scope, type, flags

_INTERFACES: dict[int, type[Interface]] = {socket.AF_INET: IPv4Interface, socket.AF_INET6: IPv6Interface}

Thing = TypeVar("Thing")


class AddressEntry(NamedTuple):
    """One address as the kernel lists it (rtnetlink(7), RTM_GETADDR)."""

    holder: int
    """The interface's index."""
    address: Interface
    scope: int
    flags: int
    ours: bool
    """Whether it has the enforcer's protocol number."""


def all_entries() -> Iterator[AddressEntry]:
    """Every address of the network namespace, including tentative and failed ones."""
    with Channel(netlink.NETLINK_ROUTE, "reading the addresses") as channel:
        for message in channel.snapshot(RTM_GETADDR, ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            family, length, _, scope, index = ADDRESS.unpack_from(message)
            parts = netlink.attributes(message, ADDRESS.size)
            if family not in _INTERFACES:
                continue
            # On a point-to-point link IFA_ADDRESS is the peer's; most IPv6 addresses have no IFA_LOCAL.
            address = _INTERFACES[family]((parts.get(IFA_LOCAL) or parts[IFA_ADDRESS], length))
            flags = int.from_bytes(parts.get(IFA_FLAGS, b""), sys.byteorder)
            yield AddressEntry(index, address, scope, flags, parts.get(IFA_PROTO) == bytes([PROTOCOL]))


def held(*, ours: bool = False) -> set[InterfaceAddress]:
    """Every address (or only the enforcer's) with its interface's name.

    An IPv6 address that failed duplicate address detection (RFC 4862, 5.4) is left out.
    """
    names = dict(socket.if_nameindex())
    return {
        (names[found.holder], found.address)
        for found in all_entries()
        if found.holder in names and not found.flags & IFA_F_DADFAILED and (found.ours or not ours)
    }


def add(
    addresses: Iterable[InterfaceAddress], *, own: Collection[IPv4Address] = ()
) -> list[InterfaceAddress]:
    """Adds addresses to interfaces; returns those that were missing.

    IPv4 addresses get the scope "host", which the kernel never selects as the source of the gateway's own
    traffic. Those in ``own`` get the scope "link", which it selects where a default route has no next hop
    (``default dev ppp0``, a route of scope "link"; net/ipv4/devinet.c, inet_select_addr). An address with
    another scope is removed and added again; an ARP request meanwhile stays unanswered. IPv6 addresses skip
    duplicate address detection and are usable at once.
    """
    wanted = list(addresses)
    again = wrong_scope(own=own).intersection(wanted)
    if again:
        remove(again)
    encode = _address_encoder(RTM_NEWADDR, CREATE | EXCL, own)
    return _change("adding {0[1]} to {0[0]}", wanted, encode, {errno.EEXIST})


def wrong_scope(*, own: Collection[IPv4Address] = ()) -> set[InterfaceAddress]:
    """The enforcer's IPv4 addresses whose scope differs from the one that :func:`add` gives (earlier
    versions)."""
    names = dict(socket.if_nameindex())
    return {
        (names[found.holder], found.address)
        for found in all_entries()
        if isinstance(found.address, IPv4Interface)
        and found.holder in names
        and found.ours
        and found.scope != _scope(found.address, own)
    }


def _scope(address: Interface, own: Collection[IPv4Address]) -> int:
    if address.version == 6:
        return RT_SCOPE_UNIVERSE
    return RT_SCOPE_LINK if address.ip in own else RT_SCOPE_HOST


def remove(addresses: Iterable[InterfaceAddress]) -> list[InterfaceAddress]:
    """Removes addresses from interfaces, also those of other software; returns those that existed."""
    names = {name for _, name in socket.if_nameindex()}
    present = [address for address in addresses if address[0] in names]
    encode = _address_encoder(RTM_DELADDR, 0)
    gone = {errno.EADDRNOTAVAIL, errno.ENODEV}
    return _change("removing {0[1]} from {0[0]}", present, encode, gone)


def _address_encoder(
    kind: int, flags: int, own: Collection[IPv4Address] = ()
) -> Callable[[InterfaceAddress], Message]:
    indexes = {name: index for index, name in socket.if_nameindex()}

    def encode(address: InterfaceAddress) -> Message:
        name, interface = address
        if name not in indexes:
            raise netlink.failure(f"finding the interface {name}", errno.ENODEV)
        packed = interface.ip.packed
        family = socket.AF_INET6 if isinstance(interface, IPv6Interface) else socket.AF_INET
        length = interface.network.prefixlen
        payload = ADDRESS.pack(family, length, 0, _scope(interface, own), indexes[name])
        payload += netlink.attribute(IFA_LOCAL, packed) + netlink.attribute(IFA_ADDRESS, packed)
        if kind == RTM_NEWADDR:
            payload += netlink.attribute(IFA_PROTO, bytes([PROTOCOL]))
            if family == socket.AF_INET6:
                payload += netlink.attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
        return Message(kind, REQUEST | ACK | flags, payload)

    return encode


def ranges(*, ours: bool = False) -> set[IPv6Network]:
    """The IPv6 ranges with a local route (or only the enforcer's).

    The kernel's own local routes of single addresses are left out.
    """
    request = ROUTE.pack(socket.AF_INET6, 0, 0, 0, RT_TABLE_LOCAL, PROTOCOL if ours else 0, 0, 0, 0)
    found = set()
    with Channel(netlink.NETLINK_ROUTE, "reading the local IPv6 routes") as channel:
        for message in channel.snapshot(RTM_GETROUTE, request, strict=True):
            _, length, _, _, table, protocol, _, kind, _ = ROUTE.unpack_from(message)
            if table != RT_TABLE_LOCAL or kind != RTN_LOCAL or protocol == RTPROT_KERNEL:
                continue
            if ours and protocol != PROTOCOL:
                continue
            destination = netlink.attributes(message, ROUTE.size).get(RTA_DST, bytes(16))
            found.add(IPv6Network((destination, length)))
    return found


def add_ranges(networks: Iterable[IPv6Network]) -> list[IPv6Network]:
    """Adds local routes for these ranges; returns those that were missing."""
    encode = _range_encoder(RTM_NEWROUTE, CREATE | EXCL)
    return _change("adding the local route {}", networks, encode, {errno.EEXIST})


def remove_ranges(networks: Iterable[IPv6Network]) -> list[IPv6Network]:
    """Removes the enforcer's local routes of these ranges; returns those that existed."""
    encode = _range_encoder(RTM_DELROUTE, 0)
    return _change("removing the local route {}", networks, encode, {errno.ESRCH})


def _range_encoder(kind: int, flags: int) -> Callable[[IPv6Network], Message]:
    loopback = struct.pack("=I", socket.if_nametoindex(LOOPBACK))

    def encode(network: IPv6Network) -> Message:
        fields = (socket.AF_INET6, network.prefixlen, 0, 0, RT_TABLE_LOCAL, PROTOCOL)
        payload = ROUTE.pack(*fields, RT_SCOPE_UNIVERSE, RTN_LOCAL, 0)
        payload += netlink.attribute(RTA_DST, network.network_address.packed)
        payload += netlink.attribute(RTA_OIF, loopback)
        return Message(kind, REQUEST | ACK | flags, payload)

    return encode


def _change(
    operation: str,
    things: Iterable[Thing],
    encode: Callable[[Thing], Message],
    harmless: set[int],
) -> list[Thing]:
    """Sends the request of each thing; returns those that changed. ``harmless`` errnos mean "no change".

    All are tried; then the first other error is raised, with the number of further ones.
    """
    every = list(things)
    messages = [encode(thing) for thing in every]
    with Channel(netlink.NETLINK_ROUTE, operation.partition(" {")[0]) as channel:
        refused = channel.change(messages)
    serious = [refusal for refusal in refused if refusal.code not in harmless]
    if serious:
        position, code, detail = serious[0]
        what = operation.format(every[position])
        if len(serious) > 1:
            what += f" (and {len(serious) - 1} more)"
        raise netlink.failure(what, code, detail)
    unchanged = {refusal.position for refusal in refused}
    return [thing for position, thing in enumerate(every) if position not in unchanged]
