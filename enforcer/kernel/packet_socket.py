"""A netfilter socket that receives packets: the base of NFQUEUE and NFLOG. Standard library only."""

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

SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h; beyond net.core.rmem_max
RECEIVE_BUFFER = 16 << 20
NFGEN_SIZE = 4
# Bytes: a packet of at most 64 KiB with its attributes.
_LARGEST = 1 << 17
# Sequence number of configuration requests. Verdicts have 0; a process that shares the socket uses another.
_CONFIGURING = 2


class PacketSocket(ABC):
    """A socket bound to one queue or group of the namespace it was made in; a context manager.

    ``doing`` begins the messages of errors.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self.overflows = 0
        """Number of overflows of the socket's buffer."""
        self.refused = 0
        """Number of verdicts that the kernel refused."""
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
        """Closes the socket; the kernel drops packets that it holds for it."""
        self._socket.close()

    def fileno(self) -> int:
        """Readable when there is a packet."""
        return self._socket.fileno()

    def _configure(self, kind: int, number: int, attributes: bytes) -> list[bytes]:
        """Sends configuration attributes and waits for the answer; returns the packets received before it."""
        self._send_bytes(request(kind, REQUEST | ACK, number, attributes, _CONFIGURING))
        early = []
        self._socket.settimeout(netlink.ANSWER_TIMEOUT_S)
        try:
            while True:
                try:
                    data = self._socket.recv(_LARGEST)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # including TimeoutError
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
        """Whether another socket is bound to the number."""

    def _note_refusal(self, sequence: int) -> None:
        """Counts an error for a verdict of this process (sequence number 0)."""
        self.refused += sequence == 0

    def _send_bytes(self, messages: bytes) -> None:
        try:
            self._socket.sendto(messages, (0, 0))
        except OSError as error:
            raise netlink.failure(self._doing, error.errno or 0) from error

    def _received(self, kind: int, limit: int) -> Iterator[dict[int, bytes]]:
        """The attributes of up to ``limit`` received packets; never blocks."""
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
    """A request to the queue or group of this number."""
    # struct nfgenmsg: family, version, resource in network order
    length = HEADER.size + NFGEN_SIZE + len(attributes)
    return HEADER.pack(length, kind, flags, sequence, 0) + bytes(2) + number.to_bytes(2, "big") + attributes


def parse(data: bytes, wanted: int) -> Iterator[dict[int, bytes]]:
    """The attributes of each message of the type ``wanted`` in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if kind == wanted:
            end = offset + length
            yield netlink.attributes(
                data[:end] if end < len(data) else data, offset + HEADER.size + NFGEN_SIZE
            )
        offset += max(HEADER.size, (length + 3) & ~3)
