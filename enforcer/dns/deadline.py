"""The deadline process: releases DNS answers that the kernel has held for too long.

NFQUEUE holds a packet until its verdict without a time limit, and the daemon may be stopped or wait for a
disk. This process shares the daemon's netlink socket: the kernel accepts verdicts by that socket. It reads no
packets. It polls the number of the last held packet (/proc/net/netfilter/nfnetlink_queue) and gives a
verdict for all packets up to the number of DEADLINE ago. No answer passes through it: if it stops, the daemon
continues and replaces it (enforcer/dns/watchdog.py).

It ends when the daemon closes the other socket. The queue is then unbound, and the kernel applies the table's
rule for answers without a listener. It imports the standard library only and takes about 10 MB.
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
"""Minimum seconds before this process releases an answer; the maximum is two intervals more."""
INTERVAL = 0.05
IDLE = 0.1
"""Seconds between two polls of the queue: INTERVAL while it holds packets, else IDLE."""
BEAT = 1.0
"""Seconds between two heartbeats to the daemon."""
PASS, DROP = b"p", b"d"
"""Messages of the daemon: the verdict for late packets."""
_SEQUENCE = 1  # the daemon uses 0: the sequence number tells which process an error is for


class Overdue:
    """Finds the packets held for longer than DEADLINE, by the numbers of earlier polls."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, held: int, last: int, now: float) -> int | None:
        """Note the newest held packet's number; return the number up to which packets are late."""
        if not held:
            self._seen.clear()
            return None
        self._seen.append((now, last))
        overdue = None
        while self._seen and self._seen[0][0] <= now - DEADLINE:
            overdue = self._seen.popleft()[1]
        return overdue


def run(number: int, netlink: socket.socket, daemon: socket.socket) -> None:
    """Run until the daemon ends, then give the verdict for all held packets."""
    overdue = Overdue()
    verdict = protocol.ACCEPT
    beat = 0.0
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    with nfqueue.LISTING.open("rb", buffering=0) as listing:
        held, last = 0, 0
        while True:
            if poll.poll((INTERVAL if held else IDLE) * 1000):
                message = _receive(daemon)
                if not message:
                    _give_verdict(netlink, number, verdict, nfqueue.state(listing.fileno(), number)[1])
                    return
                verdict = protocol.ACCEPT if message[-1:] == PASS else protocol.DROP
            now = time.monotonic()
            held, last = nfqueue.state(listing.fileno(), number)
            late = overdue.note(held, last, now)
            if late is not None:
                _give_verdict(netlink, number, verdict, late)
            if now >= beat:
                beat = now + BEAT
                _beat(daemon)


def _receive(daemon: socket.socket) -> bytes:
    try:
        return daemon.recv(64)
    except ConnectionError:
        return b""


def _beat(daemon: socket.socket) -> None:
    # The daemon may be busy, or have ended; the next poll detects its end.
    with suppress(OSError):
        daemon.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _give_verdict(netlink: socket.socket, number: int, verdict: int, last: int) -> None:
    request = nfqueue.message(nfqueue.VERDICT_BATCH, number, verdict, last, _SEQUENCE)
    netlink.sendto(request, (0, 0))


def main() -> None:
    """Arguments: queue number, descriptor of its netlink socket, descriptor of the socket to the daemon."""
    # Ctrl-C and the service manager's SIGTERM are for the daemon; this process ends when the daemon does.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    number, netlink, daemon = map(int, sys.argv[1:])
    os.chdir("/")
    run(number, socket.socket(fileno=netlink), socket.socket(fileno=daemon))


if __name__ == "__main__":
    main()
