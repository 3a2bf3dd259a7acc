"""Two connected tun devices: interfaces without Ethernet headers, as those of WireGuard and PPP."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from lab.netns import Namespace

# include/uapi/linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 1, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_HEADER = 10  # struct virtio_net_hdr (include/uapi/linux/virtio_net.h), before each packet
_LARGEST = _HEADER + 65_535


class Cable:
    """Connected tun devices of the same name in two namespaces; a context manager that removes them.

    With ``offloads``, packets pass it without complete checksums and without segmentation.
    """

    def __init__(self, one: Namespace, other: Namespace, name: str, *, offloads: bool = False):
        self._ends = [namespace.call(lambda: _open(name, offloads)) for namespace in (one, other)]
        self.largest = 0
        """Bytes of the largest packet that it has carried."""
        self._header = _HEADER if offloads else 0
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stop)
        self._thread.join()
        for fd in (*self._ends, self._wake):
            os.close(fd)

    def _carry(self) -> None:
        one, other = self._ends
        across = {one: other, other: one}
        while True:
            ready, _, _ = select.select([one, other, self._wake], [], [])
            if self._wake in ready:
                return
            for fd in ready:
                with suppress(OSError):  # an end that is down
                    packet = os.read(fd, _LARGEST)
                    self.largest = max(self.largest, len(packet) - self._header)
                    os.write(across[fd], packet)


def _open(name: str, offloads: bool) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if offloads else 0)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    if offloads:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    return fd
