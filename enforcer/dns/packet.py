"""Parses packets from the IP header on: addresses, ports and payload, for both families.

It skips IPv6 extension headers (RFC 8200, 4.1) and does not verify checksums (:mod:`enforcer.kernel.nfqueue`
gives the reason).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from enforcer.constants import MAPPED, TCP, UDP

# Hop-by-hop options, routing, destination options. Their length is in 8-byte units without the first.
_EXTENSIONS = {0, 43, 60}
_EXTENSIONS_AT_MOST = 8
# More-fragments flag and offset: conntrack has reassembled fragments before.
_FRAGMENT = 0x3FFF
_UDP = struct.Struct(">HHH2x")
_TCP = struct.Struct(">HHI4xBB6x")


class Packet(NamedTuple):
    """One UDP datagram or TCP segment; addresses are 16 bytes (enforcer/address.py)."""

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    payload: bytes
    sequence: int = 0
    flags: int = 0


def source_address(data: bytes) -> bytes:
    """Return the source address of a packet with any payload; zeros if it is not IP."""
    return _address(data, 12, 8)


def destination_address(data: bytes) -> bytes:
    """Return the destination address, as :func:`source_address`."""
    return _address(data, 16, 24)


def _address(data: bytes, four: int, six: int) -> bytes:
    version = data[0] >> 4 if data else 0
    if version == 4:
        return (MAPPED + data[four : four + 4]).ljust(16, b"\0")
    return data[six : six + 16].ljust(16, b"\0") if version == 6 else bytes(16)


def parse(data: bytes) -> Packet | None:
    """Return the UDP datagram or TCP segment; None if it is another protocol or incomplete."""
    try:
        version = data[0] >> 4
        if version == 4:
            return _ipv4(data)
        return _ipv6(data) if version == 6 else None
    except (struct.error, IndexError):
        return None


def _ipv4(data: bytes) -> Packet | None:
    start = (data[0] & 15) * 4
    # Total length 0: a packet above 64 KiB (Linux BIG TCP), which extends to the end of the data.
    end = int.from_bytes(data[2:4], "big") or len(data)
    if start < 20 or end > len(data) or int.from_bytes(data[6:8], "big") & _FRAGMENT:
        return None
    return _transport(data[start:end], data[9], MAPPED + data[12:16], MAPPED + data[16:20])


def _ipv6(data: bytes) -> Packet | None:
    protocol, start = data[6], 40
    for _ in range(_EXTENSIONS_AT_MOST):
        if protocol not in _EXTENSIONS:
            break
        protocol, start = data[start], start + (data[start + 1] + 1) * 8
    end = 40 + int.from_bytes(data[4:6], "big")
    return _transport(data[start:end], protocol, data[8:24], data[24:40]) if end <= len(data) else None


def _transport(data: bytes, protocol: int, source: bytes, destination: bytes) -> Packet | None:
    size = len(data)
    if protocol == UDP:
        source_port, destination_port, length = _UDP.unpack_from(data)
        if 8 <= length <= size:
            return Packet(UDP, source, source_port, destination, destination_port, data[8:length])
    elif protocol == TCP:
        source_port, destination_port, sequence, offset, flags = _TCP.unpack_from(data)
        header = (offset >> 4) * 4
        if 20 <= header <= size:
            payload = data[header:]
            return Packet(TCP, source, source_port, destination, destination_port, payload, sequence, flags)
    return None
