"""The rate of closes that one origin sustains while 40,000 other connections to it stay open.

A closed connection holds its port until conntrack's timer of TIME_WAIT expires (docs/timers.md). Since Linux
6.5 conntrack gives such a port to a new connection earlier if no port is free (nf_nat_core.c,
nf_nat_used_tuple_harder): no SYN is lost there, and the cost of opening and closing limits the rate.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.report.results import Claim, Row, Sample
from bench.rig import documents
from bench.rig.measure import Bench
from lab.gateway import LabGateway
from lab.load import Hammer, Holders
from lab.netns import LabError, Namespace
from lab.topology import CLIENT, ORIGIN1, Lab, stale_labs

LIVE = 40_000
PORTS = 64_512  # from 1024 up
CLOSES = f"Closes at an origin with {LIVE:,} live connections"
_AT_ONCE = 500
_ENOUGH = 1.2  # closes divided by free ports: the last connections find every port taken
_TIMER = "net/netfilter/nf_conntrack_tcp_timeout_time_wait"
_COUNT = "net/netfilter/nf_conntrack_count"
# A connection in TIME-WAIT also holds its client's port: eight addresses have enough. The IPv6 addresses
# have equal host bits, so they leave with the same address.
_SOURCES = {
    4: [f"10.11.{number}.2" for number in range(1, 9)],
    6: [f"fd00:b:{number}::2" for number in range(1, 9)],
}


@dataclass(frozen=True)
class _Closed:
    """Connections opened and closed beside the live ones, until a SYN was lost or _ENOUGH was reached."""

    closes: int
    seconds: float
    lost: int
    """Retransmitted SYNs: no port was found for them."""
    held: int
    """Ports that closed connections hold at the end."""


def closes(bench: Bench) -> None:
    """Measures real connections that are opened and closed by a FIN from both sides until ports run out."""
    for prefix in stale_labs():
        Lab(prefix).down()
    with Lab(f"lab{os.getpid()}-closes") as lab, ExitStack() as stack:
        limits = {"connections_per_origin": LIVE + 4 * _AT_ONCE}
        document = lab.config(limits=limits, policies=[documents.everything()])
        gateway = LabGateway(lab, document)
        stack.callback(gateway.run, "down", check=False)
        stack.callback(gateway.stop)
        gateway.start()
        _add_sources(lab)
        timer = _setting(lab.gw, _TIMER)
        allowed = (PORTS - LIVE) / timer
        for family in (4, 6):
            bench.say(f"{CLOSES}: IPv{family}")
            found = _close(lab, family)
            # A lost SYN means that all ports are held: one period of the timer allows this number of closes.
            borne = found.closes / (timer if found.lost else found.seconds)
            case = f"IPv{family}"
            figures = [
                (f"closes, {found.lost} SYNs lost", "", found.closes),
                ("ports that closed connections hold then", "", found.held),
                ("closes a second borne", "/s", borne),
                (f"closes a second by the timer of {timer} s alone", "/s", allowed),
            ]
            rows = [Row(CLOSES, case, what, unit, (Sample(value),)) for what, unit, value in figures]
            text = "by the timer alone / borne"
            bench.add(rows, [Claim(CLOSES, case, text, "x", allowed / borne, 1.1)])


def _add_sources(lab: Lab) -> None:
    lab.client.ip(*(f"addr add {source} dev eth0" for family in (4, 6) for source in _SOURCES[family]))
    lab.gw.ip(f"route add 10.11.0.0/16 via {CLIENT[4]}", f"route add fd00:b::/32 via {CLIENT[6]}")


def _close(lab: Lab, family: int) -> _Closed:
    port = 7000 + family

    def hammer(capacity: int) -> Hammer:
        sources = _SOURCES[family]
        return Hammer(lab.client, ORIGIN1[family], port, sources=sources, capacity=capacity)

    with Holders(lab.origin1, port), hammer(LIVE) as live, hammer(_AT_ONCE) as others:
        lab.gw.run("conntrack", "-F")
        opened = live.open(LIVE)
        if opened.opened != LIVE:
            raise LabError(f"{opened.opened:,} of {LIVE:,} connections are open: {dict(opened.failed)}")
        lost_before = _syns_sent_again(lab.client)
        done, lost = 0, 0
        began = time.monotonic()
        while not lost and done < _ENOUGH * (PORTS - LIVE):
            done += others.open(_AT_ONCE).opened
            others.close(_AT_ONCE)
            lost = _syns_sent_again(lab.client) - lost_before
        took = time.monotonic() - began
        return _Closed(done, took, lost, _setting(lab.gw, _COUNT) - LIVE)


def _setting(namespace: Namespace, name: str) -> int:
    return int(namespace.call((Path("/proc/sys") / name).read_text))


def _syns_sent_again(namespace: Namespace) -> int:
    """The namespace's counter TCPSynRetrans."""

    def read() -> int:
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
        return int(dict(zip(names, values, strict=True))["TCPSynRetrans"])

    return namespace.call(read)
