"""Tests of the gateway's own traffic over a default route without a next hop (PPP, tun).

It must never leave from an egress address. For such a route the kernel also takes source addresses of smaller
scope (devinet.c, inet_select_addr).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, ip_interface, ip_network

import pytest
from truth import dedicated, families, running

from enforcer.kernel import addresses
from lab.clients import Session, ping, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2
from lab.gateway import LabGateway
from lab.servers import logged
from lab.services import Services
from lab.topology import ORIGIN2, SHARED, Lab
from lab.tun import Cable

OWN = {4: "198.19.7.1", 6: "2001:db8:f7::1"}
LENGTH = {4: 24, 6: 64}
NEXT_HOP = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}


@pytest.fixture(scope="module", params=["an address of its own", "no address of its own"])
def without_next_hop(request: pytest.FixtureRequest, lab: Lab, services: Services) -> Iterator[LabGateway]:
    """A tun is the route to the internet; without an address of its own the shared addresses are on it."""
    numbered = request.param == "an address of its own"
    back = [str(ip_network(source[family])) for source in (OWN, SHARED, LAX1, LAX2) for family in (4, 6)]
    with Cable(lab.gw, lab.net, "tun0"):
        lab.gw.ip(
            "link set tun0 up",
            *(f"addr add {OWN[f]}/{LENGTH[f]} dev tun0" for f in (4, 6) if numbered),
            *(f"addr del {SHARED[f]}/{LENGTH[f]} dev out0" for f in (4, 6) if not numbered),
            "route replace 0.0.0.0/0 dev tun0",
            "route replace ::/0 dev tun0",
        )
        lab.net.ip("link set tun0 up", *(f"route replace {network} dev tun0" for network in back))
        with running(lab, lab.config(interfaces={"inside": ["in0"], "outside": ["tun0"]})) as gateway:
            yield gateway
    lab.gw.ip(
        *(f"addr replace {SHARED[f]}/{LENGTH[f]} dev out0{' nodad' if f == 6 else ''}" for f in (4, 6)),
        *(f"route replace default via {NEXT_HOP[f]}" for f in (4, 6)),
    )


@families
def test_the_gateways_own_source(without_next_hop: LabGateway, services: Services, family: int) -> None:
    lab, reporter = without_next_hop.lab, services.reporter["origin2"]
    (echo,) = logged(lambda: reporter.seen("icmp"), lambda: ping(lab.gw, ORIGIN2[family]))
    seen = {echo.address, *(ask(lab.gw, ORIGIN2[family]).address for ask in (tcp_ask, udp_ask))}
    assert seen == {OWN[family] if is_numbered(lab) else SHARED[family]}
    assert tcp_ask(lab.client, ORIGIN2[family]).address in dedicated(family)


def is_numbered(lab: Lab) -> bool:
    return ("tun0", ip_interface(f"{OWN[4]}/{LENGTH[4]}")) in lab.gw.call(addresses.held)


def test_after_an_upgrade_from_another_scope(without_next_hop: LabGateway) -> None:
    """An earlier version added egress addresses with scope link; live connections survive the change."""
    lab, gateway = without_next_hop.lab, without_next_hop
    before = lab.gw.call(addresses.held)
    egresses = {held for held in before if str(held[1].ip) in (LAX1[4], LAX2[4])}
    with Session(lab.client, ORIGIN2[4]) as session:
        gateway.stop()
        own = {held[1].ip for held in egresses}
        lab.gw.call(lambda: (addresses.remove(egresses), addresses.add(egresses, own=own)))
        if is_numbered(lab):
            # The source is an egress address, at which the gateway accepts no answers.
            with pytest.raises(TimeoutError):
                tcp_ask(lab.gw, ORIGIN2[4], timeout=1)
        gateway.start()
        assert session.ask() == session.seen
    assert lab.gw.call(addresses.held) == before
    assert not lab.gw.call(lambda: addresses.wrong_scope(own={IPv4Address(SHARED[4])}))
    assert tcp_ask(lab.gw, ORIGIN2[4]).address in (OWN[4], SHARED[4])


def test_arp_that_nothing_answers_is_named(without_next_hop: LabGateway) -> None:
    """With arp_ignore the kernel does not answer ARP for addresses of that scope."""
    gateway, setting = without_next_hop, "net.ipv4.conf.tun0.arp_ignore"
    assert gateway.json("status")["warnings"] == []
    gateway.lab.gw.sysctl(setting, 3)
    (warning,) = gateway.json("status")["warnings"]
    assert warning.startswith(f"{setting} is 3: ")
    assert warning in gateway.run("check").stderr
    gateway.lab.gw.sysctl(setting, 1)
    assert gateway.json("status")["warnings"] == []
