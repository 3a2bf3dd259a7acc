"""A netfilter socket on which packets arrive: asked for once, then read without waiting.

Base of NFQUEUE (:mod:`enforcer.kernel.nfqueue`) and NFLOG (:mod:`enforcer.kernel.nflog`). Uses only the
standard library.
"""

from __future__ import annotations

import errno
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

from enforcer.errors import BusyError, KernelError
from enforcer.kernel import netlink
from enforcer.kernel.netlink import ACK, HEADER, NLMSG_ERROR, REQUEST

SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h; past net.core.rmem_max
RECEIVE_BUFFER = 16 << 20
NFGEN_SIZE = 4
# A packet has 64 KiB at most, and some attributes.
_LARGEST = 1 << 17
# Sequence number of settings. Verdicts have 0, and those of a process that shares the socket another one.
_CONFIGURING = 2


class PacketSocket(ABC):
    """Bound to one number; a context manager. The namespace is the one in which it was made.

    ``doing`` names in errors what the packets are for.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self.overflows = 0
        """How often the kernel found the socket's buffer full."""
        self.refused = 0
        """How many requests without an answer (verdicts) the kernel has refused."""
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, netlink.NETLINK_NETFILTER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except OSError as error:
            raise netlink.failure(doing, error.errno or 0) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; packets that are held are dropped by the kernel."""
        self._socket.close()

    def fileno(self) -> int:
        """Readable when there is a packet."""
        return self._socket.fileno()

    def _configure(self, kind: int, number: int, attributes: bytes) -> list[bytes]:
        """Sends the settings and waits for the answer; returns the packets that came before it."""
        self._send_bytes(request(kind, REQUEST | ACK, number, attributes, _CONFIGURING))
        early = []
        self._socket.settimeout(netlink.ANSWER_TIMEOUT_S)
        try:
            while True:
                try:
                    data = self._socket.recv(_LARGEST)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # TimeoutError among them
                        raise
                    self.overflows += 1
                    continue
                _, answer, _, sequence, _ = HEADER.unpack_from(data)
                if answer != NLMSG_ERROR:
                    early.append(data)
                    continue
                if sequence != _CONFIGURING:
                    self._note_refusal(sequence)
                    continue
                (code,) = struct.unpack_from("=i", data, HEADER.size)
                if code == 0:
                    return early
                self._refuse(-code, number)
        except TimeoutError as error:
            raise KernelError(f"{self._doing}: the kernel did not answer") from error
        finally:
            self._socket.setblocking(False)

    def _refuse(self, code: int, number: int) -> None:
        if code in (errno.EBUSY, errno.EPERM) and self._is_taken(number):
            raise BusyError(
                f"{self._doing}: another process has taken number {number}",
                f"End it: /proc/net/netfilter/nfnetlink_queue and nfnetlink_log name it for {number}.",
            )
        raise netlink.failure(self._doing, code)

    @abstractmethod
    def _is_taken(self, number: int) -> bool:
        """Whether another socket has the number."""

    def _note_refusal(self, sequence: int) -> None:
        """An error about a request that no answer was asked for; not about another process's request."""
        self.refused += sequence == 0

    def _send_bytes(self, messages: bytes) -> None:
        try:
            self._socket.sendto(messages, (0, 0))
        except OSError as error:
            raise netlink.failure(self._doing, error.errno or 0) from error

    def _received(self, kind: int, limit: int) -> Iterator[dict[int, bytes]]:
        """The attributes of up to ``limit`` packets that have arrived; never waits."""
        for _ in range(limit):
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise netlink.failure(self._doing, error.errno or 0) from error
                self.overflows += 1
                continue
            data = self._view[:size].tobytes()
            _, answer, _, sequence, _ = HEADER.unpack_from(data)
            if answer == NLMSG_ERROR:
                self._note_refusal(sequence)
                continue
            yield from parse(data, kind)


def request(kind: int, flags: int, number: int, attributes: bytes, sequence: int = 0) -> bytes:
    """A request about the queue or group of this number."""
    # struct nfgenmsg: family, version, resource in network order
    length = HEADER.size + NFGEN_SIZE + len(attributes)
    return HEADER.pack(length, kind, flags, sequence, 0) + bytes(2) + number.to_bytes(2, "big") + attributes


def parse(data: bytes, wanted: int) -> Iterator[dict[int, bytes]]:
    """The attributes of each packet in what was received; answers to requests are passed over."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if kind == wanted:
            end = offset + length
            yield netlink.attributes(
                data[:end] if end < len(data) else data, offset + HEADER.size + NFGEN_SIZE
            )
        offset += max(HEADER.size, (length + 3) & ~3)
