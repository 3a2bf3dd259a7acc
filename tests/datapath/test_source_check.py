"""Tests of the source check: forged and real sources of new flows, and the setting that disables it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from enforcer.reasons import reasons
from lab.netns import run

from .box import BLOCKED, CLIENT, MAC, NO_FILTER, ORIGIN, Box
from .box import document as plain_document
from .wire import Wire

IN1_MAC = "02:00:00:00:03:01"
NEIGHBOUR = {4: "10.2.0.5", 6: "fd02::5"}
"""A client of the other network, in1."""
BEHIND = {4: "10.9.8.7", 6: "fd09::7"}
"""A client behind another router on in0's network."""
PORTS = {"sport": 40000, "dport": 443}
INTERFACES = {"inside": ["in0", "in1"], "outside": ["out0"]}


@pytest.fixture(scope="module")
def gateway(box: Box) -> Box:
    """The box with a second inside network, and a router on the first."""
    run(f"ip link add in1 address {IN1_MAC} type veth peer name client1")
    run("sysctl -qw net.ipv6.conf.client1.disable_ipv6=1")
    run("ip addr add 10.2.0.1/24 dev in1 && ip addr add fd02::1/64 dev in1 nodad")
    run("ip link set in1 up && ip link set client1 up")
    run(f"ip route add 10.9.0.0/16 via {CLIENT[4]} && ip route add fd09::/32 via {CLIENT[6]}")
    box.index["in1"] = socket.if_nametoindex("in1")
    box.apply(plain_document(interfaces=INTERFACES))
    return box


@pytest.fixture(autouse=True)
def nothing_lives(gateway: Box) -> None:
    gateway.forget_everything()


def frame(family: int, source: str, layer: Packet | None = None, interface: str = "in0") -> bytes:
    ip = (IP if family == 4 else IPv6)(src=source, dst=ORIGIN[family])
    return bytes(Ether(dst=IN1_MAC if interface == "in1" else MAC["in0"]) / ip / (layer or TCP(**PORTS)))


def reason_of(gateway: Box, data: bytes, interface: str = "in0") -> str:
    """The one counted reason; asserts that explain gives the same reason for the packet."""
    explain = gateway.program("explain", interface)
    explain(data)
    verdict = gateway.maps.explained.get(0)
    assert verdict is not None
    explained = reasons()[int(verdict["reason"])].name
    program = gateway.program("from_client", interface)
    with gateway.counted() as counted:
        returned = program(data)
    (reason,) = counted.packets
    assert explained == reason
    assert returned == (BLOCKED if reason == "spoofed" else NO_FILTER)
    if reason == "spoofed":
        assert not program.mark and not counted.flows
    return reason


@contextmanager
def changed(*commands: str) -> Iterator[None]:
    """Runs commands of ip(8), and undoes them afterwards in reverse order, with "del" in place of "add"."""
    try:
        for command in commands:
            run(f"ip {command}")
        yield
    finally:
        for command in reversed(commands):
            run(f"ip {command.replace(' add ', ' del ')}")


def layers(family: int) -> dict[str, Packet]:
    return {
        "policy": TCP(**PORTS),
        "dns": UDP(sport=40000, dport=53),
        "icmp": ICMP() if family == 4 else ICMPv6EchoRequest(),
        "protocol": SCTP(sport=1, dport=2),
    }


@pytest.mark.parametrize("reason", ["policy", "dns", "icmp", "protocol"])
def test_another_network_s_address(gateway: Box, family: int, reason: str) -> None:
    """A packet of any protocol gets an egress address only on the interface that leads to its source."""
    layer = layers(family)[reason]
    assert reason_of(gateway, frame(family, NEIGHBOUR[family], layer)) == "spoofed"
    assert reason_of(gateway, frame(family, NEIGHBOUR[family], layer, "in1"), "in1") == reason
    assert reason_of(gateway, frame(family, CLIENT[family], layer, "in1"), "in1") == "spoofed"
    assert reason_of(gateway, frame(family, CLIENT[family], layer)) == reason


def test_nothing_is_entered_of_a_forged_one(gateway: Box, family: int) -> None:
    for layer in layers(family).values():
        assert reason_of(gateway, frame(family, NEIGHBOUR[family], layer)) == "spoofed"
    for table in (gateway.maps.flows, gateway.maps.origins, gateway.maps.clients):
        assert not len(table.items()[0])


def test_a_client_behind_another_router(gateway: Box, family: int) -> None:
    assert reason_of(gateway, frame(family, BEHIND[family])) == "policy"
    gateway.forget_everything()
    assert reason_of(gateway, frame(family, BEHIND[family], interface="in1"), "in1") == "spoofed"


def test_a_client_without_a_neighbour_entry(gateway: Box, family: int) -> None:
    source = {4: "10.1.200.77", 6: "fd01::dead"}[family]
    assert reason_of(gateway, frame(family, source)) == "policy"


FORGED = {
    4: {
        "the gateway's own": "10.1.0.1",
        "its outside address": "192.0.2.1",
        "an egress address": "203.0.113.10",
        "the shared address": "198.51.100.1",
        "the origin's": ORIGIN[4],
        "the default route's": "192.0.2.2",
        "nobody's": "100.64.0.1",
        "unspecified": "0.0.0.0",
        "loopback": "127.0.0.1",
        "broadcast": "10.1.255.255",
        "everybody": "255.255.255.255",
        "multicast": "224.0.0.1",
        "link-local": "169.254.1.1",
    },
    6: {
        "the gateway's own": "fd01::1",
        "its outside address": "2001:db8:0:1::1",
        "an egress address": "2001:db8:1::2",
        "the shared address": "2001:db8:ffff::1",
        "the origin's": ORIGIN[6],
        "the default route's": "2001:db8:0:1::2",
        "nobody's": "fc00::1",
        "unspecified": "::",
    },
}


@pytest.mark.parametrize(("family", "source"), [(f, s) for f, rows in FORGED.items() for s in rows.values()])
def test_an_address_that_is_no_client_s(gateway: Box, family: int, source: str) -> None:
    assert reason_of(gateway, frame(family, source)) == "spoofed"


@pytest.mark.parametrize("source", ["fe80::2", "::1", "ff02::1"])
def test_a_source_that_ipv6_never_forwards(gateway: Box, wire: Wire, source: str) -> None:
    """The kernel refuses it (ip6_forward), with "beyond scope" for a link-local source (RFC 4443, 3.1)."""
    data = frame(6, source)
    assert reason_of(gateway, data) == "local"
    assert not wire.from_client(data[14:])


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_network_that_is_closed(gateway: Box, family: int, kind: str) -> None:
    network, source = {4: ("10.1.66.0/24", "10.1.66.5"), 6: ("fd01::66:0/112", "fd01::66:5")}[family]
    assert reason_of(gateway, frame(family, source)) == "policy"
    gateway.forget_everything()
    with changed(f"-{family} route add {kind} {network}"):
        assert reason_of(gateway, frame(family, source)) == "spoofed"


def test_several_next_hops_on_one_network(gateway: Box, family: int) -> None:
    network, source, hops = {
        4: ("10.77.0.0/16", "10.77.1.", ("10.1.0.2", "10.1.0.3")),
        6: ("fd77::/32", "fd77::", ("fd01::2", "fd01::3")),
    }[family]
    ways = " ".join(f"nexthop via {hop} dev in0" for hop in hops)
    with changed(f"-{family} route add {network} {ways}"):
        for host in range(1, 9):
            assert reason_of(gateway, frame(family, f"{source}{host}")) == "policy"
            gateway.forget_everything()


def test_policy_routing(gateway: Box, family: int) -> None:
    """Rules by source, by incoming interface and for the gateway's own packets do not apply to a reply."""
    own = {4: "10.1.0.0/16", 6: "fd01::/64"}[family]
    router = {4: "192.0.2.2", 6: "2001:db8:0:1::2"}[family]
    with changed(
        f"-{family} route add default via {router} table 100",
        f"-{family} route add blackhole default table 101",
        f"-{family} rule add from {own} table 100 pref 100",
        f"-{family} rule add iif in0 table 100 pref 101",
        f"-{family} rule add iif lo table 101 pref 102",
    ):
        assert reason_of(gateway, frame(family, CLIENT[family])) == "policy"
        gateway.forget_everything()
        assert reason_of(gateway, frame(family, NEIGHBOUR[family])) == "spoofed"


def test_policy_routing_of_answers(gateway: Box, family: int) -> None:
    """If replies have a routing table of their own, the source check uses that table."""
    network = {4: "10.55.0.0/16", 6: "fd55::/32"}[family]
    source = {4: "10.55.0.5", 6: "fd55::5"}[family]
    assert reason_of(gateway, frame(family, source)) == "spoofed"
    with changed(
        f"-{family} route add {network} via {CLIENT[family]} table 100",
        f"-{family} rule add iif out0 table 100 pref 100",
    ):
        assert reason_of(gateway, frame(family, source)) == "policy"


def test_an_uplink_that_does_not_forward(gateway: Box, family: int) -> None:
    """An uplink that accepts router advertisements: ip6_forward reads `all`, so the kernel forwards."""
    setting = f"net.ipv{family}.conf.out0.forwarding"
    run(f"sysctl -qw {setting}=0")
    try:
        assert reason_of(gateway, frame(family, CLIENT[family])) == "policy"
        gateway.forget_everything()
        assert reason_of(gateway, frame(family, NEIGHBOUR[family])) == "spoofed"
    finally:
        run(f"sysctl -qw {setting}=1")


def test_a_packet_larger_than_the_way_back_bears(gateway: Box, family: int) -> None:
    data = frame(family, CLIENT[family], UDP(**PORTS) / Raw(bytes(1380)))
    run("ip link set in0 mtu 1300")
    try:
        assert reason_of(gateway, data) == "policy"
    finally:
        run("ip link set in0 mtu 1500")


def test_a_flow_keeps_what_it_was_given(gateway: Box, family: int) -> None:
    """The source check applies to new flows only, because routes may flap."""
    data = frame(family, CLIENT[family], UDP(**PORTS))
    assert reason_of(gateway, data) == "policy"
    host = {4: f"{CLIENT[4]}/32", 6: f"{CLIENT[6]}/128"}[family]
    with changed(f"-{family} route add blackhole {host}"):
        with gateway.counted() as counted:
            assert gateway.program("from_client")(data) == NO_FILTER
        assert counted.packets == {"policy": 1}


@pytest.fixture
def loosened(gateway: Box) -> Iterator[Box]:
    yield gateway
    gateway.apply(plain_document(interfaces=INTERFACES))


def test_the_switch(loosened: Box, family: int) -> None:
    loosened.apply(plain_document(interfaces=INTERFACES, check_source=False))
    assert reason_of(loosened, frame(family, NEIGHBOUR[family])) == "policy"
    assert reason_of(loosened, frame(family, BEHIND[family], interface="in1"), "in1") == "policy"


def test_the_switch_of_one_network(loosened: Box, family: int) -> None:
    loosened.apply(plain_document(interfaces=INTERFACES, check_source={"in1": False}))
    assert reason_of(loosened, frame(family, NEIGHBOUR[family])) == "spoofed"
    assert reason_of(loosened, frame(family, BEHIND[family], interface="in1"), "in1") == "policy"
