"""Tests of the lookup of the interface that leads to an address."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from enforcer.address import pack
from enforcer.kernel.routes import interfaces_to
from lab.netns import run


def test_which_interface_leads_to_an_address(netns: str) -> None:
    run("ip link add in0 type veth peer name far0")
    run("ip link set in0 up")
    run("ip link set far0 up")
    run("ip link set lo up")
    run("ip addr add 10.0.1.1/24 dev in0")
    run("ip addr add fd00:1::1/64 dev in0 nodad")
    run("ip route add 10.9.0.0/16 via 10.0.1.9")
    index, loopback = socket.if_nametoindex("in0"), socket.if_nametoindex("lo")
    wanted = {"10.0.1.2": index, "10.9.1.1": index, "fd00:1::2": index, "10.0.1.1": loopback}
    wanted |= {"192.0.2.1": None, "2001:db8::1": None}
    assert interfaces_to([pack(ip_address(address)) for address in wanted]) == list(wanted.values())
    assert interfaces_to([]) == []
