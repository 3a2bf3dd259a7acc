"""A process of its own that lets go the DNS answers that the kernel has held for too long.

NFQUEUE holds a packet until its verdict, however long that takes, and the daemon may be stopped, or wait for
a disk. This process shares the daemon's socket, which is all that the kernel asks of a verdict. It reads no
packets. It looks at the number of the last packet held (/proc/net/netfilter/nfnetlink_queue) at short
intervals, and gives a verdict on all packets up to the number seen DEADLINE ago. So no answer passes through
it: when it is stopped itself, the daemon goes on (and replaces it, enforcer/dns/watchdog.py).

It ends with the daemon: its other socket is closed then. The queue is unbound with it, and the kernel does
what the table says of answers without a listener. Only the standard library: it holds some 10 MB.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress

from enforcer.kernel import nfqueue
from enforcer.kernel.nft import protocol

DEADLINE = 0.3
"""Seconds that an answer is held at least before it is let go here; at most it is two intervals more."""
INTERVAL = 0.05
IDLE = 0.1
"""Seconds between two looks at the queue, with packets held and without."""
BEAT = 1.0
"""Seconds between two signs of life."""
PASS, DROP = b"p", b"d"
"""What the daemon says: the verdict on what is too late."""
_SEQUENCE = 1  # any but the daemon's 0: whose verdict an error is about


class Overdue:
    """Which packets are held for too long, by numbers seen before."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, held: int, last: int, now: float) -> int | None:
        """``last`` is the number of the newest packet of those held; up to which number it is too late."""
        if not held:
            self._seen.clear()
            return None
        self._seen.append((now, last))
        overdue = None
        while self._seen and self._seen[0][0] <= now - DEADLINE:
            overdue = self._seen.popleft()[1]
        return overdue


def run(number: int, netlink: socket.socket, daemon: socket.socket) -> None:
    """Until the daemon ends; then everything that is held has its verdict at once."""
    overdue = Overdue()
    verdict = protocol.ACCEPT
    beat = 0.0
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    with nfqueue.LISTING.open("rb", buffering=0) as listing:
        held, last = 0, 0
        while True:
            if poll.poll((INTERVAL if held else IDLE) * 1000):
                said = _said(daemon)
                if not said:
                    _let_go(netlink, number, verdict, nfqueue.state(listing.fileno(), number)[1])
                    return
                verdict = protocol.ACCEPT if said[-1:] == PASS else protocol.DROP
            now = time.monotonic()
            held, last = nfqueue.state(listing.fileno(), number)
            late = overdue.look(held, last, now)
            if late is not None:
                _let_go(netlink, number, verdict, late)
            if now >= beat:
                beat = now + BEAT
                _beat(daemon)


def _said(daemon: socket.socket) -> bytes:
    try:
        return daemon.recv(64)
    except ConnectionError:
        return b""


def _beat(daemon: socket.socket) -> None:
    # The daemon may not read now, or have ended, which the next poll tells.
    with suppress(OSError):
        daemon.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _let_go(netlink: socket.socket, number: int, verdict: int, last: int) -> None:
    request = nfqueue.message(nfqueue.VERDICT_BATCH, number, verdict, last, _SEQUENCE)
    netlink.sendto(request, (0, 0))


def main() -> None:
    """Arguments: the queue's number, the descriptors of its socket and of the one to the daemon."""
    # A terminal's Ctrl-C and a service manager's SIGTERM are for the daemon, which this process ends with.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    number, netlink, daemon = map(int, sys.argv[1:])
    os.chdir("/")
    run(number, socket.socket(fileno=netlink), socket.socket(fileno=daemon))


if __name__ == "__main__":
    main()
