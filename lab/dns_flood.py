"""A resolver with a zone of many addresses, and a client that queries it continuously.

    python -m lab.dns_flood serve ADDRESS...        a resolver on port 53 of each address
    python -m lab.dns_flood ask SOURCE RESOLVER RATE

The resolver answers for names below ``flood.`` with 64 random addresses and a TTL of a day. Any other name
``nNUMBER.…`` has one address with a TTL of a minute: the NUMBERth of the pool (POOL).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv6Address

from lab.clients import family_of

POOL: dict[int, IPv4Address | IPv6Address] = {
    4: IPv4Address("198.18.64.0"),
    6: IPv6Address("2001:db8:a1:1::"),
}
ZONE = "flood"
ADDRESSES = 64
_A, _AAAA = 1, 28
_LONG = "x" * 50
_BUFFER = 1 << 22
_SOCKETS = 8


def serve(addresses: list[str]) -> None:
    """Answers queries until the process is ended."""
    servers = []
    for address in addresses:
        server = socket.socket(family_of(address), socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        server.bind((address, 53))
        servers.append(server)
    print("ready", flush=True)
    while True:
        for server in select.select(servers, [], [])[0]:
            query, peer = server.recvfrom(4096)
            server.sendto(answer(query), peer)


def answer(query: bytes) -> bytes:
    """The answer to a query without EDNS."""
    end = 12
    labels = []
    while size := query[end]:
        labels.append(query[end + 1 : end + 1 + size])
        end += 1 + size
    question = query[12 : end + 5]
    kind = int.from_bytes(query[end + 1 : end + 3], "big")
    size = 4 if kind == _A else 16
    if labels[-1] == ZONE.encode():
        ttl = 86_400
        found = [_made_up(kind) for _ in range(ADDRESSES)]
    else:
        ttl = 60
        found = [(POOL[4 if kind == _A else 6] + int(labels[0][1:])).packed]
    head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, kind, 1, ttl, size)
    return head + question + b"".join(record + address for address in found)


def _made_up(kind: int) -> bytes:
    """A random address in 45.0.0.0/8 or 2a00::/16."""
    if kind == _A:
        return bytes([45]) + os.urandom(3)
    return bytes.fromhex("2a00") + os.urandom(14)


def ask(source: str, resolver: str, rate: float) -> None:
    """Sends ``rate`` queries a second, each for a new name, until the process is ended; reads no answer."""
    sockets = []
    for _ in range(_SOCKETS):
        asking = socket.socket(family_of(source), socket.SOCK_DGRAM)
        asking.bind((source, 0))
        asking.connect((resolver, 53))
        asking.setblocking(False)
        sockets.append(asking)
    kind = _AAAA if ":" in source else _A
    began, number = time.monotonic(), 0
    print("ready", flush=True)
    while True:
        while number < (time.monotonic() - began) * rate:
            with contextlib.suppress(OSError):
                sockets[number % _SOCKETS].send(_query(number, kind))
            number += 1
        time.sleep(0.002)


def _query(number: int, kind: int) -> bytes:
    labels = [f"{number:08d}{_LONG}", _LONG, _LONG, ZONE]
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels)
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x100, 1, 0, 0, 0) + name + struct.pack(">BHH", 0, kind, 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2:])
    else:
        ask(sys.argv[2], sys.argv[3], float(sys.argv[4]))
