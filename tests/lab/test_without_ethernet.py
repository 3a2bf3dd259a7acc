"""Tests of interfaces without Ethernet (tun, WireGuard, PPP) on either side: all packets arrive whole.

With offloads packets cross the tun without checksums and with many segments in one.

Ethernet pads frames to 60 bytes, and the gateway removes that padding. A packet of 60 bytes that arrives
without Ethernet has no padding.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from transfer import Transfer
from truth import families, running

from lab.clients import Session, family_of
from lab.configuration import LAX1, LAX2
from lab.netns import Namespace
from lab.services import Services
from lab.topology import ORIGIN1, Lab
from lab.tun import Cable

SIZES = range(33)
LEAST = 1 << 22
LINKS = (("client", "eth0"), ("gw", "in0"), ("gw", "out0"), ("net", "gw0"), ("origin1", "eth0"))
INSIDE = {4: ("10.7.0.1/24", "10.7.0.2"), 6: ("fd07::1/64", "fd07::2")}
OUTSIDE = {4: ("198.19.7.1/24", "198.19.7.2"), 6: ("2001:db8:f7::1/64", "2001:db8:f7::2")}
LENGTH = {4: 32, 6: 128}


class Reached(NamedTuple):
    """The client whose packets cross the tun, the tun, and whether it has offloads."""

    client: Namespace
    cable: Cable
    offloads: bool


def end(namespace: Namespace, address: str, length: str) -> None:
    nodad = " nodad" if ":" in address else ""
    namespace.ip("link set tun0 up", f"addr add {address}/{length} dev tun0{nodad}")


@pytest.fixture(
    scope="module",
    params=[("inside", False), ("inside", True), ("outside", False), ("outside", True)],
    ids=["inside", "inside with offloads", "outside", "outside with offloads"],
)
def reached(request: pytest.FixtureRequest, lab: Lab, services: Services) -> Iterator[Reached]:
    """The gateway with a tun on one side; the route to origin 1 crosses it."""
    side, offloads = request.param
    plan, far = (INSIDE, lab.client2) if side == "inside" else (OUTSIDE, lab.net)
    with Cable(lab.gw, far, "tun0", offloads=offloads) as cable:
        for family, (near, other) in plan.items():
            address, length = near.split("/")
            end(lab.gw, address, length)
            end(far, other, length)
            to = f"{ORIGIN1[family]}/{LENGTH[family]}"
            if side == "inside":
                far.ip(f"route add {to} dev tun0 src {other}")
            else:
                lab.gw.ip(f"route add {to} dev tun0")
                back = (str(ip_network(egress[family])) for egress in (LAX1, LAX2))
                far.ip(*(f"route replace {network} dev tun0" for network in back))
        sides = {"inside": ["in0"], "outside": ["out0"]}
        sides[side].append("tun0")
        with running(lab, lab.config(interfaces=sides, policies=[])):
            yield Reached(far if side == "inside" else lab.client, cable, offloads)


@families
def test_datagrams_of_every_size(reached: Reached, lab: Lab, family: int) -> None:
    client = reached.client
    with (
        lab.origin1.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM) as server,
        client.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM) as asker,
    ):
        server.bind((ORIGIN1[family], 9100))
        server.settimeout(2)
        asker.settimeout(2)
        asker.connect((ORIGIN1[family], 9100))
        for size in SIZES:
            sent = bytes(range(size))
            asker.send(sent)
            received, peer = server.recvfrom(2048)
            assert (size, received) == (size, sent)
            assert any(ip_address(peer[0]) in ip_network(egress[family]) for egress in (LAX1, LAX2))
            server.sendto(received, peer)
            assert asker.recv(2048) == sent


@families
def test_tcp_without_timestamps(reached: Reached, lab: Lab, family: int) -> None:
    """Without timestamps, the default of Windows, an IPv6 acknowledgement has 60 bytes."""
    client = reached.client
    for host in (client, lab.origin1):
        host.sysctl("net.ipv4.tcp_timestamps", 0)
    try:
        with Session(client, ORIGIN1[family], timeout=2) as session:
            for _ in range(20):
                assert session.ask() == session.seen
    finally:
        for host in (client, lab.origin1):
            host.sysctl("net.ipv4.tcp_timestamps", 1)


@families
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_transfers_with_offloads_of_all_other_links(
    reached: Reached, lab: Lab, family: int, on: bool
) -> None:
    client = reached.client
    try:
        for role, interface in LINKS:
            lab.namespaces[role].offload(interface, on)
        with Transfer(client, lab.origin1, ORIGIN1[family], LEAST) as transfer:
            assert transfer.finish() >= 2 * LEAST
            peer = ip_address(transfer.peer[0])
        assert any(peer in ip_network(egress[family]) for egress in (LAX1, LAX2))
        # With offloads a packet carries many segments, without them one.
        assert (reached.cable.largest > 2 * 1500) == reached.offloads
    finally:
        for role, interface in LINKS:
            lab.namespaces[role].offload(interface, True)
