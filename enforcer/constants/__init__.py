"""Numbers and prefixes that standards assign, each once."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Network
from typing import Final

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
PROTOCOL_NAMES: Final[Mapping[int, str]] = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}
"""IANA, "Protocol Numbers"."""

DNS_PORT: Final = 53
EPHEMERAL_PORT: Final = 49152
"""The first dynamic port (RFC 6335, 6)."""
FIN: Final = 1
SYN: Final = 2
RST: Final = 4
"""Control bits of TCP (RFC 9293, 3.1)."""
ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_P_IPV6: Final = 0x86DD
"""IANA, "IEEE 802 Numbers"."""
IFNAMSIZ: Final = 16
"""Bytes of an interface's name and the zero after it (include/uapi/linux/if.h)."""

MAPPED: Final = bytes(10) + b"\xff\xff"
"""The first 12 of 16 bytes of an IPv4 address in its mapped form (RFC 4291, 2.5.5.2), as the maps hold it."""
MAPPED_NETWORK: Final = IPv6Network((MAPPED + bytes(4), 96))
"""All of IPv4 in that form: ::ffff:0:0/96."""
