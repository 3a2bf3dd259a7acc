"""Tests of true and forged resets and FINs: a count ends exactly when the connection ends.

Both ends are real TCP; tests read their sequence numbers from the kernel (TCP_REPAIR, tcp(7)).
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from truth import agree, counted, families, running, tracked, wait_for
from versions import impatient

from enforcer.kernel import conntrack
from lab.clients import Session, family_of
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, Lab

LIMIT = 3
CLOSE = 4
AHEAD = 1 << 20
"""Bytes: within the windows of a used connection, and far from the expected number."""
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
TCP_RECV_QUEUE, TCP_SEND_QUEUE, TCP_REPAIR_OFF_NO_WP = 1, 2, -1
_ports = itertools.count(42000)


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGateway]:
    """A gateway with a limit of three connections, whose conntrack forgets reset ones after seconds."""
    version = impatient(tmp_path_factory.mktemp("version"))
    config = lab.config(
        limits={"connections_per_origin": LIMIT}, timers={"tcp_close": CLOSE, "tcp_time_wait": CLOSE}
    )
    with running(lab, config, version) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def nothing_lives(enforced: LabGateway) -> None:
    wait_for(lambda: not counted(enforced) and not tracked(enforced.lab), "all counts given back")


def numbers(session: Session) -> tuple[int, int]:
    """The next sequence number that this side sends, and the next that it expects."""
    sock, found = session.socket, []
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue in (TCP_SEND_QUEUE, TCP_RECV_QUEUE):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        found.append(sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
    return found[0], found[1]


def open_session(lab: Lab, family: int, asked: int = 8) -> Session:
    session = Session(lab.client, ORIGIN1[family], source_port=next(_ports))
    for _ in range(asked):
        session.ask()
    return session


def reset_of_client(lab: Lab, family: int, port: int, seq: int, checksum: int | None = None) -> None:
    """Send a reset that the client's TCP has not sent."""
    segment = TCP(sport=port, dport=9000, flags="R", seq=seq & 0xFFFFFFFF)
    if checksum is not None:
        segment.chksum = checksum
    _send(lab.client, IP if family == 4 else IPv6, CLIENT[family], ORIGIN1[family], segment)


def _send(host: Namespace, network: type, source: str, destination: str, segment: TCP) -> None:
    raw = host.socket(family_of(destination), socket.SOCK_RAW, socket.IPPROTO_RAW)
    with closing(raw):
        raw.sendto(bytes(network(src=source, dst=destination) / segment), (destination, 0))


def port_of(session: Session) -> int:
    return int(session.socket.getsockname()[1])


def states(lab: Lab) -> list[str]:
    entries = lab.gw.call(lambda: list(conntrack.entries()))
    return sorted(entry.state for entry in entries if entry.original.destination_port == 9000)


@families
def test_a_reset_that_no_host_believes_frees_no_place(enforced: LabGateway, family: int) -> None:
    """In the window, not exact: the origin sends a challenge ACK; the connection lives (RFC 5961, 3.2)."""
    lab = enforced.lab
    with ExitStack() as opened:
        sessions = [opened.enter_context(open_session(lab, family)) for _ in range(LIMIT)]
        for session in sessions:
            reset_of_client(lab, family, port_of(session), numbers(session)[0] + 1)
        time.sleep(0.2)  # lets the origin's challenge ACKs pass
        with pytest.raises(ConnectionRefusedError):
            open_session(lab, family)
        assert sum(counted(enforced).values()) == LIMIT
        # conntrack must not take it for closed: it stays longer than a closed connection does.
        time.sleep(CLOSE + 2)
        for session in sessions:
            assert session.ask() == session.seen
        assert agree(enforced).total() == LIMIT


@families
def test_a_forged_reset_from_outside_changes_nothing(enforced: LabGateway, family: int) -> None:
    """Its number is ahead of the expected one: the flow stays counted, fast, and alive when idle."""
    lab = enforced.lab
    with open_session(lab, family) as session:
        expected = numbers(session)[1]
        forged = TCP(sport=9000, dport=session.seen.peer_port, flags="R", seq=(expected + AHEAD) & 0xFFFFFFFF)
        network = IP if family == 4 else IPv6
        before = row_of(enforced, session)["kernel_packets"]
        _send(lab.origin1, network, ORIGIN1[family], session.seen.address, forged)
        wait_for(lambda: row_of(enforced, session)["kernel_packets"] > before, "the reset seen")
        assert sum(counted(enforced).values()) == 1
        for _ in range(8):
            session.ask()
        time.sleep(CLOSE + 2)
        assert session.ask() == session.seen
        wait_until_fast_again(enforced, session)


@families
@pytest.mark.parametrize("ahead", [AHEAD, 100_000])
def test_a_segment_ahead_makes_no_reset_exact(enforced: LabGateway, family: int, ahead: int) -> None:
    """A segment beyond a gap, then a reset at the segment's end: no host accepts that reset."""
    lab = enforced.lab
    network: Any = IP if family == 4 else IPv6
    with open_session(lab, family) as session, open_session(lab, family) as other:
        sent, expected = numbers(session)
        for payload in (b"", b"x" * 10):
            made_up = (
                TCP(sport=port_of(session), dport=9000, flags="A", seq=sent + ahead, ack=expected) / payload
            )
            _send(lab.client, network, CLIENT[family], ORIGIN1[family], made_up)
            reset_of_client(lab, family, port_of(session), sent + ahead + len(payload))
        sent, expected = numbers(other)
        back = {"sport": 9000, "dport": other.seen.peer_port}
        for flags in ("A", "R"):
            made_up = TCP(**back, flags=flags, seq=(expected + ahead) & 0xFFFFFFFF, ack=sent)
            _send(lab.origin1, network, ORIGIN1[family], other.seen.address, made_up)
        time.sleep(0.3)
        assert sum(counted(enforced).values()) == 2
        assert session.ask() == session.seen and other.ask() == other.seen
        # A true reset is accepted nevertheless.
        session.reset()
        wait_for(lambda: sum(counted(enforced).values()) == 1, "the true reset's count given back")


@families
@pytest.mark.parametrize("side", ["client", "origin"])
def test_forged_fins_change_nothing(enforced: LabGateway, family: int, side: str) -> None:
    """Two forged FINs, ahead in sequence: conntrack closes its entry until the daemon corrects it."""
    lab = enforced.lab
    network = IP if family == 4 else IPv6
    with open_session(lab, family) as session:
        sent, expected = numbers(session)
        for number in range(2):
            if side == "client":
                seq, ports = sent + AHEAD + number, {"sport": port_of(session), "dport": 9000}
                forged = TCP(**ports, flags="FA", seq=seq & 0xFFFFFFFF, ack=expected)
                _send(lab.client, network, CLIENT[family], ORIGIN1[family], forged)
            else:
                seq, ports = expected + AHEAD + number, {"sport": 9000, "dport": session.seen.peer_port}
                forged = TCP(**ports, flags="FA", seq=seq & 0xFFFFFFFF, ack=sent)
                _send(lab.origin1, network, ORIGIN1[family], session.seen.address, forged)
        wait_for(lambda: states(lab) == ["ESTABLISHED"], "conntrack told")
        # The corrected entry stays longer than a closed connection does.
        time.sleep(CLOSE + 2)
        assert session.ask() == session.seen
        assert agree(enforced).total() == 1
        wait_until_fast_again(enforced, session)


@families
@pytest.mark.parametrize("side", ["client", "origin"])
def test_an_exact_reset_after_the_fast_path_is_over_for_conntrack_too(
    enforced: LabGateway, family: int, side: str
) -> None:
    """conntrack has not seen the fast packets and rejects the reset; the next sweep ends its entry."""
    lab = enforced.lab
    sessions = [open_session(lab, family, asked=40) for _ in range(LIMIT)]
    for session in sessions:
        if side == "client":
            session.reset()
        else:
            sent, expected = numbers(session)
            exact = TCP(sport=9000, dport=session.seen.peer_port, flags="RA", seq=expected, ack=sent)
            _send(lab.origin1, IP if family == 4 else IPv6, ORIGIN1[family], session.seen.address, exact)
    wait_for(lambda: not counted(enforced), "the counts given back")
    wait_for(lambda: "ESTABLISHED" not in states(lab), "conntrack told")
    assert agree(enforced).total() == 0
    for session in sessions:
        session.close()


@families
def test_what_goes_on_after_a_reset_counts_again(enforced: LabGateway, family: int) -> None:
    """A reset with a wrong checksum is exact for the programs; conntrack and the origin ignore it."""
    lab = enforced.lab
    with open_session(lab, family) as session:
        reset_of_client(lab, family, port_of(session), numbers(session)[0], checksum=0xBAD)
        wait_for(lambda: not counted(enforced), "the count given back")
        for _ in range(4):
            session.ask()
        assert sum(counted(enforced).values()) == 1
        assert agree(enforced).total() == 1
        wait_until_fast_again(enforced, session)


def row_of(enforced: LabGateway, session: Session) -> dict[str, Any]:
    (row,) = [row for row in enforced.json("flows") if row["client_port"] == port_of(session)]
    return row


def wait_until_fast_again(enforced: LabGateway, session: Session) -> None:
    before = row_of(enforced, session)["fast_packets"]

    def fast() -> bool:
        session.ask()
        return row_of(enforced, session)["fast_packets"] > before

    wait_for(fast, "the fast path")


@families
def test_what_goes_on_after_a_reset_is_reset_if_its_place_is_taken(enforced: LabGateway, family: int) -> None:
    """A client cannot hold more connections by resets that its origin ignores."""
    lab = enforced.lab
    with ExitStack() as opened:
        first = opened.enter_context(open_session(lab, family))
        reset_of_client(lab, family, port_of(first), numbers(first)[0], checksum=0xBAD)
        wait_for(lambda: not counted(enforced), "the count given back")
        for _ in range(LIMIT):
            opened.enter_context(open_session(lab, family))
        with pytest.raises(ConnectionResetError):
            for _ in range(6):
                first.ask()
        assert sum(counted(enforced).values()) == LIMIT
