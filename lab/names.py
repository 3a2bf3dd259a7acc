"""A client that looks names up over UDP and connects to the answers, many times a second.

All runs in the calling thread's network namespace, threads that it starts included.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import dns.message
import dns.rdatatype

from lab.clients import TIMEOUT, family_of
from lab.netns import Namespace


class Visit(NamedTuple):
    """One name: looked up, then connected to at once."""

    name: str
    address: str
    seen: str
    """The source address that the origin saw."""
    look_up: float
    """Seconds."""


def look_up(server: socket.socket, name: str, kind: str, number: int) -> list[str]:
    """The addresses in a resolver's answer, by a connected UDP socket."""
    query = dns.message.make_query(name, kind, id=number & 0xFFFF)
    server.send(query.to_wire())
    answer = dns.message.from_wire(server.recv(65536))
    wanted = dns.rdatatype.from_text(kind)
    return [record.address for rrset in answer.answer if rrset.rdtype == wanted for record in rrset]


def visit(server: socket.socket, name: str, kind: str, port: int, number: int = 1) -> Visit:
    """Looks a name up and connects to its first address, where a reporter answers with the source address."""
    began = time.perf_counter()
    address = look_up(server, name, kind, number)[0]
    took = time.perf_counter() - began
    with socket.socket(family_of(address), socket.SOCK_STREAM) as client:
        client.settimeout(TIMEOUT)
        # A RST frees the kernel's port at once: ten thousand in TIME_WAIT are not what is tested.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.connect((address, port))
        seen = json.loads(client.makefile("rb").readline())["address"]
    return Visit(name, address, seen, took)


def visit_all(
    resolver: str, names: Sequence[tuple[str, str]], port: int = 9000, workers: int = 8
) -> list[Visit]:
    """Visits pairs (name, A or AAAA), several at a time; each worker has its own socket to the resolver."""

    def work(share: Sequence[tuple[str, str]]) -> list[Visit]:
        with socket.socket(family_of(resolver), socket.SOCK_DGRAM) as server:
            server.settimeout(TIMEOUT)
            server.connect((resolver, 53))
            return [visit(server, name, kind, port, number) for number, (name, kind) in enumerate(share)]

    size = -(-len(names) // workers)
    shares = [names[start : start + size] for start in range(0, len(names), size)]
    with ThreadPoolExecutor(workers) as pool:
        return [visited for share in pool.map(work, shares) for visited in share]


def with_resolver(directory: Path, resolver: str) -> Callable[[Namespace, list[str]], list[str]]:
    """Returns a function whose command runs a program with this system resolver, mounted as resolv.conf."""
    file = directory / f"resolv-{resolver.replace(':', '-')}.conf"
    file.write_text(f"nameserver {resolver}\noptions timeout:2 attempts:2\n", encoding="ascii")

    def command(namespace: Namespace, argv: list[str]) -> list[str]:
        script = f'mount --bind {file} /etc/resolv.conf && exec "$@"'
        return namespace.command(["unshare", "--mount", "sh", "-c", script, "sh", *argv])

    return command
