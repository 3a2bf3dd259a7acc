"""Tests of two gateways with the same addresses: the standby's links come up when the first one's go down."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import pytest
from near import NEAR, with_near
from test_announcing import AT_ONCE, known
from truth import leaves_from, running

from enforcer.kernel import links
from lab.clients import tcp_ask
from lab.configuration import LAX1
from lab.netns import Namespace, create
from lab.services import Services
from lab.topology import GATEWAY, ORIGIN1, ORIGIN2, SHARED, Lab

NEXT_HOP = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}
STANDBY = {4: "198.51.100.2", 6: "2001:db8:ffff::2"}
LENGTH = {4: 24, 6: 64}
HOSTS = {4: ("10.0.1.2", "10.0.1.3"), 6: ("fd00:1::2", "fd00:1::3")}


def numbered(device: str, addresses: dict[int, str]) -> list[str]:
    nodad = {4: "", 6: " nodad"}
    return [f"addr add {addresses[f]}/{LENGTH[f]} dev {device}{nodad[f]}" for f in (4, 6)]


@pytest.fixture(scope="module")
def pair(lab: Lab, services: Services) -> Iterator[tuple[Lab, Lab]]:
    """The lab with the first gateway and the lab with the standby; a switch connects both to their router."""
    standby = copy.copy(lab)
    standby.gw = lab.namespaces["standby"] = Namespace(f"{lab.prefix}-standby")
    create(standby.gw)
    standby.gw.sysctls({f"net.ipv6.conf.{name}.accept_dad": 0 for name in ("all", "default")})
    lab.net.ip(
        "link set gw0 down",
        "addr flush dev gw0",
        "link set gw0 name port0",
        "link add gw0 type bridge",
        f"link add port1 type veth peer name out0 netns {standby.gw.name}",
        *(f"link set {port} master gw0 up" for port in ("port0", "port1")),
        "link set gw0 up",
        *numbered("gw0", NEXT_HOP),
        "route add 203.0.113.0/24 dev gw0",
        f"route add 2001:db8::/44 via {SHARED[6]}",
        f"route add {NEAR[6]} dev gw0",
    )
    lab.client.ip(f"link add eth1 type veth peer name in0 netns {standby.gw.name}")
    standby.gw.ip("link set lo up", "link set in0 up", *numbered("in0", GATEWAY), *numbered("out0", STANDBY))
    yield lab, standby


def takes(lab: Lab, origin: dict[int, str], source: str, egress: dict[int, str]) -> float:
    """The seconds that a new connection takes; asserts its source address."""
    family = 6 if ":" in source else 4
    began = time.monotonic()
    seen = tcp_ask(lab.client, origin[family], source=source, timeout=60)
    assert seen.address == leaves_from(egress, family, source)
    return time.monotonic() - began


def take_over(first: Lab, standby: Lab) -> None:
    """Cut the first gateway's links; clients and router then reach the standby."""
    first.gw.ip("link set out0 down", "link set in0 down")
    standby.gw.ip(
        "link set out0 up",
        *(f"route add default via {NEXT_HOP[family]}" for family in (4, 6)),
    )
    client = first.client
    client.ip("link set eth0 down", "addr flush dev eth0", "link set eth1 up")
    client.ip(
        *(line for host in (1, 0) for line in numbered("eth1", {f: HOSTS[f][host] for f in (4, 6)})),
        *(f"route add default via {GATEWAY[family]}" for family in (4, 6)),
    )


def test_a_standby_takes_over(pair: tuple[Lab, Lab]) -> None:
    lab, standby = pair
    everything = [
        (origin, source, egress)
        for family in (6, 4)
        for origin, egress in ((ORIGIN2, NEAR), (ORIGIN1, LAX1))
        for source in HOSTS[family]
    ]
    config = with_near(lab, on_link=True)
    config["interfaces"]["inside"] = ["in0"]
    with running(lab, config), running(standby, config):
        for each in everything:
            takes(lab, *each)
        mac = lab.gw.call(links.links)["out0"].mac.hex(":")
        take_over(lab, standby)
        remembered = [known(lab, leaves_from(NEAR, 6, source)) for source in HOSTS[6]]
        assert all(mac in entry for entry in remembered)
        took = [takes(lab, *each) for each in everything]
        print(", ".join(f"{seconds:.2f}" for seconds in took))
        assert max(took) < AT_ONCE
