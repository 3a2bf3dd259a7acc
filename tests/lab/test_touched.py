"""Tests of other software's rules that change or count packets: they apply to every packet of a connection.

The tests judge by the packets that arrive, on the kernel's path and on the fast path.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastpath import rows
from truth import families, running, wait_for

from lab.capture import Capture
from lab.clients import Session
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import ORIGIN1, Lab

EXCHANGES = 30
_ports = itertools.count(43000)
IP = {4: "ip", 6: "ip6"}
EVERY_PACKET = ("u32", "match", "u32", "0", "0", "classid", "1:1")


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    lab.gw.run(
        "nft",
        "add table inet qos; "
        "add chain inet qos onward { type filter hook forward priority -150; }; "
        "add chain inet qos post { type filter hook postrouting priority -150; }",
    )
    with running(lab) as gateway:
        yield gateway


@contextmanager
def ruled(lab: Lab, rule: str) -> Iterator[None]:
    lab.gw.run("nft", f"add rule inet qos {rule}")
    try:
        yield
    finally:
        lab.gw.run("nft", "flush chain inet qos onward; flush chain inet qos post")


def talk(gateway: LabGateway, family: int) -> int:
    """Exchange data on one connection; returns the number of its fast packets."""
    port = next(_ports)
    with Session(gateway.lab.client, ORIGIN1[family], source_port=port) as session:
        for _ in range(EXCHANGES):
            session.ask()
        (row,) = rows(gateway, [port])
        return int(row["fast_packets"])


def fields(capture: Capture, family: int) -> set[tuple[int, int]]:
    """The traffic class and hop limit of each packet."""
    found = []
    for frame in capture.frames():
        if family == 4:
            found.append((frame[15], frame[22]))
        else:
            found.append(((frame[14] & 15) << 4 | frame[15] >> 4, frame[21]))
    assert len(found) >= EXCHANGES
    return set(found)


@families
def test_untouched_they_are_fast(enforced: LabGateway, family: int) -> None:
    assert talk(enforced, family) > EXCHANGES


@families
@pytest.mark.parametrize(
    ("rule", "back"),
    [("post oifname out0", False), ("onward oifname in0", True)],
    ids=["out", "back"],
)
def test_dscp(enforced: LabGateway, family: int, rule: str, back: bool) -> None:
    lab = enforced.lab
    near, side = (lab.client, "src") if back else (lab.origin1, "dst")
    seen = Capture(near, "eth0", lab.directory, direction="in", expression=f"tcp {side} port 9000")
    with ruled(lab, f"{rule} {IP[family]} dscp set cs5"), seen:
        talk(enforced, family)
    assert {tos for tos, _ in fields(seen, family)} == {0xA0}
    # A rule that sets the value that is already there changes nothing.
    with ruled(lab, f"{rule} {IP[family]} dscp set cs0"):
        assert talk(enforced, family) > 0


@families
def test_hop_limit(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    field = "ttl" if family == 4 else "hoplimit"
    with (
        ruled(lab, f"post oifname out0 {IP[family]} {field} set 33"),
        Capture(lab.origin1, "eth0", lab.directory, direction="in", expression="tcp dst port 9000") as seen,
    ):
        talk(enforced, family)
    assert {hops for _, hops in fields(seen, family)} == {32}


@families
@pytest.mark.parametrize(
    ("change", "carried"),
    [
        ("post oifname out0 meta priority set 1:10", "meta priority 1:10"),
        ("onward oifname out0 meta mark set mark or 0x8", "meta mark and 0x8 == 0x8"),
    ],
    ids=["priority", "mark"],
)
def test_what_queues_tell_packets_apart_by(
    enforced: LabGateway, family: int, change: str, carried: str
) -> None:
    """A shaper's class by priority or by another software's mark, which the outside device's hook shows."""
    lab = enforced.lab
    lab.gw.run(
        "nft",
        "add table netdev behind; "
        "add chain netdev behind out { type filter hook egress device out0 priority 0; }; "
        f"add rule netdev behind out tcp dport 9000 {carried} counter",
    )
    try:
        with ruled(lab, change):
            talk(enforced, family)
        assert counted(lab, "netdev behind") >= EXCHANGES
    finally:
        lab.gw.run("nft", "delete table netdev behind")


def counted(lab: Lab, table: str) -> int:
    """The packets that a table's counters have counted."""
    found = json.loads(lab.gw.run("nft", "-j", "list", "table", *table.split()).stdout)["nftables"]
    expressions = [one["rule"]["expr"] for one in found if "rule" in one]
    return sum(int(part["counter"]["packets"]) for rule in expressions for part in rule if "counter" in part)


@families
@pytest.mark.parametrize("kind", ["nft", "tc"])
def test_filters_of_others_as_packets_arrive(enforced: LabGateway, family: int, kind: str) -> None:
    """A policer or counter behind our ingress program sees every packet."""
    lab = enforced.lab
    if kind == "tc":
        lab.gw.run("tc", "qdisc", "replace", "dev", "in0", "clsact")
        lab.gw.run("tc", "filter", "add", "dev", "in0", "ingress", "pref", "99", *EVERY_PACKET)
    else:
        lab.gw.run(
            "nft",
            "add table netdev police; "
            "add chain netdev police in { type filter hook ingress device in0 priority 0; }; "
            "add rule netdev police in tcp dport 9000 counter",
        )
    try:
        wait_for(lambda: talk(enforced, family) == 0, "nothing fast any more")
        if kind == "nft":
            before = counted(lab, "netdev police")
            talk(enforced, family)
            assert counted(lab, "netdev police") - before >= EXCHANGES
    finally:
        if kind == "tc":
            lab.gw.run("tc", "qdisc", "del", "dev", "in0", "clsact")
        else:
            lab.gw.run("nft", "delete table netdev police")
    wait_for(lambda: talk(enforced, family) > 0, "fast again")
