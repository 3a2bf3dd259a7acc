"""Short connections: HTTP requests by wrk to an nginx behind the gateway, one connection per request.

A connection has ten packets: three to open, the request and the answer with their acknowledgements, the rest
to close. The tables of conntrack and the enforcer are emptied before each run; otherwise connections in
TIME_WAIT would use up the ports.
"""

from __future__ import annotations

import re
from contextlib import ExitStack

from bench.report.results import Row, Sample, ratio
from bench.rig.hosts import ORIGIN, compared, hosts
from bench.rig.measure import Bench
from bench.rig.peers import Peer
from lab.netns import LabError
from lab.servers import Nginx

WEB = "Short connections"
_PORT = 80
_CONNECTIONS = 32
_SECONDS = 1


def short(bench: Bench) -> None:
    """Measures requests per second, from one thread with 32 connections at a time."""
    with ExitStack() as stack:
        peers = compared(bench, stack)
        for peer in peers:
            origin = hosts(peer).origin
            directory = bench.directory / origin.name
            directory.mkdir()
            stack.enter_context(Nginx(origin, directory, http=(_PORT,), https=()))
        for family in (4, 6):
            bench.say(f"{WEB}: IPv{family}")
            address = f"[{ORIGIN[family]}]" if family == 6 else ORIGIN[family]

            def measure(peer: Peer, address: str = address) -> Sample:
                peer.reset()
                done = hosts(peer).client.run(
                    *("wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{_SECONDS}s", "-H", "Connection: close"),
                    f"http://{address}:{_PORT}/",
                )
                return requests(done.stdout)

            found = bench.interleave(peers, measure, warm=False)
            plain, snat, enforcer = (
                Row(WEB, f"IPv{family}", peer.name, "/s", samples)
                for peer, samples in zip(peers, found, strict=True)
            )
            bench.add([plain, snat, enforcer], [ratio(enforcer, snat, 1.0, at_least=True, target=True)])


def requests(said: str) -> Sample:
    """Requests per second in wrk's output, and the share of requests that failed."""
    rate = re.search(r"^Requests/sec: +([\d.]+)$", said, re.MULTILINE)
    done = re.search(r"^ +(\d+) requests in", said, re.MULTILINE)
    if not rate or not done:
        raise LabError(f"wrk: {said}")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = sum(int(number) for found in (errors, other) if found for number in found.groups())
    return Sample(float(rate[1]), failed / max(1, int(done[1]) + failed))
