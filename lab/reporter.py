"""A server that answers each client with the address that it sees.

``python -m lab.reporter LOG PORT…`` serves TCP and UDP on each port in both families, or one of
the two for ``tcp:PORT`` and ``udp:PORT``. A TCP connection is answered with one JSON line at once and with
the same line again for each line it sends; a datagram is answered with one line. The server also sees echo
requests (ICMP), which the kernel answers. It appends one JSON line to LOG for each connection, datagram or
echo request.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

Handler = Callable[[], None]

ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


class Reporter:
    """All sockets in one loop; each has a handler that is called when it can be read."""

    def __init__(self, log: TextIO):
        self.log = log
        self.selector = selectors.DefaultSelector()

    def tell(self, protocol: str, peer: tuple[str, int], port: int) -> bytes:
        """Log what was seen and return it as the answer's line."""
        line = (
            json.dumps({"protocol": protocol, "address": peer[0], "peer_port": peer[1], "port": port}) + "\n"
        )
        self.log.write(line)
        self.log.flush()
        return line.encode()

    def watch(self, sock: socket.socket, handler: Handler) -> None:
        """Call ``handler`` whenever the socket can be read."""
        sock.setblocking(False)
        self.selector.register(sock, selectors.EVENT_READ, handler)

    def serve(self, family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> None:
        """Open one port."""
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((ANY[family], port))
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
            self.watch(sock, partial(self.accept, sock, port))
        else:
            self.watch(sock, partial(self.datagram, sock, port))

    def notice_echo(self, family: socket.AddressFamily) -> None:
        """Log echo requests of a family, which the kernel still answers."""
        sock = socket.socket(family, socket.SOCK_RAW, ICMP[family])
        self.watch(sock, partial(self.echo, sock, family))

    def accept(self, listener: socket.socket, port: int) -> None:
        """Accept a connection and send its line."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, peer = listener.accept()
            answer = self.tell("tcp", peer, port)
            self.watch(connection, partial(self.again, connection, answer))
            connection.send(answer)

    def again(self, connection: socket.socket, answer: bytes) -> None:
        """Repeat the line for each line received; close when the peer has closed."""
        try:
            received = connection.recv(65536)
            if received:
                connection.send(answer * received.count(b"\n"))
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.selector.unregister(connection)
        connection.close()

    def datagram(self, sock: socket.socket, port: int) -> None:
        """Answer a datagram with its line."""
        with contextlib.suppress(OSError):
            peer = sock.recvfrom(65536)[1]
            sock.sendto(self.tell("udp", peer, port), peer)

    def echo(self, sock: socket.socket, family: socket.AddressFamily) -> None:
        """Log an echo request; an IPv4 raw socket also receives the IP header."""
        with contextlib.suppress(OSError):
            packet, peer = sock.recvfrom(65536)
            start = (packet[0] & 15) * 4 if family == socket.AF_INET else 0
            if packet[start] == ECHO_REQUEST[family]:
                self.tell("icmp", (peer[0], int.from_bytes(packet[start + 4 : start + 6], "big")), 0)

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            for key, _ in self.selector.select():
                key.data()


def main(log: str, *ports: str) -> None:
    """Open all sockets, print "ready", serve."""
    with Path(log).open("a", encoding="utf-8") as output:
        reporter = Reporter(output)
        for family in (socket.AF_INET, socket.AF_INET6):
            reporter.notice_echo(family)
            for text in ports:
                only, _, number = text.rpartition(":")
                if only != "udp":
                    reporter.serve(family, socket.SOCK_STREAM, int(number))
                if only != "tcp":
                    reporter.serve(family, socket.SOCK_DGRAM, int(number))
        print("ready", flush=True)
        reporter.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
