"""One process with thousands of real connections, as their client or as their origin.

``python -m lab.hammer client tcp|udp ADDRESS PORT SOURCE…`` opens connections on command;
``python -m lab.hammer origin PORT`` accepts and holds them (TCP and UDP, both families) and
echoes what it receives. Each takes commands on stdin, one a line, and answers each with one line of JSON;
the first line on stdout is ``"ready"``. Several origin processes share one port (SO_REUSEPORT), as no
process may have more than 20,000 files open. lab.load starts and commands them.

============ =============================================================================
command      answer
============ =============================================================================
open N       client: {"opened": n, "failed": {what: n}, "seconds": s}; what is an errno's name or "timeout"
probe        client: {"answered": n, "failed": {what: n}}: a byte goes each way on every connection
count        {"held": n}: connections that are alive; origin: {"tcp": n, "udp": n}
close N      {"closed": n}: the oldest N, with a FIN
reset N      {"closed": n}: the oldest N, with a RST
peers        origin: {"tcp": [[address, port], …], "udp": […]}
quit         the process ends; so it does when stdin is closed
============ =============================================================================
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

Answer = dict[str, Any]

FILES = 20_000  # RLIMIT_NOFILE cannot always be raised past this
CAPACITY = FILES - 100  # connections that one process holds
WINDOW = 128  # attempts that are open at once
TIMEOUT = 8.0  # seconds for an attempt; TCP has sent its SYN four times by then
BATCH = 256  # events taken from epoll at once

_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen by connect(), so it may serve many origins
_HARD_CLOSE = struct.pack("ii", 1, 0)


def reset(connection: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD_CLOSE)
    connection.close()


def alive(connection: socket.socket) -> bool:
    """Whether neither a FIN, a RST nor an ICMP error has come in; nothing is read."""
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


class Client:
    """Opens connections to one origin and holds them, oldest first."""

    def __init__(self, protocol: str, address: str, port: int, sources: list[str]):
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.stream = protocol == "tcp"
        self.target = address, port
        self.sources = sources
        self.turn = 0
        self.held: deque[socket.socket] = deque()

    def open(self, count: int) -> Answer:
        """Open ``count`` more, at most WINDOW at once; a UDP flow is open when its datagram has come back."""
        failed: Counter[str] = Counter()
        waiting: dict[int, tuple[socket.socket, float]] = {}  # by file number, oldest first
        began = time.monotonic()
        held = len(self.held)
        with select.epoll() as poll:
            while count or waiting:
                while count and len(waiting) < WINDOW:
                    count -= 1
                    self._begin(poll, waiting, failed)
                for number, _ in poll.poll(0.05, BATCH):
                    connection, _ = waiting.pop(number)
                    poll.unregister(number)
                    self._conclude(connection, failed)
                now = time.monotonic()
                while waiting and now > (first := next(iter(waiting.values())))[1]:
                    del waiting[first[0].fileno()]
                    first[0].close()
                    failed["timeout"] += 1
        return {
            "opened": len(self.held) - held,
            "failed": failed,
            "seconds": round(time.monotonic() - began, 6),
        }

    def _begin(
        self, poll: select.epoll, waiting: dict[int, tuple[socket.socket, float]], failed: Counter[str]
    ) -> None:
        connection = None
        try:
            connection = socket.socket(
                self.family, (socket.SOCK_STREAM if self.stream else socket.SOCK_DGRAM) | socket.SOCK_NONBLOCK
            )
            if self.stream:
                connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            connection.bind((self.sources[self.turn % len(self.sources)], 0))
            self.turn += 1
            with contextlib.suppress(BlockingIOError):
                connection.connect(self.target)
            if not self.stream:
                connection.send(b"?")
        except OSError as error:
            failed[errno.errorcode.get(error.errno or 0, "unknown")] += 1
            if connection:
                connection.close()
            return
        poll.register(connection, select.EPOLLOUT if self.stream else select.EPOLLIN)
        waiting[connection.fileno()] = connection, time.monotonic() + TIMEOUT

    def _conclude(self, connection: socket.socket, failed: Counter[str]) -> None:
        number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number and not self.stream:
            try:
                connection.recv(16)
            except OSError as error:
                number = error.errno or 0
        if number:
            failed[errno.errorcode.get(number, str(number))] += 1
            connection.close()
        else:
            self.held.append(connection)

    def probe(self) -> Answer:
        """Send a byte on every connection and wait for it to come back."""
        failed: Counter[str] = Counter()
        answered = 0
        for connection in self.held:
            connection.settimeout(TIMEOUT)
            try:
                connection.send(b"!")
                if connection.recv(16):
                    answered += 1
                else:
                    failed["closed"] += 1
            except TimeoutError:
                failed["timeout"] += 1
            except OSError as error:
                failed[errno.errorcode.get(error.errno or 0, "unknown")] += 1
            connection.setblocking(False)
        return {"answered": answered, "failed": failed}

    def count(self) -> Answer:
        """Drop connections that have ended and count the rest."""
        living = deque(connection for connection in self.held if alive(connection))
        for connection in set(self.held) - set(living):
            connection.close()
        self.held = living
        return {"held": len(self.held)}

    def close(self, count: int) -> Answer:
        """Close the oldest with a FIN; of a UDP flow, only the socket is closed."""
        return self._end(count, socket.socket.close)

    def reset(self, count: int) -> Answer:
        """Close the oldest with a RST."""
        return self._end(count, reset)

    def _end(self, count: int, how: Any) -> Answer:
        count = min(count, len(self.held))
        for _ in range(count):
            how(self.held.popleft())
        return {"closed": count}

    def serve(self) -> None:
        """Carry out commands until quit."""
        for line in sys.stdin:
            if not carry_out(self, line):
                return


class Origin:
    """Accepts and holds connections and echoes data; drops a connection when its peer closes it."""

    def __init__(self, port: int):
        self.poll = select.epoll()
        self.held: dict[int, tuple[socket.socket, tuple[str, int]]] = {}  # by file number, oldest first
        self.asked: dict[tuple[str, int], int] = {}  # UDP peers and the number of their datagrams
        self.listeners: dict[int, socket.socket] = {}
        self.datagrams: dict[int, socket.socket] = {}
        for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind, table in ((socket.SOCK_STREAM, self.listeners), (socket.SOCK_DGRAM, self.datagrams)):
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((wildcard, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(65535)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                table[sock.fileno()] = sock
                self.poll.register(sock, select.EPOLLIN)

    def serve(self) -> None:
        """Serve connections and commands until quit."""
        commands = sys.stdin.fileno()
        self.poll.register(commands, select.EPOLLIN)
        while True:
            for number, _ in self.poll.poll(-1, BATCH):
                if number in self.held:
                    self._echo(number)
                elif number in self.listeners:
                    self._accept(self.listeners[number])
                elif number in self.datagrams:
                    self._datagrams(self.datagrams[number])
                elif number == commands and not carry_out(self, read_line(commands)):
                    return

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                connection, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of files, or the peer has already closed: the client counts it
                return
            connection.setblocking(False)
            self.held[connection.fileno()] = connection, (peer[0], peer[1])
            self.poll.register(connection, select.EPOLLIN)

    def _echo(self, number: int) -> None:
        connection, _ = self.held[number]
        try:
            received = connection.recv(65536)
            if received:
                connection.send(received)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        del self.held[number]
        self.poll.unregister(number)
        connection.close()

    def _datagrams(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                received, peer = sock.recvfrom(2048)
                self.asked[peer[0], peer[1]] = self.asked.get((peer[0], peer[1]), 0) + 1
                sock.sendto(received, peer)
            except BlockingIOError:
                return
            except OSError:
                continue  # an earlier answer's ICMP error

    def count(self) -> Answer:
        """The number of connections held, and of peers that sent datagrams."""
        return {"tcp": len(self.held), "udp": len(self.asked)}

    def peers(self) -> Answer:
        """The address and port of every peer."""
        return {"tcp": [peer for _, peer in self.held.values()], "udp": list(self.asked)}

    def close(self, count: int) -> Answer:
        """Close the oldest TCP connections with a FIN."""
        return self._end(count, socket.socket.close)

    def reset(self, count: int) -> Answer:
        """Close the oldest TCP connections with a RST."""
        return self._end(count, reset)

    def _end(self, count: int, how: Any) -> Answer:
        numbers = list(self.held)[:count]
        for number in numbers:
            connection, _ = self.held.pop(number)
            self.poll.unregister(number)
            how(connection)
        return {"closed": len(numbers)}


def read_line(number: int) -> str:
    """One command; the driver sends the next only after the answer to this one. Empty at the end."""
    return os.read(number, 4096).decode()


def carry_out(worker: Client | Origin, line: str) -> bool:
    """Carry out one command and print its answer; false after quit."""
    command, *arguments = line.split() or ["quit"]
    if command == "quit":
        return False
    answer = getattr(worker, command)(*map(int, arguments))
    print(json.dumps(answer, separators=(",", ":")), flush=True)
    return True


def raise_file_limit() -> None:
    """Raise the limit on open files to FILES, or as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(role: str, *arguments: str) -> None:
    """Run one side; print "ready" when it takes commands."""
    raise_file_limit()
    worker: Client | Origin
    if role == "origin":
        worker = Origin(int(arguments[0]))
    else:
        protocol, address, port, *sources = arguments
        worker = Client(protocol, address, int(port), sources)
    print('"ready"', flush=True)
    worker.serve()


def shares(count: int, rooms: list[int]) -> Iterator[int]:
    """Split ``count`` over workers with this much room each, as evenly as the rooms allow."""
    for index, room in enumerate(rooms):
        others = len(rooms) - index
        later = sum(rooms[index + 1 :])
        share = min(room, max(-(-count // others), count - later), count)
        count -= share
        yield share


if __name__ == "__main__":
    main(*sys.argv[1:])
