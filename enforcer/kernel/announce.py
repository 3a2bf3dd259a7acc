"""Announces addresses to neighbours: gratuitous ARP, unsolicited neighbour advertisements.

Packet sockets send them, so the addresses need not be bound and the packets bypass netfilter. Standard
library only.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from enforcer.constants import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ICMPV6
from enforcer.kernel import netlink
from enforcer.kernel.addresses import IFA_F_DADFAILED, all_entries
from enforcer.kernel.links import ARPHRD_ETHER

ARP_REQUEST = 1
BROADCAST = b"\xff" * 6
NEIGHBOUR_ADVERTISEMENT, ROUTER_FLAG, OVERRIDE_FLAG = 136, 0x80000000, 0x20000000
TARGET_LINK_LAYER_ADDRESS = 2
ALL_NODES = IPv6Address("ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464, 7
HOP_LIMIT = 255  # RFC 4861, 7.1.2: advertisements with another hop limit are ignored
IFA_F_TENTATIVE = 0x40  # include/uapi/linux/if_addr.h

Address = IPv4Address | IPv6Address


def announce(interface: str, addresses: Iterable[Address]) -> int:
    """Sends one announcement for each address on ``interface``; returns how many were sent.

    An interface that is not Ethernet (a tunnel) has no neighbours: 0. RFC 5227 and RFC 4861 allow repetition,
    which is left to the caller.
    """
    operation = f"announcing addresses on {interface}"
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sender:
            sender.bind((interface, 0))
            _, _, _, hardware, mac = sender.getsockname()
            if hardware != ARPHRD_ETHER:
                return 0
            count = 0
            for address in addresses:
                sender.send(
                    arp(mac, address) if isinstance(address, IPv4Address) else advertisement(mac, address)
                )
                count += 1
            return count
    except OSError as error:
        raise netlink.failure(operation, error.errno or errno.EIO) from error


def settled(interface: str) -> list[Address]:
    """The addresses of the interface without tentative and failed ones; empty if it does not exist."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return []
    return [
        found.address.ip
        for found in all_entries()
        if found.holder == index and not found.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)
    ]


def arp(mac: bytes, address: IPv4Address) -> bytes:
    """The frame of an ARP announcement (RFC 5227, 2.3): a request for the sender's own address."""
    ethernet = BROADCAST + mac + struct.pack(">H", ETH_P_ARP)
    header = struct.pack(">HHBBH", ARPHRD_ETHER, ETH_P_IP, 6, 4, ARP_REQUEST)
    return ethernet + header + mac + address.packed + bytes(6) + address.packed


def advertisement(mac: bytes, address: IPv6Address) -> bytes:
    """The frame of an unsolicited neighbour advertisement with the override flag (RFC 4861, 7.2.6)."""
    option = struct.pack(">BB", TARGET_LINK_LAYER_ADDRESS, 1) + mac
    flags = ROUTER_FLAG | OVERRIDE_FLAG
    body = struct.pack(">BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, flags) + address.packed + option
    pseudo = address.packed + ALL_NODES.packed + struct.pack(">II", len(body), ICMPV6)
    checksum = _checksum(pseudo + body)
    body = body[:2] + struct.pack(">H", checksum) + body[4:]
    ipv6 = struct.pack(">IHBB", 6 << 28, len(body), ICMPV6, HOP_LIMIT) + address.packed + ALL_NODES.packed
    return ALL_NODES_MAC + mac + struct.pack(">H", ETH_P_IPV6) + ipv6 + body


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
