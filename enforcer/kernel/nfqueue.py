"""NFQUEUE: receives packets that the kernel holds until it gets a verdict.

Formats: include/uapi/linux/netfilter/nfnetlink_queue.h. Standard library only.

- GSO packets arrive unsegmented (NFQA_CFG_F_GSO), up to 64 KiB. Otherwise the kernel would segment them for
  the copy and continue with the segments.
- Checksums may therefore be incomplete. They need no verification: conntrack has verified those of packets
  from an interface and marks wrong ones INVALID (net.netfilter.nf_conntrack_checksum).
- Fragments never arrive: conntrack has reassembled them, in both families.
- The queue holds at most LENGTH packets. Beyond that, or when the socket's buffer is full, the kernel accepts
  packets with ``fail_open`` and drops them without.
- The kernel holds a packet until its verdict. The socket may be shared with another process, which accepts
  or drops packets held for too long (:mod:`enforcer.dns.deadline`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from enforcer.kernel import netlink
from enforcer.kernel.netlink import REQUEST
from enforcer.kernel.nft.protocol import ACCEPT, DROP
from enforcer.kernel.packet_socket import PacketSocket, parse, request

_SUBSYSTEM = 3 << 8
PACKET, VERDICT, CONFIG, VERDICT_BATCH = (_SUBSYSTEM | kind for kind in range(4))
NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_PAYLOAD, NFQA_CAP_LEN = 1, 2, 10, 13
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_MASK, NFQA_CFG_FLAGS = 1, 2, 3, 4, 5
NFQNL_CFG_CMD_BIND, NFQNL_COPY_PACKET = 1, 2
FAIL_OPEN, GSO = 1, 4

LENGTH = 1024
"""Packets held at most; one client's rate (DNS_BURST, DNS_RATE) does not fill it between two readings."""
_ALL = 0xFFFF
_VERDICTS_AT_ONCE = 256
_ID = struct.Struct(">I")
_VERDICT = struct.Struct(">II")


class Packet(NamedTuple):
    """A held packet from its IP header on; not ``whole`` if the kernel truncated the copy."""

    number: int
    data: bytes
    whole: bool = True


class Queue(PacketSocket):
    """The listener of a queue of this network namespace. Raises BusyError if another process has it."""

    def __init__(self, number: int, *, fail_open: bool, length: int = LENGTH) -> None:
        super().__init__(f"holding packets in queue {number}")
        self.number = number
        mask = FAIL_OPEN | GSO
        flags = GSO | (FAIL_OPEN if fail_open else 0)
        settings = [
            netlink.attribute(NFQA_CFG_CMD, struct.pack(">BxH", NFQNL_CFG_CMD_BIND, 0)),
            netlink.attribute(NFQA_CFG_PARAMS, struct.pack(">IB", _ALL, NFQNL_COPY_PACKET)),
            netlink.attribute(NFQA_CFG_QUEUE_MAXLEN, _ID.pack(length)),
            netlink.attribute(NFQA_CFG_MASK, _ID.pack(mask)),
            netlink.attribute(NFQA_CFG_FLAGS, _ID.pack(flags)),
        ]
        try:
            early = self._configure(CONFIG, number, b"".join(settings))
        except BaseException:
            self.close()
            raise
        self._early = [_packet(found) for data in early for found in parse(data, PACKET)]

    def fail_open(self, passes: bool) -> None:
        """Sets whether the kernel accepts packets while the queue is full."""
        mask = netlink.attribute(NFQA_CFG_MASK, _ID.pack(FAIL_OPEN))
        flags = netlink.attribute(NFQA_CFG_FLAGS, _ID.pack(FAIL_OPEN if passes else 0))
        early = self._configure(CONFIG, self.number, mask + flags)
        self._early += [_packet(found) for data in early for found in parse(data, PACKET)]

    def receive(self, limit: int) -> list[Packet]:
        """Up to ``limit`` held packets in order of arrival; never blocks."""
        early, self._early = self._early, []
        return early + [_packet(found) for found in self._received(PACKET, limit)]

    def accept(self, numbers: Sequence[int]) -> None:
        """Accepts these packets, in this order."""
        self._verdicts(numbers, ACCEPT)

    def drop(self, numbers: Sequence[int]) -> None:
        """Drops these packets."""
        self._verdicts(numbers, DROP)

    @property
    def late(self) -> int:
        """Number of verdicts for packets that another process had released."""
        return self.refused

    def dropped(self) -> int:
        """Number of packets that the kernel dropped because the queue or the socket's buffer was full."""
        for fields in _queues():
            if int(fields[0]) == self.number:
                return int(fields[5]) + int(fields[6])
        return 0

    def _verdicts(self, numbers: Sequence[int], verdict: int) -> None:
        for start in range(0, len(numbers), _VERDICTS_AT_ONCE):
            some = numbers[start : start + _VERDICTS_AT_ONCE]
            self._send_bytes(b"".join(message(VERDICT, self.number, verdict, number) for number in some))

    def _is_taken(self, number: int) -> bool:
        return any(int(fields[0]) == number for fields in _queues())


def message(kind: int, queue: int, verdict: int, number: int, sequence: int = 0) -> bytes:
    """A verdict on one packet, or with VERDICT_BATCH on it and all earlier ones.

    If no such packet is held, the kernel answers with an error that has ``sequence``.
    """
    header = netlink.attribute(NFQA_VERDICT_HDR, _VERDICT.pack(verdict, number))
    return request(kind, REQUEST, queue, header, sequence)


LISTING = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
"""This thread's namespace's queues, a line each: number, port, packets held, copy mode, range, packets
dropped, dropped for the buffer, number of the last packet."""


def state(listing: int, number: int) -> tuple[int, int]:
    """(number of packets a queue holds, id of the last one); (0, 0) without a queue.

    ``listing`` is a descriptor of LISTING.
    """
    for line in os.pread(listing, 1 << 16, 0).splitlines():
        fields = line.split()
        if int(fields[0]) == number:
            return int(fields[2]), int(fields[7])
    return 0, 0


def _queues() -> list[list[str]]:
    return [line.split() for line in LISTING.read_text(encoding="ascii").splitlines()]


def _packet(found: dict[int, bytes]) -> Packet:
    (number,) = _ID.unpack_from(found[NFQA_PACKET_HDR])
    return Packet(number, found.get(NFQA_PAYLOAD, b""), NFQA_CAP_LEN not in found)
