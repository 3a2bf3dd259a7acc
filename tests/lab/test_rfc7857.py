"""Tests of RFC 7857, updates to the NAT requirements; see docs/rfc-compliance.md."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterator

import pytest
from messages import PORT_UNREACHABLE, age, datagrams, entries, entry, icmp, packet, send
from truth import families, inject, leaves_from, running, wait_for

from enforcer.kernel import conntrack
from lab.capture import Capture
from lab.clients import Session, tcp_ask
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.load import Hammer, Holders
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, Lab

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
PORT = 9600


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def states(lab: Lab, family: int, port: int) -> set[str]:
    return {flow.state for flow in entries(lab, TCP, CLIENT[family], port, 9000)}


@families
def test_rfc7857_2_2_a_reset_is_passed_on_for_four_minutes(enforced: LabGateway, family: int) -> None:
    """The first reset may be lost: a repeated one still leaves with the connection's address and port."""
    from scapy.layers.inet import TCP as Tcp

    lab = enforced.lab
    resets = "tcp[tcpflags] & tcp-rst != 0" if family == 4 else "ip6[6] = 6 and ip6[53] & 4 != 0"
    with (
        Capture(lab.client, "eth0", lab.directory, expression=resets, direction="out") as sent,
        Capture(lab.net, "gw0", lab.directory, expression=resets, direction="in") as outside,
    ):
        session = Session(lab.client, ORIGIN1[family])
        port = session.socket.getsockname()[1]
        session.ask()
        session.reset()
        wait_for(lambda: states(lab, family, port) == {"CLOSE"}, "closed")
        flow = entry(lab, TCP, CLIENT[family], port, 9000)
        assert flow.timeout >= 235
        sent.stop()
        (reset,) = [frame for frame in sent.packets() if frame[Tcp].sport == port]
        del reset[Tcp].chksum  # captured before checksum offload filled it in
        inject(lab, [bytes(reset)])
        wait_for(lambda: len(list(outside.frames())) >= 2, "the second")
        outside.stop()
        seen = {(each[Tcp].sport, each[Tcp].underlayer.src) for each in outside.packets()}
    assert seen == {(session.seen.peer_port, session.seen.address)}
    assert entry(lab, TCP, CLIENT[family], port, 9000).timeout >= 235


@pytest.mark.rfc6888_req13
@families
def test_rfc7857_3_one_port_serves_several_origins(enforced: LabGateway, family: int) -> None:
    """Twice 1,500 random ports of 64,512: some 35 are expected to occur in both sets."""
    lab = enforced.lab
    with contextlib.ExitStack() as stack:
        used = []
        for port in (PORT, PORT + 1):
            holders = stack.enter_context(Holders(lab.origin1, port, capacity=1500))
            hammer = stack.enter_context(
                Hammer(lab.client, ORIGIN1[family], port, sources=[CLIENT[family]], capacity=1500)
            )
            assert hammer.open(1500).opened == 1500
            assert hammer.probe().answered == 1500  # the origin has accepted the last one, too
            used.append(set(holders.peers()))
            assert len(used[-1]) == 1500
        assert {address for each in used for address, _ in each} == {leaves_from(LAX1, family)}
        assert used[0] & used[1]
        hammer.reset(1500)


@families
def test_rfc7857_7_1_an_error_or_a_reset_does_not_refresh(enforced: LabGateway, family: int) -> None:
    """A client's error leaves its flow's entry unchanged; a reset shortens its timeout."""
    from scapy.layers.inet import UDP as Udp

    lab = enforced.lab
    with (
        datagrams(lab.client, CLIENT[family]) as client,
        datagrams(lab.origin1, ORIGIN1[family], PORT) as origin,
    ):
        client.sendto(b"x", (ORIGIN1[family], PORT))
        origin.recv(16)
        flow = entry(lab, UDP, CLIENT[family], client.getsockname()[1], PORT)
        age(lab, flow, 30)
        body = packet(
            ORIGIN1[family], CLIENT[family], Udp(sport=PORT, dport=flow.original.source_port) / b"y"
        )
        with Capture(lab.net, "gw0", lab.directory, expression="icmp or icmp6", direction="in") as outside:
            send(lab.client, icmp(CLIENT[family], ORIGIN1[family], PORT_UNREACHABLE[family], body))
            wait_for(lambda: outside.sources().total() > 0, "the error")
        assert 20 < entry(lab, UDP, CLIENT[family], flow.original.source_port, PORT).timeout <= 30
    with Session(lab.client, ORIGIN1[family]) as session:
        port = session.socket.getsockname()[1]
        before = entry(lab, TCP, CLIENT[family], port, 9000).timeout
        session.reset()
    wait_for(lambda: states(lab, family, port) == {"CLOSE"}, "closed")
    assert entry(lab, TCP, CLIENT[family], port, 9000).timeout <= 250 < before


@pytest.mark.rfc6888_req15
@families
def test_rfc7857_9_ports_are_chosen_at_random(enforced: LabGateway, family: int) -> None:
    """400 flows from consecutive ports: ports spread over the whole range, none is kept, no step repeats."""
    lab = enforced.lab
    with (
        Holders(lab.origin1, PORT, capacity=400) as holders,
        Hammer(
            lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], protocol="udp", capacity=400
        ) as hammer,
    ):
        assert hammer.open(400).opened == 400
        ports = [port for _, port in holders.peers("udp")]
        pairs = {
            (flow.original.source_port, flow.reply.destination_port)
            for flow in entries(lab, UDP, CLIENT[family], to=PORT)
        }
    assert len(set(ports)) == 400
    assert min(ports) >= 1024
    # Each eighth of the range has a port; by chance one stays empty in 1 of 10^22 cases.
    assert {(port - 1024) * 8 // 64512 for port in ports} == set(range(8))
    assert sum(one == other for one, other in pairs) < 5
    in_order = [outside for _, outside in sorted(pairs)]
    steps = [later - earlier for earlier, later in itertools.pairwise(in_order)]
    assert len(set(steps)) > 350


@families
def test_rfc7857_10_equal_identifications_meet_no_confusion_at_the_gateway(
    enforced: LabGateway, family: int
) -> None:
    """Two clients share an address and send fragmented datagrams with one identification at the same time.

    The gateway keeps the identification and sends the fragments of each datagram consecutively.
    """
    from scapy.layers.inet import IP, fragment
    from scapy.layers.inet import UDP as Udp
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
    from scapy.layers.l2 import Ether

    lab = enforced.lab
    payloads = {CLIENT[family]: os.urandom(2500), CLIENT2[family]: os.urandom(2500)}
    cut = []
    for index, (client, payload) in enumerate(payloads.items()):
        macs = json.loads(lab.gw.run("ip", "-j", "link", "show", "dev", f"in{index}").stdout)
        ethernet = Ether(dst=macs[0]["address"], src="02:00:00:00:00:01")
        udp = Udp(sport=7000, dport=PORT) / payload
        if family == 4:
            pieces = fragment(IP(src=client, dst=ORIGIN1[4], id=4711) / udp, fragsize=1000)
        else:
            whole = IPv6(src=client, dst=ORIGIN1[6]) / IPv6ExtHdrFragment(id=4711) / udp
            pieces = fragment6(IPv6(bytes(whole)), 1062)
        cut.append([bytes(ethernet / piece) for piece in pieces])
    with datagrams(lab.origin1, ORIGIN1[family], PORT) as origin, contextlib.ExitStack() as stack:
        wires = [
            stack.enter_context(contextlib.closing(each.socket(socket.AF_PACKET, socket.SOCK_RAW)))
            for each in (lab.client, lab.client2)
        ]
        for wire in wires:
            wire.bind(("eth0", 0))
        for pieces in zip(*cut, strict=True):
            for wire, frame in zip(wires, pieces, strict=True):
                wire.send(frame)
        received = [origin.recvfrom(4000) for _ in payloads]
    assert {payload for payload, _ in received} == set(payloads.values())
    assert {peer[0] for _, peer in received} == {leaves_from(LAX1, family)}


@families
def test_rfc7857_11_a_querys_mapping_ends_with_it(enforced: LabGateway, family: int) -> None:
    """A query's conntrack entry is its mapping; the next query gets another identifier."""
    lab, kind = enforced.lab, (8, 0) if family == 4 else (128, 0)
    query = icmp(CLIENT[family], ORIGIN1[family], kind, b"abcd", rest=950 << 16 | 1)
    identifiers = set()
    for _ in range(3):
        send(lab.client, query)
        wait_for(lambda: entries(lab, ICMP[family], CLIENT[family], 950), "an entry")
        flow = entry(lab, ICMP[family], CLIENT[family], 950)
        identifiers.add(flow.reply.source_port)
        assert lab.gw.call(lambda flow=flow: conntrack.delete([flow.original])) == 1
    assert len(identifiers) > 1
    assert tcp_ask(lab.client, ORIGIN1[family]).address == leaves_from(LAX1, family)
