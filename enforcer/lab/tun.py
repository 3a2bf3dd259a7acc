"""Two tun devices with a cable between them: interfaces without Ethernet, as those of WireGuard and PPP."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from enforcer.lab.netns import Namespace

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000  # include/uapi/linux/if_tun.h
_LARGEST = 65_535


class Cable:
    """A tun device of the same name in each of two namespaces; as a context manager they end with it."""

    def __init__(self, one: Namespace, other: Namespace, name: str):
        self._ends = [namespace.call(lambda: _open(name)) for namespace in (one, other)]
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
                    os.write(across[fd], os.read(fd, _LARGEST))


def _open(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd
