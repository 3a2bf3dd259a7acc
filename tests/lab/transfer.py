"""A TCP connection with continuous data in both directions, which the end compares byte by byte."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from lab.clients import family_of
from lab.netns import Namespace

PORT = 7100
CHUNK = 1 << 18
# Bytes per second and direction: several transfers at once leave processor time to the tests' subject.
PACE = 128 << 20
PATIENCE = 30.0
SO_MAX_PACING_RATE = 47  # include/uapi/asm-generic/socket.h


class Transfer:
    """A TCP connection from ``client`` to ``server`` at ``address``; both send ``least`` bytes or more.

    They send until :meth:`finish`, which raises the first failure, including a stall of half a minute.
    """

    def __init__(self, client: Namespace, server: Namespace, address: str, least: int, port: int = PORT):
        self.least = least
        self._enough = threading.Event()
        self._digests: dict[str, list[str]] = {"there": [], "back": []}
        self._sizes: list[int] = []
        self._failures: list[BaseException] = []
        with ExitStack() as opened:
            listener = opened.enter_context(server.socket(family_of(address), socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(1)
            near = opened.enter_context(client.socket(family_of(address), socket.SOCK_STREAM))
            for each in (listener, near):
                each.settimeout(PATIENCE)
            near.connect((address, port))
            far, self.peer = listener.accept()
            opened.enter_context(far).settimeout(PATIENCE)
            listener.close()
            self.client_port = int(near.getsockname()[1])
            self._opened = opened.pop_all()
        jobs: list[tuple[Callable[..., None], socket.socket, str]] = [
            *((self._send, near, "there"), (self._send, far, "back")),
            *((self._receive, far, "there"), (self._receive, near, "back")),
        ]
        self._threads = [threading.Thread(target=self._guard, args=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        self._opened.close()

    def finish(self) -> int:
        """End both directions and return the number of bytes that arrived unchanged."""
        self._enough.set()
        deadline = time.monotonic() + 2 * PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "the transfer never ended"
        if self._failures:
            raise self._failures[0]
        for way, digests in self._digests.items():
            assert len(digests) == 2
            assert digests[0] == digests[1], f"{way}: what arrived is not what was sent"
        return sum(self._sizes)

    def _guard(self, act: Callable[..., None], connection: socket.socket, way: str) -> None:
        try:
            act(connection, way)
        except BaseException as error:
            self._failures.append(error)

    def _send(self, connection: socket.socket, way: str) -> None:
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, PACE)
        digest, sent = hashlib.sha256(), 0
        chunk = bytearray(os.urandom(CHUNK))
        while sent < self.least or not self._enough.is_set():
            # Each chunk is different.
            chunk[:8] = sent.to_bytes(8, "big")
            connection.sendall(chunk)
            digest.update(chunk)
            sent += CHUNK
        connection.shutdown(socket.SHUT_WR)
        self._digests[way].append(digest.hexdigest())

    def _receive(self, connection: socket.socket, way: str) -> None:
        digest, size = hashlib.sha256(), 0
        buffer: Any = memoryview(bytearray(CHUNK))
        while count := connection.recv_into(buffer):
            digest.update(buffer[:count])
            size += count
        self._digests[way].append(digest.hexdigest())
        self._sizes.append(size)
