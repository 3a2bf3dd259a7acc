"""The cost of a new flow by number of policies and by number of egress IPs."""

from __future__ import annotations

from contextlib import ExitStack

from bench.report.results import ratio
from bench.rig import documents, rulesets, traffic_facts
from bench.rig.generator import Stream
from bench.rig.measure import Bench, entered
from bench.rig.peers import Enforcer, Peer, Ruleset
from enforcer.constants import TCP, UDP

POLICIES = "New flow by number of policies"
PACKET_POLICIES = "New flow by number of policies that nft can say"
EGRESS_IPS = "New flow by number of egress IPs"
_POLICIES = (1, 100, 1000, 4000)
_LIMITS = {1000: 1.2, 4000: 1.5}
_PACKET_POLICIES = (1000, 4000)
_FEW = 2048
"""Flows of a run in which each flow passes thousands of rules."""
_EGRESS_IPS = (1, 4000)


def _named(count: int) -> str:
    return f"{count:,} " + ("policy" if count == 1 else "policies")


def policies(bench: Bench) -> None:
    """Measures policies with selectors of all kinds; the traffic's 256 origins match different policies."""
    regions = traffic_facts.write_regions(bench.directory / "regions.mmdb", prefixes=1000)
    with ExitStack() as stack:
        peers = entered(
            [
                Enforcer(
                    bench.programs,
                    bench.directory,
                    documents.located(documents.policies(count), regions),
                    f"-p{count}",
                    _named(count),
                    informed=True,
                )
                for count in _POLICIES
            ],
            stack,
        )
        for stream in (Stream(4, TCP, origins=256), Stream(6, UDP, origins=256)):
            rows = bench.new_flows(POLICIES, stream, peers, rounds=bench.few)
            bench.add(
                rows,
                [
                    ratio(row, rows[0], _LIMITS[count])
                    for count, row in zip(_POLICIES, rows, strict=True)
                    if count in _LIMITS
                ],
            )


def packet_policies(bench: Bench) -> None:
    """Compares the enforcer with nftables for policies that both can express (:mod:`bench.rig.rulesets`)."""
    with ExitStack() as stack:
        found: list[Peer] = []
        for count in _PACKET_POLICIES:
            document = documents.gateway(rulesets.policies(count))
            found += [
                Ruleset(
                    bench.programs,
                    f"-c{count}",
                    f"nft, {count:,} policies as a chain of rules",
                    rulesets.chain(count),
                ),
                Ruleset(
                    bench.programs,
                    f"-m{count}",
                    f"nft, {count:,} as maps: no order among them, no overlaps",
                    rulesets.maps(count),
                ),
                Enforcer(
                    bench.programs, bench.directory, document, f"-n{count}", f"enforcer, {_named(count)}"
                ),
            ]
        peers = entered(found, stack)
        for family in (4, 6):
            bench.add(
                bench.new_flows(PACKET_POLICIES, Stream(family, TCP, origins=256), peers, _FEW, bench.few)
            )


def egress_ips(bench: Bench) -> None:
    """Measures a gateway without policies: clients are spread over all egress IPs of the location."""
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
            rows = bench.new_flows(EGRESS_IPS, Stream(family, TCP), peers, rounds=bench.few)
            bench.add(rows, [ratio(rows[1], rows[0], 1.1)])
