"""Netlink framing with ``struct``: sockets, messages, attributes, and the kernel's errors as ours.

pyroute2 encodes messages with many variants (nftables, filters); this module sends the bytes. It replaces
pyroute2's sockets for three reasons: the kernel answers a batch that it rejects as a whole (no CAP_NET_ADMIN,
failed commit) with the sequence number of the first message, for which pyroute2 does not wait, so it would
block; 100 requests are one system call here; and importing pyroute2 takes 0.15 s, too long for a command that
only shows something.

Formats: include/uapi/linux/netlink.h. All calls act in the calling process's network namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from enforcer.errors import EnforcerError, KernelError, PrivilegeError

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
EXCL = 0x200
CREATE = 0x400
REPLACE = 0x100
APPEND = 0x800

NLMSG_ERROR = 0x2
NLMSG_DONE = 0x3
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; beyond net.core.wmem_max
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")

# The answers to this many requests fit into the default receive buffer (212,992 bytes, about 800 each).
REQUESTS_PER_SEND = 100
RECEIVE_SIZE = 1 << 18
SEND_BUFFER_SLACK = 1 << 16
ANSWER_TIMEOUT_S = 30
SNAPSHOT_ATTEMPTS = 10
SNAPSHOT_PAUSE_S = 0.02

# Port ids of the enforcer's sockets: this prefix (8 bits), a counter (2 bits), the pid (22 bits). Event
# watches recognise the enforcer's own changes by them.
PORT_PREFIX = 0xE9
PORTS_PER_PROCESS = 4


class Message(NamedTuple):
    """A request; :class:`Channel` adds sequence number and port id."""

    kind: int
    flags: int
    payload: bytes


class Refusal(NamedTuple):
    """The kernel's error for the message at ``position`` of those sent: errno and extended ack text."""

    position: int
    code: int
    detail: str


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """A nested attribute."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def each_attribute(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type without flags, value) of the attributes in ``data`` from ``offset``, in order."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in ``data`` from ``offset`` by type without flags; the last one of repeated types."""
    return dict(each_attribute(data, offset))


def text(value: bytes) -> str:
    """A zero-terminated string attribute."""
    return value.partition(b"\0")[0].decode(errors="replace")


def failure(operation: str, code: int, detail: str = "") -> EnforcerError:
    """The error for an operation ("adding 203.0.113.10 to out0") that failed with the errno ``code``."""
    reason = os.strerror(code) + (f": {detail}" if detail else "")
    if code == errno.EPERM:
        hint = "run it as root, or with CAP_NET_ADMIN in this network namespace"
        return PrivilegeError(f"{operation}: {reason}", hint)
    return KernelError(f"{operation}: {reason}", _HINTS.get(code))


_HINTS = {
    errno.EACCES: "IPv6 may be switched off on the interface (net.ipv6.conf.*.disable_ipv6)",
    errno.EOPNOTSUPP: "this kernel lacks the feature; a kernel module may be missing",
    errno.EPROTONOSUPPORT: "this kernel lacks the feature; a kernel module may be missing",
    errno.ENODEV: "there is no such interface in this network namespace (any more)",
    errno.ENETDOWN: "bring the interface up first (local routes need lo up)",
    errno.ENOMEM: "the kernel is out of memory for this",
    errno.ENOBUFS: "the kernel is out of buffers for this; try again",
}


def is_own_port(port: int) -> bool:
    """Whether a port id belongs to a :class:`Channel` of any process of the enforcer."""
    return port >> 24 == PORT_PREFIX


class Channel:
    """A netlink socket with blocking requests; a context manager; not thread-safe.

    ``operation`` begins the messages of errors ("reading the addresses").
    """

    def __init__(self, family: int, operation: str) -> None:
        self.operation = operation
        self._sequence = 0
        self._interrupted = False
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        except OSError as error:
            raise failure(operation, error.errno or 0) from error
        self.port = self._bind()
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        # The kernel answers a request before sendmsg returns: this expires only because of a bug.
        self._socket.settimeout(ANSWER_TIMEOUT_S)

    def _bind(self) -> int:
        for counter in range(PORTS_PER_PROCESS):
            port = PORT_PREFIX << 24 | counter << 22 | os.getpid() & 0x3FFFFF
            try:
                self._socket.bind((port, 0))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise failure(self.operation, error.errno or 0) from error
            else:
                return port
        self._socket.bind((0, 0))  # works too; events then lack the prefix
        port, _ = self._socket.getsockname()
        return int(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def dump(self, kind: int, payload: bytes, *, strict: bool = False) -> Iterator[bytes]:
        """The payloads of a dump's messages; objects that change meanwhile may be missing or repeated.

        ``strict`` makes the kernel apply the filters in an rtnetlink request's header.
        """
        self._interrupted = False
        if strict:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        number = self._send([Message(kind, REQUEST | DUMP, payload)])
        while True:
            for answer, flags, sequence, data, offset, length in self._messages():
                if sequence != number:
                    continue
                self._interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer == NLMSG_DONE:
                    self._check_done(data, offset)
                    return
                if answer == NLMSG_ERROR:
                    raise failure(self.operation, *_error(data, offset, length, flags))
                yield data[offset + HEADER.size : offset + length]

    @property
    def interrupted(self) -> bool:
        """Whether objects changed during the last dump (NLM_F_DUMP_INTR)."""
        return self._interrupted

    def snapshot(self, kind: int, payload: bytes, *, strict: bool = False) -> list[bytes]:
        """A consistent dump: repeated until nothing changed during it, for about a second. KernelError."""
        for attempt in range(SNAPSHOT_ATTEMPTS):
            messages = list(self.dump(kind, payload, strict=strict))
            if not self._interrupted:
                return messages
            time.sleep(SNAPSHOT_PAUSE_S * attempt)
        raise KernelError(
            f"{self.operation}: it changed during each of {SNAPSHOT_ATTEMPTS} readings", "try again"
        )

    def _check_done(self, data: bytes, offset: int) -> None:
        (code,) = struct.unpack_from("=i", data, offset + 16)
        if code < 0:
            raise failure(self.operation, -code)

    def ask(self, messages: Sequence[Message]) -> list[bytes | int]:
        """The answer to each request, or its errno. Requests must not have the flag ACK."""
        answers = self._answers(messages)
        return [answer.code if isinstance(answer, Refusal) else answer for answer in answers]

    def change(self, messages: Sequence[Message]) -> list[Refusal]:
        """Makes independent changes; returns the refused ones in order. Messages must have the flag ACK."""
        return [answer for answer in self._answers(messages) if isinstance(answer, Refusal) and answer.code]

    def _answers(self, messages: Sequence[Message]) -> Iterator[bytes | Refusal]:
        """One answer for each message, in order."""
        for start in range(0, len(messages), REQUESTS_PER_SEND):
            chunk = messages[start : start + REQUESTS_PER_SEND]
            first = self._send(chunk)
            answered = 0
            while answered < len(chunk):
                for kind, flags, sequence, data, offset, length in self._messages():
                    if not 0 <= sequence - first < len(chunk):
                        continue
                    answered += 1
                    if kind == NLMSG_ERROR:
                        yield Refusal(start + sequence - first, *_error(data, offset, length, flags))
                    else:
                        yield data[offset + HEADER.size : offset + length]

    def transact(self, messages: Sequence[Message]) -> list[Refusal]:
        """Sends a batch in one datagram; returns the refused messages, none on success.

        The last message but one must have the flag ACK. nfnetlink has queued all answers when the call
        returns; it answers a batch that it rejects as a whole with the first message's sequence number
        (net/netfilter/nfnetlink.c).
        """
        size = sum(len(message.payload) + HEADER.size for message in messages)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size + SEND_BUFFER_SLACK)
        except OSError as error:
            raise failure(self.operation, error.errno or 0) from error
        first = self._send(messages)
        acknowledged = False
        refused: list[Refusal] = []
        self._socket.setblocking(False)
        try:
            while True:
                for kind, flags, sequence, data, offset, length in self._messages():
                    index = sequence - first
                    if kind == NLMSG_ERROR and 0 <= index < len(messages):
                        answer = Refusal(index, *_error(data, offset, length, flags))
                        acknowledged = acknowledged or index == len(messages) - 2
                        if answer.code:
                            refused.append(answer)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(ANSWER_TIMEOUT_S)
        if not acknowledged and not refused:
            raise KernelError(f"{self.operation}: the kernel did not answer")
        return refused

    def _messages(self) -> Iterator[tuple[int, int, int, bytes, int, int]]:
        data = self._receive()
        offset, end = 0, len(data)
        while offset + 16 <= end:
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data, offset, length
            offset += (length + 3) & ~3

    def _send(self, messages: Sequence[Message]) -> int:
        first = self._sequence + 1
        parts = []
        for number, (kind, flags, payload) in enumerate(messages, first):
            parts.append(HEADER.pack(len(payload) + 16, kind, flags, number, self.port))
            parts.append(payload)
        self._sequence += len(messages)
        try:
            self._socket.sendto(b"".join(parts), (0, 0))
        except OSError as error:
            raise failure(self.operation, error.errno or 0) from error
        return first

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            raise
        except TimeoutError as error:
            raise KernelError(f"{self.operation}: no answer within {ANSWER_TIMEOUT_S} s") from error
        except OSError as error:
            raise failure(self.operation, error.errno or 0) from error


def _error(data: bytes, offset: int, length: int, flags: int) -> tuple[int, str]:
    """errno (0: an acknowledgement) and extended ack text of the NLMSG_ERROR at ``offset``."""
    (code,) = struct.unpack_from("=i", data, offset + 16)
    if not flags & NLM_F_ACK_TLVS:
        return -code, ""
    echoed = 16
    if not flags & NLM_F_CAPPED:
        (echoed,) = struct.unpack_from("=I", data, offset + 20)
    found = attributes(data[offset + 20 + ((echoed + 3) & ~3) : offset + length])
    return -code, text(found.get(NLMSGERR_ATTR_MSG, b""))
