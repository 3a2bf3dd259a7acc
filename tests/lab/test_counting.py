"""Tests of the counts: after any workload they equal conntrack's."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from truth import (
    Origin,
    agree,
    counted,
    families,
    inject,
    leaves_from,
    look,
    row_of,
    running,
    tracked,
    wait_for,
)

from enforcer.address import words
from enforcer.gateway.reader import GatewayReader
from lab.capture import Capture
from lab.clients import Session, UdpFlow, family_of, tcp_ask, udp_ask, url
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.load import Hammer, Holders, client_sources
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, ORIGIN2, RESOLVER, Lab

PORT, DEAF_PORT, CUT_PORT = 7000, 7999, 7998
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def key(family: int, port: int, protocol: str = "tcp") -> Origin:
    return Origin(leaves_from(LAX1, family), protocol, ORIGIN1[family], port)


@contextlib.contextmanager
def meddling(lab: Lab, role: str, hook: str, rule: str) -> Iterator[None]:
    """A rule of other software, in a table of its own."""
    namespace = lab.namespaces[role]
    namespace.run(
        "nft",
        "add table inet meddler; "
        f"add chain inet meddler rules {{ type filter hook {hook} priority 10; }}; "
        f"add rule inet meddler rules {rule}",
    )
    try:
        yield
    finally:
        namespace.run("nft", "delete table inet meddler")


@families
def test_mixed_requests(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    urls = [
        url(ORIGIN1[family]),
        url(ORIGIN1[family], 443, "https"),
        url(ORIGIN2[family]),
        url(ORIGIN2[family], 8443, "https"),
        url(ORIGIN2[family], 8081),
        url(ORIGIN2[family], 8082),  # refused by the enforcer
        url(ORIGIN2[family], 9),  # refused by the origin
    ]
    numbers = "\n".join(random.Random(family).choices(urls, k=150))
    lab.client.run(
        "xargs", "-P", "8", "-n", "1", "curl", "-gks", "-m", "5", "-o", "/dev/null",
        text=numbers, check=False,
    )  # fmt: skip
    # curl also sends several requests on one connection.
    lab.client.run("curl", "-gks", "--parallel", *urls[:5] * 4, check=False)
    for server in (ORIGIN1, RESOLVER):
        udp_ask(lab.client, ORIGIN1[family], 53)
        lab.client.run("dig", f"@{server[family]}", "+tcp", "+tries=1", "+time=1", "www.lab", check=False)
    with Session(lab.client, ORIGIN1[family]):
        assert agree(enforced)[key(family, 9000)] >= 1


@pytest.mark.rfc5382_req2
@families
def test_connections_that_end_each_in_its_way(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        Holders(lab.origin1, PORT, capacity=1000) as holders,
        Hammer(lab.client, ORIGIN1[family], PORT, sources=client_sources(family), capacity=1000) as hammer,
    ):
        assert hammer.open(600).opened == 600
        hammer.close(50)
        hammer.reset(50)
        holders.close(50)
        holders.reset(50)
        assert sum(agree(enforced)[each] for each in of_clients(family)) == 450  # 50 are half-closed
        assert hammer.count() == 400  # the client closes the half-closed ones, too
        assert sum(agree(enforced)[each] for each in of_clients(family)) == 400
        assert hammer.probe().answered == 400
    assert sum(agree(enforced)[each] for each in of_clients(family)) == 0


def of_clients(family: int, port: int = PORT, protocol: str = "tcp") -> set[Origin]:
    """The limit's keys for all addresses of a client; in IPv4 they are the same key."""
    return {
        Origin(leaves_from(LAX1, family, source), protocol, ORIGIN1[family], port)
        for source in client_sources(family)
    }


@families
def test_a_storm_of_opening_and_closing(enforced: LabGateway, family: int) -> None:
    """Both sides close at once, so FIN and RST segments cross."""
    lab = enforced.lab
    stop = threading.Event()
    with (
        Holders(lab.origin1, PORT, capacity=3000) as holders,
        Hammer(lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], capacity=3000) as hammer,
        Hammer(lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], capacity=3000) as other,
    ):

        def origin_ends_some() -> None:
            while not stop.is_set():
                holders.close(7)
                holders.reset(5)

        thread = threading.Thread(target=origin_ends_some)
        thread.start()
        try:
            for _ in range(15):
                for each in (hammer, other):
                    each.open(100)
                    each.close(30)
                    each.reset(30)
                    each.count()
        finally:
            stop.set()
            thread.join()
        agree(enforced)
        hammer.count()
        other.count()
        agree(enforced)
    agree(enforced)
    assert row_of(enforced, key(family, PORT))["total"] >= 3000


@pytest.mark.rfc5382_req2
@families
def test_simultaneous_close(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with Holders(lab.origin1, PORT, capacity=500) as holders:
        for _ in range(5):
            with Hammer(lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], capacity=500) as hammer:
                assert hammer.open(200).opened == 200
                threads = [threading.Thread(target=end, args=[200]) for end in (hammer.close, holders.close)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
    # The last FIN may be in flight, and both counts still include its connection.
    wait_for(lambda: agree(enforced)[key(family, PORT)] == 0, "the end of all connections")


@families
def test_aborted_transfers(enforced: LabGateway, services: Services, family: int) -> None:
    lab = enforced.lab
    for options in ([], ["-R"], ["-P", "4"], ["--bidir"]):
        lab.client.run(
            "timeout", "-s", "KILL", "1", "iperf3", "-c", ORIGIN1[family], "-t", "10", *options, check=False
        )
        agree(enforced)
        wait_for(lambda: not counted(enforced)[key(family, 5201)], "the transfer's end")


@families
def test_half_open_connections(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with meddling(lab, "origin1", "input", f"tcp dport {DEAF_PORT} drop"):
        sockets = []
        for _ in range(40):
            attempt = lab.client.socket(family_of(CLIENT[family]), socket.SOCK_STREAM)
            attempt.setblocking(False)
            attempt.connect_ex((ORIGIN1[family], DEAF_PORT))
            sockets.append(attempt)
        assert agree(enforced)[key(family, DEAF_PORT)] == 40
        time.sleep(1.5)
        assert agree(enforced)[key(family, DEAF_PORT)] == 40
        for attempt in sockets:
            attempt.close()
        assert agree(enforced)[key(family, DEAF_PORT)] == 40  # until conntrack's timer expires


@families
def test_udp(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        Holders(lab.origin1, PORT, capacity=300),
        Hammer(
            lab.client, ORIGIN1[family], PORT, sources=client_sources(family), protocol="udp", capacity=300
        ) as hammer,
    ):
        assert hammer.open(300).opened == 300
        assert sum(agree(enforced)[each] for each in of_clients(family, PORT, "udp")) == 300
        # Closing a UDP socket sends no packet, and a closed port's ICMP error does not end a flow.
        hammer.close(100)
        for _ in range(5):
            with UdpFlow(lab.client, ORIGIN1[family], 9) as flow, pytest.raises(ConnectionRefusedError):
                flow.ask()
        found = agree(enforced)
        assert sum(found[each] for each in of_clients(family, PORT, "udp")) == 300
        assert found[key(family, 9, "udp")] == 5


@pytest.mark.rfc5382_req2
@pytest.mark.rfc6888_req8a
@families
@pytest.mark.parametrize("end", ["close", "reset", "origin"])
def test_a_port_is_used_again(enforced: LabGateway, family: int, end: str) -> None:
    """The same client port to the same origin while conntrack still holds the connection before."""
    lab = enforced.lab
    before = 0
    with contextlib.suppress(AssertionError):
        before = row_of(enforced, key(family, PORT))["total"]
    number = 0  # 0: the kernel chooses a free port for the first connection
    for _ in range(8):
        with contextlib.closing(lab.origin1.socket(family_of(CLIENT[family]), socket.SOCK_STREAM)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((ORIGIN1[family], PORT))
            server.listen()
            client = lab.client.socket(family_of(CLIENT[family]), socket.SOCK_STREAM)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((CLIENT[family], number))
            number = client.getsockname()[1]
            client.settimeout(5)
            client.connect((ORIGIN1[family], PORT))
            accepted, _ = server.accept()
            assert agree(enforced)[key(family, PORT)] == 1
            first, second = (accepted, client) if end == "origin" else (client, accepted)
            if end == "reset":
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            # Both ends must not cross: the second FIN or RST would reach the next connection from that port.
            if end == "reset":
                with pytest.raises(ConnectionResetError):
                    second.recv(1)
            else:
                assert second.recv(1) == b""
            second.close()
            wait_for(lambda: agree(enforced)[key(family, PORT)] == 0, "the connection's end")
        # Removes the client's own TIME_WAIT socket, which blocks the port.
        with contextlib.suppress(OSError):
            lab.client.run("ss", "-K", "sport", str(number), check=False)
    assert row_of(enforced, key(family, PORT))["total"] == before + 8


@families
def test_refused_ports_are_tried_again_from_the_same_port(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    # A free port: the kernel may assign any port from 1024 on to a socket that binds none.
    with contextlib.closing(lab.client.socket(family_of(CLIENT[family]), socket.SOCK_STREAM)) as free:
        free.bind((CLIENT[family], 0))
        port = free.getsockname()[1]
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            Session(lab.client, ORIGIN1[family], 9, CLIENT[family], source_port=port)
        agree(enforced)
    # A server listens on the port within the ten seconds that conntrack keeps the refused connections.
    with contextlib.closing(lab.origin1.socket(family_of(CLIENT[family]), socket.SOCK_STREAM)) as server:
        server.bind((ORIGIN1[family], 9))
        server.listen()
        client = lab.client.socket(family_of(CLIENT[family]), socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((CLIENT[family], port))
        client.settimeout(5)
        client.connect((ORIGIN1[family], 9))
        with client, server.accept()[0]:
            assert agree(enforced)[key(family, 9)] == 1
    wait_for(lambda: agree(enforced)[key(family, 9)] == 0, "the connection's end")


@families
@protocols
@pytest.mark.parametrize("hook", ["forward", "postrouting"])
def test_what_is_dropped_behind_us_is_given_back(
    enforced: LabGateway, family: int, protocol: str, hook: str
) -> None:
    lab = enforced.lab
    origin = key(family, CUT_PORT, protocol)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with meddling(lab, "gw", hook, f"meta l4proto {protocol} th dport {CUT_PORT} drop"):
        before = counted(enforced)[origin]
        sockets = []
        for _ in range(20):
            attempt = lab.client.socket(family_of(CLIENT[family]), kind)
            attempt.setblocking(False)
            attempt.connect_ex((ORIGIN1[family], CUT_PORT))
            if protocol == "udp":
                attempt.send(b"?")
            sockets.append(attempt)
        wait_for(lambda: counted(enforced)[origin] > before, "an attempt")
        for attempt in sockets:
            attempt.close()
        wait_for(lambda: counted(enforced)[origin] == tracked(lab)[origin], "what conntrack lacks")
    agree(enforced)


@families
def test_an_answered_flow_that_is_cut_off_stays_counted_as_conntrack_has_it(
    enforced: LabGateway, services: Services, family: int
) -> None:
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]) as session:
        with meddling(lab, "gw", "forward", "meta l4proto tcp th dport 9000 drop"):
            session.socket.sendall(b"\n")
            time.sleep(1)
            agree(enforced)
        assert session.ask() == session.seen
        agree(enforced)
    agree(enforced)


@families
@pytest.mark.parametrize("knowing", [False, True], ids=["blind", "knowing"])
def test_segments_out_of_the_window_end_no_count(
    enforced: LabGateway, services: Services, family: int, knowing: bool
) -> None:
    """conntrack, being liberal, accepts such segments; the connection lives, and its count stays.

    Otherwise a client could end its connection for the enforcer alone and exceed the limit by one.
    """
    lab = enforced.lab
    with (
        Capture(lab.client, "eth0", lab.directory, expression="tcp port 9000", direction="out") as sent,
        Session(lab.client, ORIGIN1[family]) as session,
    ):
        session.ask()
        before = agree(enforced)[key(family, 9000)]
        sent.stop()
        last = Ether([frame for frame in sent.frames() if len(frame) > 60][-1])
        forged = []
        for flags in ("FA", "A", "FA", "A", "A", "RA", "R"):
            for distance in (0x1000000, 0x7FFFFFF, 0x7FFFFFFF, 0xF0000000):
                segment = last.copy()
                segment[TCP].remove_payload()
                segment[TCP].flags = flags
                segment[TCP].seq = (last[TCP].seq + distance) % 2**32
                if not knowing:
                    segment[TCP].ack = (last[TCP].ack + 0x5555555) % 2**32
                for layer in (segment.payload, segment[TCP]):
                    for field in ("len", "plen", "chksum"):
                        if field in layer.fields:
                            delattr(layer, field)
                forged.append(bytes(segment))
        inject(lab, forged * 2)
        wait_for(lambda: tracked(lab)[key(family, 9000)] < before, "conntrack's believing them")
        assert counted(enforced)[key(family, 9000)] == before
        assert session.ask() == session.seen
        assert counted(enforced)[key(family, 9000)] == before
    wait_for(lambda: counted(enforced)[key(family, 9000)] < before, "the end of the count")


@families
def test_connections_that_conntrack_was_made_to_forget(
    enforced: LabGateway, services: Services, family: int
) -> None:
    """An administrator's `conntrack -D`: each connection, live or broken, is counted at most once."""
    lab = enforced.lab
    sessions = [Session(lab.client, ORIGIN1[family]) for _ in range(5)]
    quiet = [UdpFlow(lab.client, ORIGIN1[family]) for _ in range(5)]
    for flow in quiet:
        flow.ask()
    lab.gw.run("conntrack", "-D", "-f", f"ipv{family}", "-d", ORIGIN1[family])
    for flow in quiet:
        assert flow.ask().address == leaves_from(LAX1, family)
        flow.socket.close()
    for session in sessions:
        with contextlib.suppress(OSError):
            session.ask()
        session.close()
    agree(enforced, patience=90)


@families
def test_an_origin_that_vanishes_and_comes_back(
    enforced: LabGateway, services: Services, family: int
) -> None:
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]) as session, Session(lab.client, ORIGIN1[family]) as other:
        with meddling(lab, "net", "forward", "oifname origin1 drop"):
            for ask in (tcp_ask, udp_ask):
                with pytest.raises(TimeoutError):
                    ask(lab.client, ORIGIN1[family], 9000, timeout=1)
            other.reset()
            agree(enforced)
        assert session.ask() == session.seen
        assert tcp_ask(lab.client, ORIGIN1[family]).address == session.seen.address
        agree(enforced)


@families
def test_a_client_cannot_speak_for_the_origin(enforced: LabGateway, family: int) -> None:
    """A reset from inside with the origin's address and exact numbers gives no count back."""
    lab = enforced.lab
    # Otherwise the kernel's rp_filter drops the reset before the program's check.
    lab.gw.sysctls({"net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.in0.rp_filter": 0})
    with Session(lab.client, ORIGIN1[family]) as session:
        before = counted(enforced)[key(family, 9000)]
        assert before
        port = session.socket.getsockname()[1]
        number = look(enforced, lambda source: _expected_by(source, family, port))
        network = IP if family == 4 else IPv6
        reset = TCP(sport=9000, dport=port, flags="R", seq=number)
        mac = look(enforced, lambda source: _mac(source, "in0"))
        frame = Ether(dst=mac) / network(src=ORIGIN1[family], dst=CLIENT[family]) / reset
        inject(lab, [bytes(frame)] * 3)
        time.sleep(0.3)
        assert counted(enforced)[key(family, 9000)] == before
        assert agree(enforced)[key(family, 9000)] == before


def _expected_by(reader: GatewayReader, family: int, port: int) -> int:
    """The sequence number that the client expects next on its TCP connection from ``port`` to port 9000."""
    key = np.zeros((), dtype=reader.maps.flows.key)
    key["client"], key["origin"] = words(ip_address(CLIENT[family])), words(ip_address(ORIGIN1[family]))
    key["client_port"], key["origin_port"] = socket.htons(port), socket.htons(9000)
    key["protocol"] = socket.IPPROTO_TCP
    flow = reader.maps.flows.get(key)
    assert flow is not None
    return int(flow["acked"][0])


def _mac(reader: GatewayReader, interface: str) -> str:
    row = reader.maps.interfaces.get(socket.if_nametoindex(interface))
    assert row is not None
    return bytes(row["mac"]).hex(":")
