"""Clients in a namespace: each helper sends a request and returns the answer.

Every helper takes the namespace first. Sockets belong to that namespace and are used from this process, so a
test can keep many connections open.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from lab.netns import Namespace
from lab.servers import Seen

TIMEOUT = 5.0

# linux/errqueue.h, linux/in.h, linux/in6.h
_SO_EE_ORIGIN_ICMP = 2
_SO_EE_ORIGIN_ICMP6 = 3
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IP_PMTUDISC_DO = 2


@dataclass(frozen=True)
class IcmpError:
    """An ICMP error that reached the socket it is about: its sender, type, code, and MTU if it has one."""

    offender: str
    kind: int
    code: int
    mtu: int = 0


def family_of(address: str) -> socket.AddressFamily:
    """The address family of an address as text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Session:
    """A TCP connection to a reporter that stays open and can be asked again at any time.

    ConnectionError and TimeoutError come from the connection itself and are passed on.
    """

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int = 9000,
        source: str | None = None,
        *,
        source_port: int = 0,
        timeout: float = TIMEOUT,
    ):
        self.socket = namespace.socket(family_of(address), socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            if source or source_port:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind((source or "", source_port))
            self.socket.connect((address, port))
            self._reader = self.socket.makefile("rb")
            self.seen = self._read()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self) -> Seen:
        """Send a line and return the server's report on this connection's peer."""
        self.socket.sendall(b"\n")
        return self._read()

    def close(self) -> None:
        """Close it with a FIN."""
        self._reader.close()
        self.socket.close()

    def reset(self) -> None:
        """Close it with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def _read(self) -> Seen:
        line = self._reader.readline()
        if not line:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the server")
        return Seen(**json.loads(line))


def tcp_ask(
    namespace: Namespace, address: str, port: int = 9000, source: str | None = None, timeout: float = TIMEOUT
) -> Seen:
    """What a reporter sees of a TCP connection; OSError if the connection fails."""
    with Session(namespace, address, port, source, timeout=timeout) as session:
        return session.seen


class UdpFlow:
    """A connected UDP socket to a reporter; an ICMP error appears as OSError or in ``error``."""

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int = 9000,
        source: str | None = None,
        *,
        ttl: int | None = None,
        timeout: float = TIMEOUT,
        dont_fragment: bool = False,
    ):
        family = family_of(address)
        self._v6 = family == socket.AF_INET6
        self.socket = namespace.socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(timeout)
        level = socket.IPPROTO_IPV6 if self._v6 else socket.IPPROTO_IP
        self.socket.setsockopt(level, _IPV6_RECVERR if self._v6 else _IP_RECVERR, 1)
        if ttl is not None:
            self.socket.setsockopt(level, socket.IPV6_UNICAST_HOPS if self._v6 else socket.IP_TTL, ttl)
        if dont_fragment:
            self.socket.setsockopt(
                level, _IPV6_MTU_DISCOVER if self._v6 else _IP_MTU_DISCOVER, _IP_PMTUDISC_DO
            )
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((address, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self, payload: bytes = b"?\n") -> Seen:
        """Send a datagram and return the server's report on its source."""
        self.socket.send(payload)
        return Seen(**json.loads(self.socket.recv(65536)))

    def error(self) -> IcmpError | None:
        """The oldest ICMP error that the kernel matched to this socket; None if there is none."""
        try:
            _, ancillary, _, _ = self.socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        except (BlockingIOError, TimeoutError):
            return None
        for _, _, data in ancillary:
            # struct sock_extended_err, then the offender's sockaddr
            _, origin, kind, code, _, info, _ = struct.unpack_from("=IBBBBII", data)
            if origin == _SO_EE_ORIGIN_ICMP:
                return IcmpError(socket.inet_ntop(socket.AF_INET, data[20:24]), kind, code, info)
            if origin == _SO_EE_ORIGIN_ICMP6:
                return IcmpError(socket.inet_ntop(socket.AF_INET6, data[24:40]), kind, code, info)
        return None


def udp_ask(
    namespace: Namespace, address: str, port: int = 9000, source: str | None = None, timeout: float = TIMEOUT
) -> Seen:
    """What a reporter sees of a datagram; OSError after an ICMP error, TimeoutError without an answer."""
    with UdpFlow(namespace, address, port, source, timeout=timeout) as flow:
        return flow.ask()


def ttl_probe(
    namespace: Namespace, address: str, ttl: int, port: int = 33434, timeout: float = 2.0
) -> IcmpError | Seen | None:
    """One step of a traceroute: sends a datagram with this TTL; the error or answer, None without either."""
    with UdpFlow(namespace, address, port, ttl=ttl, timeout=timeout) as flow:
        try:
            return flow.ask()
        except TimeoutError:
            return None
        except OSError:
            return flow.error()


def quic_ask(
    namespace: Namespace, address: str, port: int = 443, source: str | None = None, timeout: float = TIMEOUT
) -> Seen:
    """What an HTTP/3 server sees of a request; TimeoutError if QUIC gets no answer."""
    from lab.quic import request

    body = namespace.call(lambda: asyncio.run(request(address, port, source, timeout)))
    return Seen(**json.loads(body), port=port)


def curl(
    namespace: Namespace,
    url: str,
    source: str | None = None,
    timeout: float = TIMEOUT,
    options: tuple[str, ...] = (),
) -> tuple[int, str]:
    """HTTP status and body as curl gets them; status 0 and curl's message if there was no answer."""
    argv = ["curl", "-gksS", "-m", str(timeout), "-w", "\n%{http_code}", *options]
    if source:
        argv += ["--interface", source]
    done = namespace.run(*argv, url, check=False)
    if done.returncode:
        return 0, done.stderr.strip()
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def url(address: str, port: int = 80, scheme: str = "http") -> str:
    """A URL of an address in either family."""
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}:{port}/"


def dig(
    namespace: Namespace,
    server: str,
    name: str = "www.lab",
    kind: str = "A",
    *,
    tcp: bool = False,
    source: str | None = None,
    port: int = 53,
) -> list[str]:
    """The answers of a DNS server; an empty list if there are none, or no answer."""
    argv = ["dig", f"@{server}", "-p", str(port), "+short", "+time=2", "+tries=1", name, kind]
    if tcp:
        argv.append("+tcp")
    if source:
        argv += ["-b", source]
    done = namespace.run(*argv, check=False)
    return [] if done.returncode else done.stdout.split()


@dataclass(frozen=True)
class Pings:
    """The result of ping; true if every request was answered."""

    sent: int
    received: int
    text: str

    def __bool__(self) -> bool:
        return self.received == self.sent


def ping(
    namespace: Namespace,
    address: str,
    source: str | None = None,
    count: int = 1,
    options: tuple[str, ...] = (),
) -> Pings:
    """Echo requests, ``count`` of them 10 ms apart; true if each was answered within a second."""
    argv = ["ping", "-n", "-c", str(count), "-i", "0.01", "-W", "1", *options]
    if source:
        argv += ["-I", source]
    text = namespace.run(*argv, address, check=False).stdout
    numbers = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    if numbers is None:
        return Pings(count, 0, text)
    return Pings(int(numbers[1]), int(numbers[2]), text)


def ssh_banner(namespace: Namespace, address: str, port: int = 22, source: str | None = None) -> str:
    """The first line that an SSH server sends."""
    with namespace.socket(family_of(address), socket.SOCK_STREAM) as client:
        client.settimeout(TIMEOUT)
        if source:
            client.bind((source, 0))
        client.connect((address, port))
        return client.recv(256).decode("ascii", "replace").strip()


def fate(error: BaseException) -> str:
    """One word for the outcome of a failed connection: silence, refused, prohibited, or the errno's name."""
    if isinstance(error, TimeoutError):
        return "silence"
    if isinstance(error, ConnectionRefusedError | ConnectionResetError):
        return "refused"
    number: Any = getattr(error, "errno", None)
    if number in (errno.EHOSTUNREACH, errno.EACCES):
        return "prohibited"
    return errno.errorcode.get(number, type(error).__name__)
