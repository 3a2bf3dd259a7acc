"""Tests of RFC 5382, requirements for NAT of TCP; see docs/rfc-compliance.md."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from messages import ERRORS, about, entry, icmp, packet, send
from truth import agree, families, leaves_from, packets, running, wait_for

from lab.capture import Capture
from lab.clients import Session, family_of, tcp_ask
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, RESOLVER, Lab

TCP = socket.IPPROTO_TCP
PORT = 9400


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def stream(namespace: Namespace, address: str, port: int = 0) -> socket.socket:
    made = namespace.socket(family_of(address), socket.SOCK_STREAM)
    made.settimeout(5)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


@families
def test_rfc5382_req1_a_mapping_is_for_one_origin(enforced: LabGateway, family: int) -> None:
    """Connections from one port to two ports of an origin get independent random ports."""
    lab = enforced.lab
    pairs = set()
    with stream(lab.origin1, ORIGIN1[family], PORT) as listener:
        listener.listen()
        for port in range(6100, 6104):
            with (
                Session(lab.client, ORIGIN1[family], source_port=port) as session,
                stream(lab.client, CLIENT[family], port) as other,
            ):
                other.connect((ORIGIN1[family], PORT))
                accepted, peer = listener.accept()
                accepted.close()
                assert peer[0] == session.seen.address == leaves_from(LAX1, family)
                assert session.ask() == session.seen
                pairs.add((session.seen.peer_port, peer[1]))
    assert any(first != second for first, second in pairs)


def test_rfc5382_req5_nor_less_while_data_is_not_acknowledged(enforced: LabGateway) -> None:
    """conntrack has a shorter timer for unacknowledged data, which starts after three retransmissions."""
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[4]) as one, Session(lab.client, ORIGIN1[6]) as two:
        lab.net.run(
            "nft",
            "add table inet cut; add chain inet cut rules { type filter hook forward priority 0; }; "
            "add rule inet cut rules iifname origin1 tcp sport 9000 drop",
        )
        try:
            for session in (one, two):
                session.socket.sendall(b"\n")
            time.sleep(2)  # retransmissions after 0.2, 0.6 and 1.4 seconds
            for family, session in ((4, one), (6, two)):
                flow = entry(lab, TCP, CLIENT[family], session.socket.getsockname()[1], 9000)
                assert flow.state == "ESTABLISHED"
                assert flow.timeout >= 7440 - 2
        finally:
            lab.net.run("nft", "delete table inet cut")


@families
def test_rfc5382_req2_half_closed_connections_go_on(enforced: LabGateway, family: int) -> None:
    """Either side may close first and still receive."""
    lab = enforced.lab
    for first_is_client in (True, False):
        with (
            stream(lab.origin1, ORIGIN1[family], PORT) as listener,
            stream(lab.client, CLIENT[family]) as one,
        ):
            listener.listen()
            one.connect((ORIGIN1[family], PORT))
            accepted, peer = listener.accept()
            assert peer[0] == leaves_from(LAX1, family)
            with accepted:
                accepted.settimeout(5)
                first, second = (one, accepted) if first_is_client else (accepted, one)
                first.shutdown(socket.SHUT_WR)
                assert second.recv(10) == b""
                for _ in range(3):
                    time.sleep(0.1)
                    second.sendall(b"more")
                    assert first.recv(10) == b"more"
    agree(enforced)


@contextlib.contextmanager
def deaf(namespace: Namespace, port: int) -> Iterator[None]:
    """Drop the SYN segments to this port."""
    namespace.run(
        "nft",
        "add table inet deaf; add chain inet deaf input { type filter hook input priority 0; }; "
        f"add rule inet deaf input tcp dport {port} tcp flags & (syn|ack|rst) == syn drop",
    )
    try:
        yield
    finally:
        namespace.run("nft", "delete table inet deaf")


@families
def test_rfc5382_req2a_both_sides_open_at_once(enforced: LabGateway, family: int) -> None:
    """The origin's host drops the client's SYN, so its own SYN crosses it."""
    lab = enforced.lab
    with (
        stream(lab.client, CLIENT[family]) as client,
        stream(lab.origin1, ORIGIN1[family], PORT) as origin,
        deaf(lab.origin1, PORT),
        Capture(lab.net, "gw0", lab.directory, expression=f"tcp dst port {PORT}", direction="in") as outside,
    ):
        client.setblocking(False)
        client.connect_ex((ORIGIN1[family], PORT))
        here = client.getsockname()[1]
        wait_for(lambda: outside.sources().total() > 0, "the client's SYN")
        flow = entry(lab, TCP, CLIENT[family], here, PORT)
        origin.connect((leaves_from(LAX1, family), flow.reply.destination_port))
        client.settimeout(5)
        client.sendall(b"hello")
        assert origin.recv(10) == b"hello"
        origin.sendall(b"world")
        assert client.recv(10) == b"world"
        assert entry(lab, TCP, CLIENT[family], here, PORT).state == "ESTABLISHED"
        agree(enforced)
    agree(enforced)


def test_rfc5382_req4_an_unasked_syn_gets_silence_for_six_seconds(enforced: LabGateway) -> None:
    """The SYN does not block the client's later connection to that origin. Both families wait in parallel."""
    lab = enforced.lab
    before = packets(enforced)["unsolicited"]
    fates: dict[int, BaseException] = {}

    def knock(family: int) -> None:
        with stream(lab.origin1, ORIGIN1[family], PORT + 1) as asker:
            asker.settimeout(6.5)
            try:
                asker.connect((leaves_from(LAX1, family), 40_000))
            except OSError as fate:
                fates[family] = fate

    answers = f"dst port {PORT + 1} or icmp or (icmp6 and ip6[40] < 128)"
    with Capture(lab.net, "gw0", lab.directory, expression=answers, direction="in") as outside:
        threads = [threading.Thread(target=knock, args=[family]) for family in (4, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [type(fates.get(family)) for family in (4, 6)] == [TimeoutError, TimeoutError]
    assert outside.packets() == []
    assert packets(enforced)["unsolicited"] - before >= 6  # retransmissions after 1 and 3 seconds
    for family in (4, 6):
        with (
            stream(lab.origin1, ORIGIN1[family], PORT + 1) as listener,
            stream(lab.client, CLIENT[family]) as one,
        ):
            listener.listen()
            one.connect((ORIGIN1[family], PORT + 1))
            listener.accept()[0].close()


@families
def test_rfc5382_req10_no_icmp_error_ends_a_connection(enforced: LabGateway, family: int) -> None:
    """Covers all kinds of errors, from another host, with sequence numbers that the client's TCP accepts."""
    from scapy.layers.inet import TCP as Tcp

    lab = enforced.lab
    with (
        Session(lab.client, ORIGIN1[family]) as session,
        Capture(lab.client, "eth0", lab.directory, expression="icmp or icmp6", direction="in") as inside,
        Capture(lab.net, "gw0", lab.directory, expression="tcp dst port 9000", direction="in") as outside,
    ):
        port = session.socket.getsockname()[1]
        before = entry(lab, TCP, CLIENT[family], port, 9000)
        assert session.ask() == session.seen
        outside.stop()
        sent = outside.packets()[-1][Tcp]
        header = Tcp(sport=session.seen.peer_port, dport=9000, seq=sent.seq, ack=sent.ack, flags="PA")
        quoted = packet(session.seen.address, ORIGIN1[family], header)
        for what in ERRORS[family]:
            send(lab.resolver, icmp(RESOLVER[family], session.seen.address, what, quoted, rest=about(what)))
        assert session.ask() == session.seen
        after = entry(lab, TCP, CLIENT[family], port, 9000)
        assert (after.original, after.reply, after.state) == (before.original, before.reply, "ESTABLISHED")
        inside.stop()
        start = 14 + (20 if family == 4 else 40)
        assert [(frame[start], frame[start + 1]) for frame in inside.frames()] == ERRORS[family]
        assert agree(enforced)
    assert tcp_ask(lab.client, ORIGIN1[family]).address == session.seen.address
