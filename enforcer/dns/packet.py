"""What is in a packet, from its IP header on: addresses, ports, and the DNS side's bytes.

Both families; IPv6 extension headers are walked (RFC 8200, 4.1). Checksums are not looked at
(:mod:`enforcer.kernel.nfqueue` says why that is fine).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from enforcer.constants import MAPPED, TCP, UDP

# Hop-by-hop options, routing, destination options: 8-byte units, the first not counted.
_EXTENSIONS = {0, 43, 60}
_EXTENSIONS_AT_MOST = 8
# More fragments, and the offset: conntrack would have put them together.
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


def source(data: bytes) -> bytes:
    """Where a packet comes from, whatever is in it; zeros for what is no IP."""
    return _address(data, 12, 8)


def destination(data: bytes) -> bytes:
    """Where a packet goes, likewise."""
    return _address(data, 16, 24)


def _address(data: bytes, four: int, six: int) -> bytes:
    version = data[0] >> 4 if data else 0
    if version == 4:
        return (MAPPED + data[four : four + 4]).ljust(16, b"\0")
    return data[six : six + 16].ljust(16, b"\0") if version == 6 else bytes(16)


def parse(data: bytes) -> Packet | None:
    """None for what is neither a whole UDP datagram nor a whole TCP segment."""
    try:
        version = data[0] >> 4
        if version == 4:
            return _ipv4(data)
        return _ipv6(data) if version == 6 else None
    except (struct.error, IndexError):
        return None


def _ipv4(data: bytes) -> Packet | None:
    start = (data[0] & 15) * 4
    # A total length of 0 is a packet past 64 KiB (Linux, BIG TCP): then all there is.
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
