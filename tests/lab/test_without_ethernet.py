"""Interfaces without Ethernet (tun, WireGuard, PPP) on either side: every packet arrives whole, of any size.

An Ethernet frame is padded to 60 bytes, and what pads it is cut off. A packet of 60 bytes that came without
Ethernet has no padding.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from truth import families, running

from enforcer.lab.clients import Session, family_of
from enforcer.lab.configuration import LAX1, LAX2
from enforcer.lab.gateway import Gateway
from enforcer.lab.netns import Namespace
from enforcer.lab.services import Services
from enforcer.lab.topology import ORIGIN1, Lab
from enforcer.lab.tun import Cable

SIZES = range(33)
INSIDE = {4: ("10.7.0.1/24", "10.7.0.2"), 6: ("fd07::1/64", "fd07::2")}
OUTSIDE = {4: ("198.19.7.1/24", "198.19.7.2"), 6: ("2001:db8:f7::1/64", "2001:db8:f7::2")}
LENGTH = {4: 32, 6: 128}


def end(namespace: Namespace, address: str, length: str) -> None:
    nodad = " nodad" if ":" in address else ""
    namespace.ip("link set tun0 up", f"addr add {address}/{length} dev tun0{nodad}")


@pytest.fixture(scope="module", params=["inside", "outside"])
def reached(
    request: pytest.FixtureRequest, lab: Lab, services: Services
) -> Iterator[tuple[Gateway, Namespace]]:
    """The gateway with a tun on one side, and the client whose packets go over it to origin 1."""
    side = request.param
    plan, far = (INSIDE, lab.client2) if side == "inside" else (OUTSIDE, lab.net)
    with Cable(lab.gw, far, "tun0"):
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
        with running(lab, lab.config(interfaces=sides, policies=[])) as gateway:
            yield gateway, far if side == "inside" else lab.client


@families
def test_datagrams_of_every_size(reached: tuple[Gateway, Namespace], lab: Lab, family: int) -> None:
    _, client = reached
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
def test_tcp_without_timestamps(reached: tuple[Gateway, Namespace], lab: Lab, family: int) -> None:
    """Its acknowledgements have 60 bytes in IPv6; Windows sends none with timestamps by default."""
    _, client = reached
    for host in (client, lab.origin1):
        host.sysctl("net.ipv4.tcp_timestamps", 0)
    try:
        with Session(client, ORIGIN1[family], timeout=2) as session:
            for _ in range(20):
                assert session.ask() == session.seen
    finally:
        for host in (client, lab.origin1):
            host.sysctl("net.ipv4.tcp_timestamps", 1)
