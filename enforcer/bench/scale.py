"""What many policies and many egress IPs cost a new flow."""

from __future__ import annotations

from contextlib import ExitStack

from enforcer.bench import documents
from enforcer.bench.generator import TCP, UDP, Stream
from enforcer.bench.measure import Bench, entered
from enforcer.bench.peers import Enforcer
from enforcer.bench.results import ratio

POLICIES = "New flow by number of policies"
EGRESS_IPS = "New flow by number of egress IPs"
_POLICIES = (1, 1000, 4000)
_EGRESS_IPS = (1, 4000)


def policies(bench: Bench) -> None:
    """Selectors of all kinds; the traffic goes to 256 origins that different policies decide about."""
    with ExitStack() as stack:
        peers = entered(
            [
                Enforcer(
                    bench.programs,
                    bench.directory,
                    documents.gateway(documents.policies(count)),
                    f"-p{count}",
                    f"{count:,} " + ("policy" if count == 1 else "policies"),
                )
                for count in _POLICIES
            ],
            stack,
        )
        for stream in (Stream(4, TCP, origins=256), Stream(4, UDP, origins=256), Stream(6, TCP, origins=256)):
            rows = bench.new_flows(POLICIES, stream, peers)
            bench.add(rows, [ratio(row, rows[0], 1.2) for row in rows[1:]])


def egress_ips(bench: Bench) -> None:
    """No policies: clients are spread over all egress IPs of the location."""
    with ExitStack() as stack:
        peers = entered(
            [
                Enforcer(
                    bench.programs,
                    bench.directory,
                    documents.gateway([], egress_ips=documents.egress_ips(count)),
                    f"-e{count}",
                    f"{count:,} egress IP" + ("" if count == 1 else "s"),
                )
                for count in _EGRESS_IPS
            ],
            stack,
        )
        for family in (4, 6):
            rows = bench.new_flows(EGRESS_IPS, Stream(family, TCP), peers)
            bench.add(rows, [ratio(rows[1], rows[0], 1.1)])
