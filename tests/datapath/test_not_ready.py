"""Tests that no packet leaves before the tables are filled, and that the gateway itself is reachable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether

from enforcer.datapath import settings

from .box import BLOCKED, CLIENT, CLIENT_MAC, MAC, NO_FILTER, ORIGIN, Box

GATEWAY = {4: "10.1.0.1", 6: "fd01::1"}


@pytest.fixture(autouse=True)
def not_ready(box: Box) -> Iterator[None]:
    kept = settings.read(box.maps)
    box.maps.settings.put(0, np.zeros((), dtype=box.maps.settings.value))
    yield
    settings.write(box.maps, kept)


def frame(packet: object) -> bytes:
    return bytes(Ether(src=CLIENT_MAC, dst=MAC["in0"]) / packet)


def test_arp_and_neighbours_pass(box: Box) -> None:
    arp = bytes(Ether(src=CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst=GATEWAY[4], psrc=CLIENT[4]))
    assert box.program("from_client")(arp) == NO_FILTER
    solicitation = IPv6(src=CLIENT[6], dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt=GATEWAY[6])
    multicast = bytes(Ether(src=CLIENT_MAC, dst="33:33:ff:00:00:01") / solicitation)
    assert box.program("from_client")(multicast) == NO_FILTER


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_the_gateway_is_reached_and_nothing_behind_it(box: Box, family: int, kind: str) -> None:
    echo = ICMP() if family == 4 else ICMPv6EchoRequest()
    payload = {"tcp": TCP(sport=1000, dport=22), "udp": UDP(sport=1000, dport=53), "icmp": echo}[kind]
    network = IP if family == 4 else IPv6
    with box.counted() as counted:
        to_gateway = frame(network(src=CLIENT[family], dst=GATEWAY[family]) / payload)
        assert box.program("from_client")(to_gateway) == NO_FILTER
        to_origin = frame(network(src=CLIENT[family], dst=ORIGIN[family]) / payload)
        assert box.program("from_client")(to_origin) == BLOCKED
    assert counted.packets == {"local": 1, "not-ready": 1}
    assert not len(box.maps.flows.items()[0])
