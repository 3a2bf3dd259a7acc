"""Tests of RFC 5508, requirements for NAT of ICMP; see docs/rfc-compliance.md."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from messages import (
    ECHO_REQUEST,
    ICMP,
    PARAMETER_PROBLEM,
    PORT_UNREACHABLE,
    TIME_EXCEEDED,
    age,
    datagrams,
    entries,
    entry,
    icmp,
    packet,
    send,
)
from truth import families, leaves_from, packets, running, wait_for

from lab.capture import Capture
from lab.clients import family_of
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.servers import Seen
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, ORIGIN2, SHARED, Lab

UDP = socket.IPPROTO_UDP
PORT = 9500
MESSAGES = "icmp or (icmp6 and (ip6[40] < 130 or ip6[40] > 137))"  # without neighbour discovery
ONE_HOP = {
    4: (socket.IPPROTO_IP, socket.IP_TTL, 1),
    6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1),
}
START = {4: 14 + 20, 6: 14 + 40}  # offset of the ICMP header in a frame


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


@pytest.fixture
def flow(lab: Lab, family: int) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """A client's UDP socket, and its translated address and port; both ends have sent."""
    with (
        datagrams(lab.client, CLIENT[family]) as client,
        datagrams(lab.origin1, ORIGIN1[family], PORT) as origin,
    ):
        client.sendto(b"x", (ORIGIN1[family], PORT))
        peer = origin.recvfrom(16)[1][:2]
        origin.sendto(b"y", peer)
        assert client.recv(16) == b"y"
        yield client, peer


def inside(lab: Lab, role: str = "client") -> Capture:
    """A capture of the ICMP messages that reach the client."""
    return Capture(lab.namespaces[role], "eth0", lab.directory, expression=MESSAGES, direction="in", snap=512)


def outside(lab: Lab) -> Capture:
    """A capture of the ICMP messages that the gateway sends outside."""
    return Capture(lab.net, "gw0", lab.directory, expression=MESSAGES, direction="in", snap=512)


def kinds(capture: Capture, family: int, wanted: int = 0) -> list[tuple[int, int]]:
    """Type and code of the captured messages, after ``wanted`` arrived. The last message sent must pass."""
    wait_for(lambda: len(list(capture.frames())) >= wanted, f"{wanted} messages")
    capture.stop()
    return [(frame[START[family]], frame[START[family] + 1]) for frame in capture.frames()]


def quoted(peer: tuple[str, int], family: int, **fields: object) -> bytes:
    """The packet that the origin received, as an ICMP error quotes it."""
    from scapy.layers.inet import UDP as Udp

    return packet(peer[0], ORIGIN1[family], Udp(sport=peer[1], dport=PORT) / b"x", **fields)


def answer_quoted(client: socket.socket, family: int, **fields: object) -> bytes:
    """The packet that the client received from the origin, as an ICMP error quotes it."""
    from scapy.layers.inet import UDP as Udp

    header = Udp(sport=PORT, dport=client.getsockname()[1])
    return packet(ORIGIN1[family], CLIENT[family], header / b"y", **fields)


def echo(family: int, number: int, destination: str) -> bytes:
    return icmp(CLIENT[family], destination, ECHO_REQUEST[family], b"abcdefgh", rest=number << 16 | 1)


@families
def test_rfc5508_req1a_an_identifier_is_for_one_host(
    enforced: LabGateway, services: Services, family: int
) -> None:
    """The same identifier towards two hosts gets independent random identifiers."""
    lab = enforced.lab
    for number in range(700, 704):
        send(lab.client, echo(family, number, ORIGIN1[family]), echo(family, number, ORIGIN2[family]))
    pairs = {}
    for role in ("origin1", "origin2"):
        wait_for(lambda role=role: len(_echoes(services, role, family)) >= 4, "four echo requests")
        pairs[role] = [seen.peer_port for seen in _echoes(services, role, family)[-4:]]
    assert pairs["origin1"] != pairs["origin2"]
    # The answers have the client's own identifier.
    for number in range(700, 704):
        found = entries(lab, ICMP[family], CLIENT[family], number)
        assert len(found) == 2


def _echoes(services: Services, role: str, family: int) -> list[Seen]:
    return [seen for seen in services.reporter[role].seen("icmp") if seen.address == SHARED[family]]


@families
def test_rfc5508_req3_a_wrong_checksum_is_dropped(
    enforced: LabGateway, flow: tuple[socket.socket, tuple[str, int]], family: int
) -> None:
    lab, (client, peer) = enforced.lab, flow
    what = PORT_UNREACHABLE[family]
    with inside(lab) as got, outside(lab) as sent:
        for broken in (True, False):
            send(lab.origin1, icmp(ORIGIN1[family], peer[0], what, quoted(peer, family), broken=broken))
            body = answer_quoted(client, family)
            send(lab.client, icmp(CLIENT[family], ORIGIN1[family], what, body, broken=broken))
        assert (kinds(got, family, 1), kinds(sent, family, 1)) == ([what], [what])


def test_rfc5508_req3a_the_quoted_headers_checksum_is_not_looked_at(enforced: LabGateway, lab: Lab) -> None:
    """IPv4 only: the IPv6 header has no checksum."""
    with datagrams(lab.client, CLIENT[4]) as client, datagrams(lab.origin1, ORIGIN1[4], PORT) as origin:
        client.sendto(b"x", (ORIGIN1[4], PORT))
        peer = origin.recvfrom(16)[1]
        body = bytearray(quoted(peer, 4))
        body[10] ^= 0x55
        with inside(lab) as got:
            send(lab.origin1, icmp(ORIGIN1[4], peer[0], (3, 3), bytes(body)))
            assert kinds(got, 4, 1) == [(3, 3)]


@pytest.mark.rfc5508_req10b
@families
def test_rfc5508_req3b_options_of_the_quoted_packet_are_passed_over(
    enforced: LabGateway, flow: tuple[socket.socket, tuple[str, int]], family: int
) -> None:
    """Covers IPv4 options and IPv6 extension headers, in the parameter problem that these would cause."""
    from scapy.layers.inet import UDP as Udp
    from scapy.layers.inet import IPOption_RR
    from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN

    lab, (client, peer) = enforced.lab, flow
    header = Udp(sport=peer[1], dport=PORT) / b"x"
    body = (
        packet(peer[0], ORIGIN1[4], header, options=[IPOption_RR(routers=["0.0.0.0"])])
        if family == 4
        else packet(peer[0], ORIGIN1[6], IPv6ExtHdrDestOpt(options=[PadN(optdata=b"abcd")]) / header)
    )
    with inside(lab) as got:
        send(lab.origin1, icmp(ORIGIN1[family], peer[0], PARAMETER_PROBLEM[family], body))
        assert kinds(got, family, 1) == [PARAMETER_PROBLEM[family]]
        (frame,) = got.frames()
    own = socket.inet_pton(family_of(CLIENT[family]), CLIENT[family])
    assert own in frame[START[family] + 8 :]
    assert client.getsockname()[1].to_bytes(2, "big") + PORT.to_bytes(2, "big") in frame[START[family] + 8 :]


@families
def test_rfc5508_req3c_the_quoted_transports_checksum_is_not_looked_at(
    enforced: LabGateway, flow: tuple[socket.socket, tuple[str, int]], family: int
) -> None:
    """Nor does the rest matter: half of the data is missing, and an extension (RFC 4884) follows."""
    lab, (_, peer) = enforced.lab, flow
    body = bytearray(quoted(peer, family))
    body[-2] ^= 0x55  # a byte of the checksum or, with one byte of data behind it, next to it
    padded = bytes(body).ljust(128, b"\0") + bytes.fromhex("2000dfff") + bytes.fromhex("000801010000a000")
    what = TIME_EXCEEDED[family]
    length = 32 << 16 if family == 4 else 16 << 24  # the quotation's, in words of 32 and 64 bits
    with inside(lab) as got:
        send(lab.origin1, icmp(ORIGIN1[family], peer[0], what, padded, rest=length))
        assert kinds(got, family, 1) == [what]
        (frame,) = got.frames()
        assert frame.endswith(bytes.fromhex("000801010000a000"))


@families
def test_rfc5508_req4_an_error_about_no_flow_does_not_enter(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    before = packets(enforced)["unsolicited"]
    peer = leaves_from(LAX1, family), 40_001
    with inside(lab) as got, outside(lab) as answers:
        send(lab.origin1, icmp(ORIGIN1[family], peer[0], PORT_UNREACHABLE[family], quoted(peer, family)))
        wait_for(lambda: packets(enforced)["unsolicited"] > before)
        assert (kinds(got, family), kinds(answers, family)) == ([], [])


@pytest.mark.rfc5508_req5b
@pytest.mark.rfc5508_req5c
@pytest.mark.rfc5508_req5a
@families
def test_rfc5508_req5_an_error_from_inside_leaves_in_the_flows_words(
    enforced: LabGateway, flow: tuple[socket.socket, tuple[str, int]], family: int
) -> None:
    """The sender is the client, or another inside host, as a router on the client's path would be."""
    lab, (client, peer) = enforced.lab, flow
    body = answer_quoted(client, family)
    errors = [PORT_UNREACHABLE[family], TIME_EXCEEDED[family], PARAMETER_PROBLEM[family]]
    with outside(lab) as sent:
        for what in errors:
            send(lab.client, icmp(CLIENT[family], ORIGIN1[family], what, body))
        send(lab.client2, icmp(CLIENT2[family], ORIGIN1[family], TIME_EXCEEDED[family], body))
        assert kinds(sent, family, 4) == [*errors, TIME_EXCEEDED[family]]
        assert sent.sources() == {peer[0]: 4}
        for frame in sent.frames():
            inner = frame[START[family] + 8 :]
            assert inner[(16 if family == 4 else 24) :].startswith(
                socket.inet_pton(family_of(peer[0]), peer[0])
            )
            assert PORT.to_bytes(2, "big") + peer[1].to_bytes(2, "big") in inner


@families
def test_rfc5508_req5_an_error_whose_quotation_has_extension_headers(
    enforced: LabGateway, flow: tuple[socket.socket, tuple[str, int]], family: int
) -> None:
    """In IPv4: options."""
    from scapy.layers.inet import UDP as Udp
    from scapy.layers.inet import IPOption_NOP
    from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop

    lab, (client, peer) = enforced.lab, flow
    content = Udp(sport=PORT, dport=client.getsockname()[1]) / b"y"
    if family == 4:
        body = packet(ORIGIN1[4], CLIENT[4], content, options=[IPOption_NOP()] * 4)
    else:
        body = packet(ORIGIN1[6], CLIENT[6], IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / content)
    with outside(lab) as sent:
        send(lab.client, icmp(CLIENT[family], ORIGIN1[family], TIME_EXCEEDED[family], body))
        assert kinds(sent, family, 1) == [TIME_EXCEEDED[family]]
        assert sent.sources() == {peer[0]: 1}


@families
def test_rfc5508_req5_an_error_from_inside_about_no_flow_does_not_leave(
    enforced: LabGateway, lab: Lab, family: int
) -> None:
    from scapy.layers.inet import UDP as Udp

    before = packets(enforced)["conntrack-invalid"]
    body = packet(ORIGIN1[family], CLIENT[family], Udp(sport=PORT, dport=40_002) / b"y")
    with outside(lab) as sent:
        send(lab.client, icmp(CLIENT[family], ORIGIN1[family], PORT_UNREACHABLE[family], body))
        wait_for(lambda: packets(enforced)["conntrack-invalid"] > before)
        assert kinds(sent, family) == []


@families
def test_rfc5508_req6_an_error_neither_refreshes_nor_ends_a_query(
    enforced: LabGateway, services: Services, family: int
) -> None:
    lab, number = enforced.lab, 800
    send(lab.client, echo(family, number, ORIGIN1[family]))
    wait_for(lambda: entries(lab, ICMP[family], CLIENT[family], number), "an entry")
    asked = entry(lab, ICMP[family], CLIENT[family], number)
    age(lab, asked, 30)
    known = asked.reply.source_port  # the translated identifier
    body = icmp(SHARED[family], ORIGIN1[family], ECHO_REQUEST[family], b"abcdefgh", rest=known << 16 | 1)
    with inside(lab) as got:
        send(lab.origin1, icmp(ORIGIN1[family], SHARED[family], TIME_EXCEEDED[family], body))
        assert kinds(got, family, 1) == [TIME_EXCEEDED[family]]
    after = entry(lab, ICMP[family], CLIENT[family], number)
    assert (after.original, after.reply) == (asked.original, asked.reply)
    assert 20 < after.timeout <= 30


def test_rfc5508_req10b_timestamps_pass(enforced: LabGateway, services: Services) -> None:
    """IPv4 only: ICMPv6 has no timestamps."""
    with inside(enforced.lab) as got:
        send(enforced.lab.client, icmp(CLIENT[4], ORIGIN1[4], (13, 0), bytes(12), rest=900 << 16 | 1))
        assert kinds(got, 4, 1) == [(14, 0)]
        (frame,) = got.frames()
    assert frame[START[4] + 4 : START[4] + 6] == (900).to_bytes(2, "big")


def test_rfc5508_req10c_what_is_obsolete_gets_no_answer(enforced: LabGateway) -> None:
    """IPv4 only: ICMPv6 has no information requests."""
    with inside(enforced.lab) as got:
        send(enforced.lab.client, icmp(CLIENT[4], GATEWAY[4], (15, 0), b"", rest=901 << 16 | 1))
        send(enforced.lab.client, echo(4, 901, GATEWAY[4]))
        assert kinds(got, 4, 1) == [(0, 0)]


@families
def test_rfc5508_req10d_errors_of_the_gateway_are_marked_as_control(
    enforced: LabGateway, family: int
) -> None:
    """IPv4: class selector 6 (RFC 1812, 4.3.2.5). Linux leaves ICMPv6 errors at the default."""
    lab = enforced.lab
    with inside(lab) as got, datagrams(lab.client, CLIENT[family]) as sock:
        sock.setsockopt(*ONE_HOP[family])
        sock.sendto(b"x", (ORIGIN1[family], PORT))
        assert kinds(got, family, 1) == [TIME_EXCEEDED[family]]
        (frame,) = got.frames()
    field = frame[15] if family == 4 else int.from_bytes(frame[14:16], "big") >> 4 & 0xFF
    assert field == (0xC0 if family == 4 else 0)


@families
def test_rfc5508_req10e_errors_are_not_answered_with_errors(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    hops: dict[str, object] = {"ttl": 1} if family == 4 else {"hlim": 1}
    with inside(lab) as got, datagrams(lab.client, CLIENT[family]) as sock:
        body = answer_quoted(sock, family)
        send(lab.client, icmp(CLIENT[family], ORIGIN1[family], PORT_UNREACHABLE[family], body, **hops))
        query = icmp(CLIENT[family], ORIGIN1[family], ECHO_REQUEST[family], b"", rest=902 << 16 | 1, **hops)
        send(lab.client, query)
        assert kinds(got, family, 1) == [TIME_EXCEEDED[family]]


@families
def test_rfc5508_req10f_errors_are_limited(enforced: LabGateway, family: int) -> None:
    """After a burst of six the kernel sends one error per host in each interval of its setting.

    The default is 1,000 ms; the lab disables the limit in other tests.
    """
    lab = enforced.lab
    setting = "net.ipv4.icmp_ratelimit" if family == 4 else "net.ipv6.icmp.ratelimit"
    lab.gw.sysctl(setting, 100)
    try:
        time.sleep(0.3)  # lets three errors of the burst accumulate
        with inside(lab) as got, datagrams(lab.client, CLIENT[family]) as sock:
            sock.setsockopt(*ONE_HOP[family])
            for _ in range(100):
                sock.sendto(b"x", (ORIGIN1[family], PORT))
            time.sleep(0.2)
            assert 1 <= len(kinds(got, family)) <= 15
    finally:
        lab.gw.sysctl(setting, 0)


@families
def test_rfc5508_req11_other_messages_do_not_leave(enforced: LabGateway, family: int) -> None:
    """Router solicitation, Photuris, experiments (RFC 4727), and their counterparts in ICMPv6."""
    lab = enforced.lab
    others = [(10, 0), (40, 0), (253, 0)] if family == 4 else [(133, 0), (155, 0), (200, 0)]
    before = packets(enforced)["conntrack-invalid"]
    with Capture(
        lab.net, "gw0", lab.directory, expression=f"dst host {ORIGIN1[family]}", direction="in"
    ) as sent:
        for what in others:
            send(lab.client, icmp(CLIENT[family], ORIGIN1[family], what, bytes(8)))
        wait_for(lambda: packets(enforced)["conntrack-invalid"] >= before + 3, "dropped")
        sent.stop()
    assert not list(sent.frames())
