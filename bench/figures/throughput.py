"""iperf3 through the gateway, between two hosts that leave segmentation to their devices."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product

from bench.report.results import Row, Sample, ratio
from bench.rig.hosts import ORIGIN, compared, hosts
from bench.rig.measure import Bench
from bench.rig.peers import Peer
from lab.servers import Iperf

IPERF = "iperf3 through the gateway"
_STREAMS = (1, 8, 64)
_SECONDS = 1


def iperf(bench: Bench) -> None:
    """Measures 1, 8 and 64 TCP streams from client to origin by the rate at which the origin received."""
    with ExitStack() as stack:
        peers = compared(bench, stack)
        servers = {peer: stack.enter_context(Iperf(hosts(peer).origin, bench.directory)) for peer in peers}
        for family, streams in product((4, 6), _STREAMS):
            case = f"IPv{family}, {streams} stream" + ("" if streams == 1 else "s")
            bench.say(f"{IPERF}: {case}")

            def measure(peer: Peer, family: int = family, streams: int = streams) -> Sample:
                said = servers[peer].measure(
                    hosts(peer).client, ORIGIN[family], "-P", str(streams), seconds=_SECONDS
                )
                return Sample(said["end"]["sum_received"]["bits_per_second"] / 1e9)

            found = bench.interleave(peers, measure, warm=False)
            plain, snat, enforcer = (
                Row(IPERF, case, peer.name, "Gbit/s", samples)
                for peer, samples in zip(peers, found, strict=True)
            )
            bench.add(
                [plain, snat, enforcer],
                [
                    ratio(enforcer, plain, 1.0, at_least=True, target=True),
                    ratio(enforcer, snat, 1.1, at_least=True, target=True),
                ],
            )
