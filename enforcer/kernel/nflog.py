"""NFLOG: receives copies of packets; the packets are not delayed.

Formats: include/uapi/linux/netfilter/nfnetlink_log.h. Standard library only.

The kernel puts a copy into the socket's buffer before its packet continues (threshold 1): a reader that has
received the answer to a packet finds that packet's copy. When the buffer is full, copies are lost and
:attr:`PacketSocket.overflows` rises; packets are unaffected.
"""

from __future__ import annotations

import struct
from pathlib import Path

from enforcer.kernel import netlink
from enforcer.kernel.packet_socket import PacketSocket, parse

_SUBSYSTEM = 4 << 8
PACKET, CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1
NFULA_PAYLOAD = 9
NFULA_CFG_CMD, NFULA_CFG_MODE, NFULA_CFG_NLBUFSIZ, NFULA_CFG_QTHRESH = 1, 2, 3, 5
NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET = 1, 2
_ALL = 0xFFFF
# Bytes that the kernel allocates for a copy at least; larger packets get more.
_BUFFER = 512


class Log(PacketSocket):
    """The listener of a group of this network namespace. Raises BusyError if another process has it."""

    def __init__(self, group: int) -> None:
        super().__init__(f"copying packets to group {group}")
        bind = netlink.attribute(NFULA_CFG_CMD, bytes([NFULNL_CFG_CMD_BIND]))
        settings = [
            netlink.attribute(NFULA_CFG_MODE, struct.pack(">IBx", _ALL, NFULNL_COPY_PACKET)),
            netlink.attribute(NFULA_CFG_NLBUFSIZ, struct.pack(">I", _BUFFER)),
            netlink.attribute(NFULA_CFG_QTHRESH, struct.pack(">I", 1)),
        ]
        try:
            early = self._configure(CONFIG, group, bind + b"".join(settings))
        except BaseException:
            self.close()
            raise
        self._early = [found.get(NFULA_PAYLOAD, b"") for data in early for found in parse(data, PACKET)]

    def receive(self, limit: int) -> list[bytes]:
        """Up to ``limit`` copies in order, each from its IP header on; never blocks."""
        early, self._early = self._early, []
        return early + [found.get(NFULA_PAYLOAD, b"") for found in self._received(PACKET, limit)]

    def _is_taken(self, number: int) -> bool:
        path = Path("/proc/thread-self/net/netfilter/nfnetlink_log")
        lines = path.read_text(encoding="ascii").splitlines()
        return any(int(line.split()[0]) == number for line in lines)
