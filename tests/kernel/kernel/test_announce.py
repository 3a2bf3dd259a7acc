"""Tests of the announcement of addresses to neighbours."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from enforcer.errors import KernelError
from enforcer.kernel import announce, links
from lab.netns import inside, run

from ..conftest import Lab

ETH_P_ALL = 3


def test_neighbours_learn_the_new_place(lab: Lab) -> None:
    with inside(lab.origin):
        run("ip neigh add 10.2.0.9 lladdr 02:00:00:00:00:01 dev eth0 nud stale")
        run("ip neigh add fd02::9 lladdr 02:00:00:00:00:01 dev eth0 nud stale")
    with inside(lab.origin):
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with capture:
        capture.bind(("eth0", ETH_P_ALL))
        capture.settimeout(2)
        assert announce.announce("out0", [IPv4Address("10.2.0.9"), IPv6Address("fd02::9")]) == 2
        arp = na = None
        while arp is None or na is None:
            frame = Ether(capture.recv(2000))
            arp = frame if ARP in frame and frame[ARP].pdst == "10.2.0.9" else arp
            na = frame if ICMPv6ND_NA in frame else na
    (link,) = json.loads(run("ip -j link show dev out0"))
    mac = link["address"]
    assert (arp.dst, arp.op, arp.psrc, arp.hwsrc) == ("ff:ff:ff:ff:ff:ff", 1, "10.2.0.9", mac)
    assert (na.src, na.dst, na[IPv6].hlim) == (mac, "33:33:00:00:00:01", 255)
    assert (na[ICMPv6ND_NA].tgt, na[ICMPv6ND_NA].O, na[ICMPv6ND_NA].S) == ("fd02::9", 1, 0)
    assert na[ICMPv6NDOptDstLLAddr].lladdr == mac
    with inside(lab.origin):
        assert mac in run("ip neigh show 10.2.0.9 dev eth0")
        assert mac in run("ip neigh show fd02::9 dev eth0")


def test_no_neighbours_without_ethernet(netns: str) -> None:
    run("ip tuntap add dev tun0 mode tun")
    run("ip link set tun0 up")
    assert links.links()["tun0"].header == 0
    assert announce.announce("tun0", [IPv4Address("10.2.0.9")]) == 0


def test_errors_name_the_interface(netns: str) -> None:
    with pytest.raises(KernelError, match="announcing addresses on nope: No such device"):
        announce.announce("nope", [IPv4Address("10.2.0.9")])
