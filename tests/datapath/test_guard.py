"""Tests of to_origin, the leak guard: a packet leaves only with a source address of its mark's egress IP."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.packet import Packet, Raw

from enforcer.gateway import availability
from lab.configuration import LAX1, LAX2, NYC1
from lab.netns import run

from .box import BLOCKED, CLIENT, MAC, NO_FILTER, ORIGIN, ROUTER_MAC, Box
from .wire import SYN, Connection, Wire

SHARED = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
# In a range, the host bits are those of the client.
IN_RANGE = {4: LAX1[4], 6: "2001:db8:1::2"}
OF_THE_CLIENT = {4: LAX1[4], 6: "2001:db8:1:0:ffff::5"}
OTHER = {4: LAX2[4], 6: "2001:db8:2::2"}
NOT_HERE = {4: NYC1[4], 6: "2001:db8:3::2"}


def leaving(
    box: Box, packet: Packet, mark: int, arrived: str | None = "in0", sender: str = MAC["out0"]
) -> tuple[int, int]:
    """The return value of to_origin, and how many leaks it counted."""
    program = box.program("to_origin", "out0")
    program.context.ingress_ifindex = box.index[arrived] if arrived else 0
    with box.counted() as counted:
        returned = program(bytes(Ether(src=sender, dst=ROUTER_MAC) / packet), mark)
    assert counted.packets.keys() <= {"leak"}
    return returned, counted.packets.get("leak", 0)


def packet(family: int, source: str) -> Packet:
    return (IP if family == 4 else IPv6)(src=source, dst=ORIGIN[family]) / TCP(sport=1, dport=443)


LET, STOPPED = (NO_FILTER, 0), (BLOCKED, 1)


def test_planned_sources_leave(box: Box, family: int) -> None:
    slot = box.slot("lax-1")
    for source in (IN_RANGE, OF_THE_CLIENT):
        assert leaving(box, packet(family, source[family]), slot + 1) == LET
        assert leaving(box, packet(family, source[family]), 0xABCD0000 | slot + 1) == LET
    assert leaving(box, packet(family, SHARED[family]), 1) == LET


def test_other_sources_do_not(box: Box, family: int) -> None:
    slot = box.slot("lax-1")
    for source in (CLIENT, OTHER, SHARED, NOT_HERE):
        assert leaving(box, packet(family, source[family]), slot + 1) == STOPPED, source
    for source in (CLIENT, IN_RANGE, OTHER):
        assert leaving(box, packet(family, source[family]), 1) == STOPPED, source


def test_marks_that_name_no_egress(box: Box, family: int) -> None:
    for mark in (0, 0xABCD0000, 0xFFFF, 200, 16384, 16385):
        for source in (CLIENT, IN_RANGE, SHARED, {4: "0.0.0.0", 6: "::"}):
            assert leaving(box, packet(family, source[family]), mark) == STOPPED, (mark, source)
    # An egress IP of another location.
    assert leaving(box, packet(family, NOT_HERE[family]), box.slot("nyc-1") + 1) == STOPPED


def test_every_protocol_and_fragments(box: Box) -> None:
    slot = box.slot("lax-1")
    for source, outcome in ((LAX1[4], LET), (CLIENT[4], STOPPED)):
        ip = IP(src=source, dst=ORIGIN[4])
        for one in (ip / UDP(), ip / ICMP(), IP(src=source, dst=ORIGIN[4], frag=5) / Raw(bytes(8)), ip):
            assert leaving(box, one, slot + 1) == outcome
    for source, outcome in (("2001:db8:1::2", LET), (CLIENT[6], STOPPED)):
        ip6 = IPv6(src=source, dst=ORIGIN[6])
        for one in (
            ip6 / UDP(),
            ip6 / ICMPv6EchoRequest(),
            ip6 / IPv6ExtHdrFragment(offset=9) / Raw(bytes(8)),
        ):
            assert leaving(box, one, slot + 1) == outcome


def test_what_is_no_ip_does_not_cross(box: Box) -> None:
    assert leaving(box, ARP(), box.slot("lax-1") + 1) == STOPPED


def test_what_an_interface_on_top_sends(box: Box, family: int) -> None:
    """The program of the upper interface checks such a packet, for instance one to another inside network."""
    assert leaving(box, Dot1Q(vlan=7) / packet(family, CLIENT[family]), 0) == LET
    assert leaving(box, PPPoE(sessionid=1) / PPP() / packet(family, CLIENT[family]), 0) == LET
    assert leaving(box, packet(family, CLIENT[family]), 0) == STOPPED


@pytest.fixture
def macvlan(box: Box) -> Iterator[str]:
    """The MAC address of a macvlan on out0, which the maps contain."""
    mac = "02:00:00:00:03:01"
    assert box.gateway.previous is not None
    wanted = box.gateway.previous
    run(f"ip link add link out0 name upper0 address {mac} type macvlan")
    availability.refresh(box.maps, wanted)
    yield mac
    run("ip link del upper0")
    availability.refresh(box.maps, wanted)
    assert leaving(box, packet(4, CLIENT[4]), 0, sender=mac) == STOPPED


def test_what_a_macvlan_on_top_sends(box: Box, family: int, macvlan: str) -> None:
    """The maps identify a macvlan by its MAC address. The lower interface may have changed its own."""
    assert leaving(box, packet(family, CLIENT[family]), 0, sender=macvlan) == LET
    for sender in (MAC["out0"], "02:00:00:00:02:77"):
        assert leaving(box, packet(family, CLIENT[family]), 0, sender=sender) == STOPPED


def test_the_gateways_own_packets(box: Box, family: int) -> None:
    """The gateway's own packets have no incoming interface, or an outside one."""
    for arrived in (None, "out0"):
        assert (
            leaving(box, packet(family, "192.0.2.1" if family == 4 else "2001:db8:0:1::1"), 0, arrived) == LET
        )
    assert leaving(box, ARP(), 0, None) == LET


# Real packets


@pytest.fixture
def without_a_table(box: Box) -> Iterator[None]:
    """Deletes the nftables table: no rule translates or stops a packet."""
    subprocess.run(["nft", "delete", "table", "inet", "enforcer"], check=True)
    yield
    box.apply(box.config)


def test_nothing_leaves_untranslated(box: Box, wire: Wire, family: int, without_a_table: None) -> None:
    with box.counted() as counted:
        assert not Connection(wire, family, 20000).send(1, 0, SYN)
    assert counted.packets["leak"] == 1
    assert counted.packets["policy"] == 1


def test_translated_it_leaves(box: Box, wire: Wire, family: int) -> None:
    with box.counted() as counted:
        connection = Connection(wire, family, 20001)
        assert connection.send(1, 0, SYN)
    assert counted.packets == {"policy": 1}
    assert connection.translated is not None
    assert connection.translated[0] == socket.inet_pton(
        socket.AF_INET if family == 4 else socket.AF_INET6, IN_RANGE[family]
    )
