"""Tests of RFC 4787, requirements for NAT of UDP; see docs/rfc-compliance.md."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

import pytest
from messages import (
    ERRORS,
    about,
    age,
    datagrams,
    entries,
    entry,
    icmp,
    packet,
    send,
)
from truth import agree, families, inject, leaves_from, packets, running, wait_for

from lab.capture import Capture
from lab.clients import Session, family_of, ping, tcp_ask, udp_ask
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.load import client_sources
from lab.netns import Namespace
from lab.servers import Seen
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, RESOLVER, Lab

UDP = socket.IPPROTO_UDP
OTHER_PORT = 8081  # of the same reporter, by the same policy
protocols = pytest.mark.parametrize("protocol", ["udp", "tcp"])


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def ask(sock: socket.socket, address: str, port: int = 9000) -> Seen:
    """A reporter's view of this unconnected socket."""
    sock.sendto(b"?\n", (address, port))
    return Seen(**json.loads(sock.recv(2000)))


@families
def test_rfc4787_req1_a_mapping_is_for_one_origin(enforced: LabGateway, family: int) -> None:
    """The mapping to an origin is stable; the mapping to another port is independent and random."""
    ports = set()
    for _ in range(4):
        with datagrams(enforced.lab.client, CLIENT[family]) as sock:
            first, second = ask(sock, ORIGIN1[family]), ask(sock, ORIGIN1[family], OTHER_PORT)
            assert first.address == second.address == leaves_from(LAX1, family)
            assert ask(sock, ORIGIN1[family]).peer_port == first.peer_port
            ports.add((first.peer_port, second.peer_port))
    assert any(one != other for one, other in ports)


@pytest.mark.rfc5382_req7
@families
@protocols
def test_rfc4787_req3_clients_with_equal_ports_get_their_own(
    enforced: LabGateway, family: int, protocol: str
) -> None:
    lab = enforced.lab
    seen = []
    with contextlib.ExitStack() as stack:
        for number, namespace in ((1, lab.client), (2, lab.client2)):
            for source in client_sources(family, number):
                if protocol == "tcp":
                    session = Session(namespace, ORIGIN1[family], source=source, source_port=5000)
                    seen.append(stack.enter_context(session).seen)
                else:
                    seen.append(ask(stack.enter_context(datagrams(namespace, source, 5000)), ORIGIN1[family]))
    assert len({(each.address, each.peer_port) for each in seen}) == len(seen) == 16
    # IPv6 clients with equal host bits share an address.
    assert len({each.address for each in seen}) == (1 if family == 4 else 8)


@families
@protocols
def test_rfc4787_req3a_privileged_ports_stay_privileged(
    enforced: LabGateway, family: int, protocol: str
) -> None:
    lab = enforced.lab
    for port in (1, 80, 511, 512, 1023, 1024, 5000, 65535):
        if protocol == "tcp":
            with Session(lab.client, ORIGIN1[family], source_port=port) as session:
                seen = session.seen
        else:
            with datagrams(lab.client, CLIENT[family], port) as sock:
                seen = ask(sock, ORIGIN1[family])
        assert (seen.peer_port < 1024) == (port < 1024), (port, seen)


@pytest.mark.rfc7857_8
@families
def test_rfc4787_req4_parity_is_not_kept(enforced: LabGateway, family: int) -> None:
    odd = 0
    for port in range(6000, 6080, 2):
        with datagrams(enforced.lab.client, CLIENT[family], port) as sock:
            odd += ask(sock, ORIGIN1[family]).peer_port % 2
    assert 0 < odd < 40


@pytest.mark.rfc4787_req6a
@families
def test_rfc4787_req6_packets_of_either_direction_refresh(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        datagrams(lab.client, CLIENT[family]) as sock,
        datagrams(lab.origin1, ORIGIN1[family], 9300) as server,
    ):
        port = sock.getsockname()[1]

        def left() -> int:
            return entry(lab, UDP, CLIENT[family], port, 9300).timeout

        def refreshed_by(source: socket.socket, peer: tuple[str, int]) -> None:
            # Packets on the fast path bypass conntrack, for a few seconds at most.
            full = left()
            age(lab, entry(lab, UDP, CLIENT[family], port, 9300), 20)
            assert left() <= 20

            def again() -> bool:
                source.sendto(b"x", peer)
                return left() > full - 20

            wait_for(again, "refreshed", patience=10)

        sock.sendto(b"x", (ORIGIN1[family], 9300))
        peer = server.recvfrom(16)[1][:2]
        refreshed_by(sock, (ORIGIN1[family], 9300))  # outbound, although the origin has not answered
        server.sendto(b"x", peer)
        assert sock.recv(16) == b"x"
        refreshed_by(sock, (ORIGIN1[family], 9300))
        refreshed_by(server, peer)


@pytest.mark.rfc5382_req8
@pytest.mark.rfc5508_req7
@pytest.mark.rfc7857_12
@families
def test_rfc4787_req9_nothing_is_hairpinned(enforced: LabGateway, family: int) -> None:
    """A client sends to the other's mapped address, as the origin sees it, and gets no answer."""
    lab = enforced.lab
    with Session(lab.client2, ORIGIN1[family]) as session, datagrams(lab.client2, CLIENT2[family]) as sock:
        udp, before = ask(sock, ORIGIN1[family]), packets(enforced)["unsolicited"]
        with pytest.raises(TimeoutError):
            udp_ask(lab.client, udp.address, udp.peer_port, timeout=0.3)
        with pytest.raises(TimeoutError):
            tcp_ask(lab.client, session.seen.address, session.seen.peer_port, timeout=0.3)
        assert not ping(lab.client, udp.address, options=("-W", "0.3"))
        assert packets(enforced)["unsolicited"] - before >= 3
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(16)
        assert session.ask() == session.seen


@pytest.mark.rfc5382_req6
@families
def test_rfc4787_req10_payloads_are_nobodys_business(enforced: LabGateway, family: int) -> None:
    """Covers ports of the kernel's conntrack helpers and payloads with addresses that these would change."""
    lab = enforced.lab
    address = CLIENT[family]
    sip = (
        f"REGISTER sip:lab SIP/2.0\r\nContact: <sip:me@{address}:5060>\r\nContent-Length: 0\r\n\r\n".encode()
    )
    with (
        datagrams(lab.client, address) as sock,
        datagrams(lab.origin1, ORIGIN1[family], 5060) as server,
    ):
        sock.sendto(sip, (ORIGIN1[family], 5060))
        assert server.recv(2000) == sip
    for port, line in (
        (21, f"EPRT |1|{address}|40000|\r\n"),
        (6667, f"PRIVMSG x :DCC SEND f {address} 1\r\n"),
    ):
        with lab.origin1.socket(family_of(address), socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((ORIGIN1[family], port))
            listener.listen()
            with lab.client.socket(family_of(address), socket.SOCK_STREAM) as client:
                client.settimeout(5)
                client.connect((ORIGIN1[family], port))
                client.sendall(line.encode())
                client.shutdown(socket.SHUT_WR)
                accepted, _ = listener.accept()
                with accepted, accepted.makefile("rb") as reader:
                    assert reader.read() == line.encode()
    assert "helper" not in lab.gw.run("conntrack", "-L", "-f", f"ipv{family}", "-o", "extended").stdout
    assert "helper" not in lab.gw.run("nft", "list", "ruleset").stdout
    assert not lab.gw.run("conntrack", "-L", "expect").stdout.strip()


@pytest.mark.rfc4787_req12a
@families
def test_rfc4787_req12_no_icmp_error_ends_a_mapping(enforced: LabGateway, family: int) -> None:
    """Covers all kinds of errors, from a host that is not on the path."""
    from scapy.layers.inet import UDP as Udp

    lab = enforced.lab
    with (
        datagrams(lab.client, CLIENT[family]) as sock,
        Capture(lab.client, "eth0", lab.directory, expression="icmp or icmp6", direction="in") as inside,
    ):
        seen = ask(sock, ORIGIN1[family])
        before = entry(lab, UDP, CLIENT[family], sock.getsockname()[1], 9000)
        quoted = packet(seen.address, ORIGIN1[family], Udp(sport=seen.peer_port, dport=9000) / b"?\n")
        for what in ERRORS[family]:
            send(lab.resolver, icmp(RESOLVER[family], seen.address, what, quoted, rest=about(what)))
        asking = entry(lab, UDP, CLIENT[family], sock.getsockname()[1], 9000)
        assert (asking.original, asking.reply) == (before.original, before.reply)
        assert ask(sock, ORIGIN1[family]) == seen
        inside.stop()
        start = 14 + (20 if family == 4 else 40)
        assert [(frame[start], frame[start + 1]) for frame in inside.frames()] == ERRORS[family]
        assert inside.sources() == {RESOLVER[family]: len(ERRORS[family])}
    agree(enforced)


def test_rfc4787_req13a_pieces_leave_in_order(enforced: LabGateway) -> None:
    """IPv4 only: in IPv6 only the sender fragments a packet."""
    lab = enforced.lab
    for role, interface in (("gw", "out0"), ("net", "gw0")):
        lab.namespaces[role].ip(f"link set {interface} mtu 1300")
    try:
        with (
            datagrams(lab.client, CLIENT[4]) as sock,
            datagrams(lab.origin1, ORIGIN1[4], 9300) as server,
            Capture(lab.net, "gw0", lab.directory, expression="ip", direction="in") as outside,
        ):
            sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
            payload = os.urandom(2800)
            sock.sendto(payload, (ORIGIN1[4], 9300))
            assert server.recv(4000) == payload
            outside.stop()
            offsets = [int.from_bytes(frame[20:22], "big") & 0x1FFF for frame in outside.frames()]
            assert len(offsets) == 3
            assert offsets == sorted(offsets)
    finally:
        for role, interface in (("gw", "out0"), ("net", "gw0")):
            lab.namespaces[role].ip(f"link set {interface} mtu 1500")
        lab.client.run("ip", "route", "flush", "cache")


# The kernel's memory limit for incomplete fragments, in bytes, and their timeout.
MEMORY = {4: "net.ipv4.ipfrag_high_thresh", 6: "net.netfilter.nf_conntrack_frag6_high_thresh"}
PATIENCE = {4: "net.ipv4.ipfrag_time", 6: "net.netfilter.nf_conntrack_frag6_timeout"}


@contextlib.contextmanager
def impatient(namespace: Namespace, family: int) -> Iterator[None]:
    """Reduce the timeout of incomplete fragments to a second."""
    before = namespace.run("sysctl", "-n", PATIENCE[family]).stdout.strip()
    namespace.sysctl(PATIENCE[family], 1)
    try:
        yield
    finally:
        namespace.sysctl(PATIENCE[family], before)


@families
def test_rfc4787_req14a_a_flood_of_fragments_takes_only_their_own_room(
    enforced: LabGateway, family: int
) -> None:
    from scapy.layers.inet import IP
    from scapy.layers.inet import UDP as Udp
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
    from scapy.layers.l2 import Ether

    lab = enforced.lab
    mac = json.loads(lab.gw.run("ip", "-j", "link", "show", "dev", "in0").stdout)[0]["address"]
    room = int(lab.gw.run("sysctl", "-n", MEMORY[family]).stdout)
    count = 2 * room // 2048  # each fragment takes more than 1,400 bytes
    ethernet = Ether(dst=mac, src="02:00:00:00:00:01")
    piece = Udp(sport=7, dport=9000) / bytes(1392)
    if family == 4:
        frame = bytes(ethernet / IP(src=CLIENT[4], dst=ORIGIN1[4], flags="MF") / piece)
    else:
        header = IPv6ExtHdrFragment(m=1)
        frame = bytes(ethernet / IPv6(src=CLIENT[6], dst=ORIGIN1[6]) / header / piece)

    def numbered(number: int) -> bytes:
        """The frame with an identification of its own, so no fragment completes another's packet."""
        if family == 6:
            return frame[:58] + number.to_bytes(4, "big") + frame[62:]
        head = bytearray(frame[14:34])
        head[4:6] = number.to_bytes(2, "big")
        head[10:12] = bytes(2)
        total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2))
        head[10:12] = (~(total % 0xFFFF) & 0xFFFF).to_bytes(2, "big")
        return frame[:14] + bytes(head) + frame[34:]

    def waiting() -> int:
        """The bytes of incomplete fragments."""
        name = "FRAG" if family == 4 else "FRAG6"
        text = lab.gw.run("cat", "/proc/net/sockstat" if family == 4 else "/proc/net/sockstat6").stdout
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[-1])

    with impatient(lab.gw, family), datagrams(lab.client, CLIENT[family]) as sock:
        seen = ask(sock, ORIGIN1[family])
        with Session(lab.client, ORIGIN1[family]) as session:
            inject(lab, map(numbered, range(1, count)))
            if family == 4:
                assert waiting() > room // 2
            assert ask(sock, ORIGIN1[family]) == seen
            assert session.ask() == session.seen
            assert tcp_ask(lab.client, ORIGIN1[family]).address == seen.address
        time.sleep(1.5)
        # After the timeout fragments pass again, too.
        payload = b"x" * 4000 + b"\n"
        wait_for(lambda: _echoed(sock, ORIGIN1[family], payload), "fragments", patience=5)
    assert not entries(lab, UDP, CLIENT[family], 7)


def _echoed(sock: socket.socket, address: str, payload: bytes) -> bool:
    sock.settimeout(0.3)
    sock.sendto(payload, (address, 9000))
    with contextlib.suppress(TimeoutError):
        return bool(sock.recv(2000))
    return False
