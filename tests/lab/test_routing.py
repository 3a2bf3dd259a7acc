"""Tests of routing: fragments, options, hop limits, path-MTU discovery, offloads, neighbours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from near import NEAR, with_near
from truth import (
    Origin,
    agree,
    families,
    inject,
    leaves_from,
    origins,
    packets,
    running,
    wait_for,
)

from lab.capture import Capture
from lab.clients import IcmpError, UdpFlow, curl, family_of, tcp_ask, ttl_probe, udp_ask, url
from lab.configuration import LAX1, LAX2
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import CLIENT, GATEWAY, ORIGIN1, ORIGIN2, SHARED, Lab

PORT = 9200
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
LINKS = (
    ("client", "eth0"),
    ("gw", "in0"),
    ("gw", "out0"),
    ("net", "gw0"),
    ("net", "origin1"),
    ("origin1", "eth0"),
)
DO_NOT_FRAGMENT = {4: (socket.IPPROTO_IP, 10, 2), 6: (socket.IPPROTO_IPV6, 23, 2)}  # IP(V6)_MTU_DISCOVER, _DO
REPORT_ERRORS = {4: (socket.IPPROTO_IP, 11, 1), 6: (socket.IPPROTO_IPV6, 25, 1)}  # IP(V6)_RECVERR
RECVTTL = 12  # linux/in.h
kinds = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def opened(
    namespace: Namespace, family: int, kind: int, address: str | None = None, port: int = 0
) -> contextlib.closing[socket.socket]:
    """A socket with a timeout, bound (TCP: and listening) if an address is given."""
    made = namespace.socket(family_of(CLIENT[family]), kind)
    made.settimeout(10)
    if address is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen()
    return contextlib.closing(made)


def receive(sock: socket.socket, size: int) -> bytes:
    """This number of bytes, or fewer if the stream ends."""
    received = bytearray()
    while len(received) < size and (part := sock.recv(65536)):
        received += part
    return bytes(received)


def gateway_mac(lab: Lab) -> str:
    said = lab.gw.run("ip", "-j", "link", "show", "dev", "in0").stdout
    return str(json.loads(said)[0]["address"])


def fragments(lab: Lab, family: int, port: int, payload: bytes, number: int) -> list[bytes]:
    """The frames of one datagram to origin1, in fragments of at most 1,000 bytes."""
    from scapy.layers.inet import IP, UDP, fragment
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
    from scapy.layers.l2 import Ether
    from scapy.packet import raw

    ethernet = Ether(dst=gateway_mac(lab), src="02:00:00:00:00:01")
    udp = UDP(sport=port, dport=PORT) / payload
    if family == 4:
        pieces = fragment(IP(src=CLIENT[4], dst=ORIGIN1[4], id=number) / udp, fragsize=1000)
    else:
        whole = IPv6(src=CLIENT[6], dst=ORIGIN1[6]) / IPv6ExtHdrFragment(id=number) / udp
        # scapy computes the checksum only of a whole datagram.
        pieces = fragment6(IPv6(raw(whole)), 1062)
    return [raw(ethernet / piece) for piece in pieces]


@pytest.mark.rfc4787_req14
@families
@pytest.mark.parametrize("order", ["forwards", "backwards", "interleaved", "first in the middle"])
def test_fragments_arrive_whole_and_from_the_right_address(
    enforced: LabGateway, family: int, order: str
) -> None:
    lab = enforced.lab
    with (
        opened(lab.origin1, family, socket.SOCK_DGRAM, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, socket.SOCK_DGRAM, CLIENT[family]) as one,
        opened(lab.client, family, socket.SOCK_DGRAM, CLIENT[family]) as two,
    ):
        sent = [os.urandom(4500), os.urandom(3700)]
        cut = [
            fragments(lab, family, client.getsockname()[1], payload, number)
            for number, (client, payload) in enumerate(zip((one, two), sent, strict=True), 1000)
        ]
        assert len(cut[0]) >= 4
        if order == "backwards":
            frames = cut[0][::-1] + cut[1][::-1]
        elif order == "interleaved":
            a, b = cut[0], cut[1][::-1]
            frames = [frame for pair in zip(a, b, strict=False) for frame in pair] + a[len(b) :] + b[len(a) :]
        elif order == "first in the middle":
            frames = [part for each in cut for part in (*each[1:3], each[0], *each[3:])]
        else:
            frames = cut[0] + cut[1]
        inject(lab, frames)
        received = {}
        for _ in sent:
            payload, peer = server.recvfrom(65536)
            assert peer[0] == leaves_from(LAX1, family)
            received[payload] = peer
            server.sendto(payload, peer)  # the answer is fragmented as well
        assert set(received) == set(sent)
        for client, payload in zip((one, two), sent, strict=True):
            assert client.recv(65536) == payload


@families
def test_big_datagrams_of_a_real_stack(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        opened(lab.origin1, family, socket.SOCK_DGRAM, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, socket.SOCK_DGRAM, CLIENT[family]) as client,
    ):
        for size in (1472, 1473, 8000, 60_000):
            payload = os.urandom(size)
            client.sendto(payload, (ORIGIN1[family], PORT))
            received, peer = server.recvfrom(65536)
            assert (received == payload, peer[0]) == (True, leaves_from(LAX1, family))
            server.sendto(payload, peer)
            assert client.recv(65536) == payload
    agree(enforced)


# IPv4: no-operation; record route with room for one. IPv6: padding as an extension header.
OPTIONS = {
    "IPv4 no operation": (4, socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1, 1, 1, 0])),
    "IPv4 record route": (4, socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 7, 4, 0, 0, 0, 0, 0])),
    "IPv6 hop-by-hop": (6, socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0])),
    "IPv6 destination": (6, socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0])),
}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@kinds
def test_ip_options_pass(enforced: LabGateway, kind: int, option: tuple[int, int, int, bytes]) -> None:
    lab = enforced.lab
    family, level, name, value = option
    with (
        opened(lab.origin1, family, kind, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, kind) as client,
        Capture(lab.net, "gw0", lab.directory, expression=f"ip{'' if family == 4 else 6}") as wire,
    ):
        client.setsockopt(level, name, value)
        client.connect((ORIGIN1[family], PORT))
        if kind == socket.SOCK_STREAM:
            accepted, peer = server.accept()
            accepted.settimeout(10)
            with accepted:
                client.sendall(b"x" * 3000)
                assert receive(accepted, 3000) == b"x" * 3000
        else:
            client.send(b"x")
            _, peer = server.recvfrom(16)
        assert peer[0] == leaves_from(LAX1, family)
    # The header with options or extension arrives unchanged.
    own = socket.inet_pton(family_of(peer[0]), peer[0])
    frames = [frame for frame in wire.frames() if own in frame[14:54] and frame.find(own) < 40]
    assert frames
    assert any(frame[14] & 15 > 5 if family == 4 else frame[20] in (0, 60) for frame in frames)
    agree(enforced)


@pytest.mark.rfc5508_req10d
@families
def test_what_a_router_must_do_to_a_header(enforced: LabGateway, family: int) -> None:
    """Each router decrements the hop limit, and the traffic class stays (RFC 2474, RFC 3168)."""
    lab = enforced.lab
    with (
        opened(lab.origin1, family, socket.SOCK_DGRAM, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, socket.SOCK_DGRAM) as client,
    ):
        if family == 4:
            server.setsockopt(socket.IPPROTO_IP, RECVTTL, 1)
            server.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xBA)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
        else:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xBA)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 9)
        client.sendto(b"x", (ORIGIN1[family], PORT))
        _, ancillary, _, peer = server.recvmsg(16, 256)
        assert peer[0] == leaves_from(LAX1, family)
        assert sorted(data[0] for _, _, data in ancillary) == [9 - 2, 0xBA]


@families
def test_a_hop_limit_of_1_ends_here_and_is_not_admitted(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    before = packets(enforced)["ttl"]
    assert ttl_probe(lab.client, ORIGIN1[family], 1, PORT + 1) == IcmpError(
        GATEWAY[family], *TIME_EXCEEDED[family]
    )
    with opened(lab.client, family, socket.SOCK_STREAM) as client:
        level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        client.setsockopt(level, socket.IP_TTL if family == 4 else socket.IPV6_UNICAST_HOPS, 1)
        with pytest.raises(OSError, match=r"No route|unreachable|timed out"):
            client.connect((ORIGIN1[family], PORT + 1))
    assert packets(enforced)["ttl"] >= before + 2
    known = {(row["origin_ip"], row["origin_port"]) for row in origins(enforced)}
    assert (ORIGIN1[family], PORT + 1) not in known
    assert ttl_probe(lab.client, ORIGIN1[family], 2, PORT + 1) is not None
    assert agree(enforced)[Origin(leaves_from(LAX1, family), "udp", ORIGIN1[family], PORT + 1)] == 1


@families
def test_an_answer_whose_hops_are_used_up_is_reported_to_the_origin(
    enforced: LabGateway, family: int
) -> None:
    """The header inside the error has the egress address, as the origin knows the flow."""
    lab = enforced.lab
    level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
    with (
        opened(lab.origin1, family, socket.SOCK_DGRAM, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, socket.SOCK_DGRAM) as client,
    ):
        client.sendto(b"x", (ORIGIN1[family], PORT))
        peer = server.recvfrom(16)[1]
        server.setsockopt(*REPORT_ERRORS[family])
        server.setsockopt(level, socket.IP_TTL if family == 4 else socket.IPV6_UNICAST_HOPS, 2)
        server.connect(peer)
        server.send(b"y")
        with pytest.raises(OSError, match=r"No route|unreachable"):
            server.recv(16)
        error, offender = read_error(server)
        assert (error.kind, error.code) == TIME_EXCEEDED[family]
        assert offender in (leaves_from(LAX1, family), SHARED[family])


def read_error(sock: socket.socket) -> tuple[IcmpError, str]:
    """The oldest ICMP error that the kernel matched to this socket, and its sender."""
    _, ancillary, _, _ = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    data = ancillary[0][2]
    _, _, kind, code, _, info, _ = struct.unpack_from("=IBBBBII", data)
    v4 = sock.family == socket.AF_INET
    offender = socket.inet_ntop(sock.family, data[20:24] if v4 else data[24:40])
    return IcmpError(offender, kind, code, info), offender


@contextlib.contextmanager
def mtu(lab: Lab, size: int, *ends: tuple[str, str]) -> Iterator[None]:
    """Reduce the MTU of these links."""
    for role, interface in ends:
        lab.namespaces[role].ip(f"link set {interface} mtu {size}")
    try:
        yield
    finally:
        for role, interface in ends:
            lab.namespaces[role].ip(f"link set {interface} mtu 1500")
        for host in (lab.client, lab.origin1, lab.origin2):
            for version in ("-4", "-6"):
                host.run("ip", version, "route", "flush", "cache")


BEHIND = (("net", "origin2"),)  # on the internet; from origin2's own end TCP would learn the MSS
OUTSIDE = (("gw", "out0"), ("net", "gw0"))  # the gateway's own link


@pytest.mark.rfc4787_req13
@families
@pytest.mark.parametrize("ends", [BEHIND, OUTSIDE], ids=["behind", "outside"])
@pytest.mark.parametrize("size", [1280, 1400])
def test_a_smaller_mtu_is_found_by_udp(
    enforced: LabGateway, family: int, ends: tuple[tuple[str, str], ...], size: int
) -> None:
    lab = enforced.lab
    offender = (
        GATEWAY[family] if ends is OUTSIDE else "198.51.100.254" if family == 4 else "2001:db8:ffff::fe"
    )
    with mtu(lab, size, *ends), UdpFlow(lab.client, ORIGIN2[family], dont_fragment=True) as flow:
        with pytest.raises(OSError, match="Message too long"):
            flow.ask(bytes(1450))
        assert flow.error() == IcmpError(offender, *TOO_BIG[family], mtu=size)
        headers = 28 if family == 4 else 48
        assert flow.ask(bytes(size - headers)).address in leaving(family)


def leaving(family: int) -> set[str]:
    return {leaves_from(LAX1, family), leaves_from(LAX2, family)}


@pytest.mark.rfc5382_req9
@families
@pytest.mark.parametrize("ends", [BEHIND, OUTSIDE], ids=["behind", "outside"])
def test_a_smaller_mtu_is_found_by_tcp(
    enforced: LabGateway, family: int, ends: tuple[tuple[str, str], ...]
) -> None:
    with mtu(enforced.lab, 1300, *ends):
        assert transfer(enforced.lab, family, "origin2", ORIGIN2[family]) in leaving(family)
        assert learnt(enforced.lab.client, ORIGIN2[family]) == 1300


@pytest.mark.rfc4787_req13a
@families
def test_a_packet_that_may_be_cut_is_cut(enforced: LabGateway, family: int) -> None:
    """The gateway fragments in IPv4; in IPv6 the sender does after a "packet too big"."""
    lab = enforced.lab
    with (
        mtu(lab, 1300, *OUTSIDE),
        opened(lab.origin1, family, socket.SOCK_DGRAM, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, socket.SOCK_DGRAM) as client,
    ):
        if family == 4:
            client.setsockopt(socket.IPPROTO_IP, DO_NOT_FRAGMENT[4][1], 0)
        payload = os.urandom(1450)
        if family == 6:
            client.sendto(payload, (ORIGIN1[6], PORT))
            wait_for(lambda: learnt(lab.client, ORIGIN1[6]) == 1300)
        client.sendto(payload, (ORIGIN1[family], PORT))
        received, peer = server.recvfrom(65536)
        assert (received == payload, peer[0]) == (True, leaves_from(LAX1, family))


INSIDE = (("gw", "in0"), ("client", "eth0"))


@families
def test_an_origin_learns_of_a_smaller_mtu_inside(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        mtu(lab, 1300, *INSIDE),
        opened(lab.origin1, family, socket.SOCK_DGRAM, ORIGIN1[family], PORT) as server,
        opened(lab.client, family, socket.SOCK_DGRAM) as client,
    ):
        client.sendto(b"x", (ORIGIN1[family], PORT))
        peer = server.recvfrom(16)[1]
        server.setsockopt(*REPORT_ERRORS[family])
        server.setsockopt(*DO_NOT_FRAGMENT[family])
        server.connect(peer)
        server.send(bytes(1450))
        with pytest.raises(OSError, match="Message too long"):
            server.recv(16)
        error, _ = read_error(server)
        assert (error.kind, error.code, error.mtu) == (*TOO_BIG[family], 1300)
        server.send(bytes(1200))
        assert client.recv(2000) == bytes(1200)


@families
def test_a_download_over_a_smaller_mtu_inside(enforced: LabGateway, family: int) -> None:
    """The client advertises a large MSS, as a client behind another small link would."""
    lab = enforced.lab
    router = "10.0.1.1" if family == 4 else "fd00:1::1"
    lab.client.ip(f"route change default via {router} advmss {1460 if family == 4 else 1440}")
    try:
        with mtu(lab, 1300, *INSIDE):
            peer = transfer(lab, family, "origin1", ORIGIN1[family])
            assert learnt(lab.origin1, peer) == 1300
    finally:
        lab.client.ip(f"route change default via {router}")


def learnt(namespace: Namespace, destination: str) -> int | None:
    """The path MTU that a host has learnt; None without one."""
    (route,) = json.loads(namespace.run("ip", "-j", "route", "get", destination).stdout)
    found = [metrics["mtu"] for metrics in route.get("metrics", []) if "mtu" in metrics]
    return int(found[0]) if found else None


def transfer(lab: Lab, family: int, role: str, address: str, size: int = 500_000) -> str:
    """Send the same bytes there and back over one connection; returns the source that the origin saw."""
    payload = os.urandom(size)
    seen: list[str] = []
    with opened(lab.namespaces[role], family, socket.SOCK_STREAM, address, PORT) as server:

        def serve() -> None:
            connection, peer = server.accept()
            with connection:
                connection.settimeout(20)
                seen.append(peer[0])
                connection.sendall(receive(connection, size))

        thread = threading.Thread(target=serve)
        thread.start()
        with opened(lab.client, family, socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.connect((address, PORT))
            client.sendall(payload)
            back = receive(client, size)
        thread.join()
    assert hashlib.sha256(back).digest() == hashlib.sha256(payload).digest()
    return seen[0]


@families
def test_with_offloads_and_without(enforced: LabGateway, services: Services, family: int) -> None:
    lab = enforced.lab
    try:
        for on in (False, True):
            for role, interface in LINKS:
                lab.namespaces[role].offload(interface, on)
            assert transfer(lab, family, "origin1", ORIGIN1[family], 3_000_000) == leaves_from(LAX1, family)
            assert udp_ask(lab.client, ORIGIN1[family]).address == leaves_from(LAX1, family)
            assert curl(lab.client, url(ORIGIN1[family], 443, "https"))[0] == 200
            assert services.iperf["origin1"].measure(lab.client, ORIGIN1[family], "-R")
            agree(enforced)
        # Mixed settings force the kernel to complete checksums on the path.
        for number, (role, interface) in enumerate(LINKS):
            lab.namespaces[role].offload(interface, bool(number % 2))
        assert transfer(lab, family, "origin1", ORIGIN1[family], 1_000_000)
        assert udp_ask(lab.client, ORIGIN1[family], 9000).address == leaves_from(LAX1, family)
    finally:
        for role, interface in LINKS:
            lab.namespaces[role].offload(interface, True)


@families
def test_an_on_link_range_is_answered_for(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    try:
        enforced.reload(with_near(lab, on_link=False))
        if family == 6:
            with pytest.raises(TimeoutError):
                tcp_ask(lab.client, ORIGIN2[6], timeout=2)
        else:
            assert tcp_ask(lab.client, ORIGIN2[4]).address == NEAR[4]  # ARP works without on_link
        before = packets(enforced)["neighbour"]
        enforced.reload(with_near(lab, on_link=True))
        lab.net.ip("neigh flush dev gw0")
        for host in (2, 3):
            source = f"10.0.1.{host}" if family == 4 else f"fd00:1::{host}"
            seen = tcp_ask(lab.client, ORIGIN2[family], source=source)
            assert seen.address == leaves_from(NEAR, family, source)
        assert (packets(enforced)["neighbour"] > before) == (family == 6)
        # The gateway must not answer for unassigned addresses.
        with Capture(lab.net, "gw0", lab.directory, expression="icmp6", direction="in", snap=200) as answers:
            lab.net.run("ping", "-c", "1", "-W", "1", "2001:db8:8::5", check=False)
            lab.net.run("ping", "-c", "1", "-W", "1", "2001:db8:9::7", check=False)
        advertised = {frame[62:78] for frame in answers.frames() if frame[54] == 136}
        assert socket.inet_pton(socket.AF_INET6, "2001:db8:8::5") not in advertised
        assert socket.inet_pton(socket.AF_INET6, "2001:db8:9::7") in advertised
    finally:
        enforced.reload(lab.config())
    if family == 6:
        lab.net.ip("neigh flush dev gw0")
        assert lab.net.run("ping", "-c", "1", "-W", "1", "2001:db8:9::7", check=False).returncode


@families
def test_what_was_taken_away_is_not_answered_for(enforced: LabGateway, family: int) -> None:
    """Another gateway may have the address."""
    lab, address = enforced.lab, {4: NEAR[4], 6: "2001:db8:9::7"}[family]

    def answers() -> bool:
        lab.net.ip("neigh flush dev gw0")
        lab.net.run("ping", "-c", "1", "-W", "1", address, check=False)
        return "lladdr" in lab.net.run("ip", "neigh", "show", address, "dev", "gw0").stdout

    what = {4: f"addr {{}} {NEAR[4]}/32 dev out0", 6: f"route {{}} local {NEAR[6]} dev lo table local"}[
        family
    ]
    try:
        enforced.reload(with_near(lab, on_link=True))
        assert answers()
        said = len(enforced.said())
        lab.gw.ip(what.format("del"))
        wait_for(lambda: f"egress near: IPv{family} unavailable" in enforced.said()[said:])
        assert not answers()
        lab.gw.ip(what.format("add"))
        wait_for(lambda: "egress near: available" in enforced.said()[said:])
        assert answers()
    finally:
        enforced.reload(lab.config())
        # The test added it by hand, so the enforcer does not remove it.
        lab.gw.run("ip", *what.format("del").split(), check=False)


def announced(capture: Capture) -> set[str]:
    """The addresses that ARP announcements contain (RFC 5227, 3: sender and target are equal)."""
    return {
        str(IPv4Address(frame[28:32]))
        for frame in capture.frames()
        if frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42]
    }


def test_addresses_are_announced_when_they_are_taken(enforced: LabGateway) -> None:
    """Covers the start and a reload. The start may also announce the interface's own address."""
    lab = enforced.lab
    enforced.down()
    with Capture(lab.net, "gw0", lab.directory, expression="arp", direction="in") as wire:
        enforced.start()
    assert {LAX1[4], LAX2[4]} <= announced(wire) <= {LAX1[4], LAX2[4], SHARED[4]}
    with Capture(lab.net, "gw0", lab.directory, expression="arp", direction="in") as wire:
        enforced.reload(with_near(lab, on_link=False))
    assert NEAR[4] in announced(wire)
    enforced.reload(lab.config())
    assert tcp_ask(lab.client, ORIGIN1[4]).address == LAX1[4]
