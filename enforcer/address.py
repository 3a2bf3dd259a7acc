"""Addresses in the maps' form: 16 bytes, IPv4 mapped to IPv6 (RFC 4291, 2.5.5.2)."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np

from enforcer.constants import MAPPED

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def pack(address: IPAddress) -> bytes:
    """16 bytes in network order."""
    return MAPPED + address.packed if address.version == 4 else address.packed


def words(address: IPAddress) -> np.ndarray:
    """The four 32-bit words, as the maps' ``u32[4]`` holds them."""
    return np.frombuffer(pack(address), dtype="<u4")


def unpack(stored: Any) -> IPAddress:
    """The address of a map's ``u32[4]``."""
    return of_bytes(np.asarray(stored, dtype="<u4").tobytes())


def of_bytes(raw: bytes) -> IPAddress:
    """The address of 16 bytes from :func:`pack`."""
    return ipaddress.IPv4Address(raw[12:]) if raw[:12] == MAPPED else ipaddress.IPv6Address(raw)


def mapped(network: IPNetwork) -> ipaddress.IPv6Network:
    """A network in the maps' address space."""
    if isinstance(network, ipaddress.IPv6Network):
        return network
    return ipaddress.IPv6Network((pack(network.network_address), 96 + network.prefixlen))


def mask_words(length: int) -> np.ndarray:
    """A netmask of ``length`` leading ones out of 128."""
    return np.frombuffer(((1 << 128) - (1 << (128 - length))).to_bytes(16, "big"), dtype="<u4")


def port(stored: Any) -> int:
    """A port number of a map's big-endian ``u16``."""
    value = int(stored)
    return (value & 0xFF) << 8 | value >> 8
