"""Tests of the table's DNS chains with real packets and the real queue: copied questions, held answers."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Network

import pytest

from enforcer.constants import SYN
from enforcer.dns import packet
from enforcer.errors import BusyError
from enforcer.kernel import addresses, nft
from enforcer.kernel.nflog import Log
from enforcer.kernel.nfqueue import Queue
from enforcer.kernel.nft import expr
from enforcer.kernel.nft.ruleset import DNS_ANSWERS_OVER, DNS_QUESTIONS_OVER, DNS_QUEUE, Dns
from lab.netns import inside, run

from ..conftest import Lab
from .test_nft import ruleset

SOON, PATIENCE = 0.15, 5.0
GATEWAY = {socket.AF_INET: "10.1.0.1", socket.AF_INET6: "fd01::1"}


def install(lab: Lab, dns: Dns = "pass") -> None:
    """Applies the table, and marks all packets of clients."""
    nft.apply(replace(ruleset(), dns=dns))
    run("nft add table inet marker")
    run("nft add chain inet marker pre '{ type filter hook prerouting priority -310; }'")
    run("nft add rule inet marker pre iifname in0 meta mark set 1")
    addresses.add_ranges([IPv6Network("2001:db8:f::1/128")])
    with inside(lab.origin):
        run("ip route add 203.0.113.0/24 via 10.2.0.1")


@pytest.fixture
def resolver(lab: Lab) -> Lab:
    """The lab with the table; the origin is the resolver."""
    install(lab)
    return lab


@pytest.fixture
def held(resolver: Lab) -> Iterator[Queue]:
    with Queue(DNS_QUEUE, fail_open=True) as opened:
        yield opened


@pytest.fixture
def copies(resolver: Lab) -> Iterator[Log]:
    with Log(DNS_QUEUE) as opened:
        yield opened


def wait_for(source: Queue | Log) -> None:
    assert select.select([source], [], [], PATIENCE)[0]


def nothing(receiver: socket.socket) -> bool:
    return not select.select([receiver], [], [], SOON)[0]


class Conversation:
    """The UDP sockets of a client and a resolver, which is the origin or the gateway itself."""

    def __init__(self, lab: Lab, family: int, local: bool = False, source: str = "") -> None:
        self.address = GATEWAY[family] if local else lab.ORIGIN[family]
        if local:
            self.resolver = lab.open(lab.gateway, family, socket.SOCK_DGRAM)
            self.resolver.bind((self.address, 53))
        else:
            self.resolver = lab.listener(family, 53, socket.SOCK_DGRAM)
        self.client = lab.open(lab.client, family, socket.SOCK_DGRAM)
        if source:
            self.client.bind((source, 0))
        self.client.connect((self.address, 53))

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.resolver.close()
        self.client.close()

    def ask(self, data: bytes = b"question") -> None:
        self.client.send(data)
        got, self.peer = self.resolver.recvfrom(65536)
        assert got == data

    def answer(self, data: bytes = b"answer") -> None:
        with contextlib.suppress(PermissionError):  # a resolver on the gateway gets an error for a drop
            self.resolver.sendto(data, self.peer)


@pytest.mark.parametrize("local", [False, True], ids=["forwarded", "local"])
def test_a_question_is_copied_and_its_answer_held(
    resolver: Lab, held: Queue, copies: Log, family: int, local: bool
) -> None:
    with Conversation(resolver, family, local) as talk:
        talk.ask()
        (copy,) = copies.receive(10)  # the copy exists before the question continues
        asked = packet.parse(copy)
        assert asked is not None
        talk.answer()
        wait_for(held)
        assert nothing(talk.client)
        (one,) = held.receive(10)
        assert one.whole
        found = packet.parse(one.data)
        assert found is not None
        # The client's own address and the server's address in the client's question, before any translation.
        assert (found.source, found.source_port) == (asked.destination, asked.destination_port)
        assert (found.destination, found.destination_port) == (asked.source, asked.source_port)
        assert asked.source_port == talk.client.getsockname()[1]
        assert (asked.payload, found.payload) == (b"question", b"answer")
        assert nothing(talk.client)
        held.accept([one.number])
        assert talk.client.recv(100) == b"answer"
        assert held.receive(10) == copies.receive(10) == []


def test_several_are_let_go_at_once_and_one_is_dropped(resolver: Lab, held: Queue, family: int) -> None:
    with Conversation(resolver, family) as talk:
        talk.ask()
        for number in range(10):
            talk.answer(b"%d" % number)
        packets = []
        while len(packets) < 10:
            wait_for(held)
            packets += held.receive(4)
        numbers = [one.number for one in packets]
        assert numbers == sorted(numbers)
        held.drop(numbers[2:3])
        held.accept([*numbers[:2], *numbers[3:6]])
        assert [talk.client.recv(100) for _ in range(5)] == [b"0", b"1", b"3", b"4", b"5"]
        assert nothing(talk.client)
        held.accept(numbers[6:])
        assert [talk.client.recv(100) for _ in range(4)] == [b"6", b"7", b"8", b"9"]


@pytest.mark.parametrize("size", [1400, 4000, 60000])
def test_fragments_come_whole(resolver: Lab, held: Queue, family: int, size: int) -> None:
    with Conversation(resolver, family) as talk:
        talk.ask()
        talk.answer(bytes(size))
        wait_for(held)
        (one,) = held.receive(10)
        found = packet.parse(one.data)
        assert found is not None
        assert (len(found.payload), one.whole) == (size, True)
        held.accept([one.number])
        assert len(talk.client.recv(65536)) == size


@pytest.mark.parametrize("local", [False, True], ids=["forwarded", "local"])
def test_tcp(resolver: Lab, held: Queue, copies: Log, family: int, local: bool) -> None:
    size = 60000
    with contextlib.ExitStack() as stack:
        where = resolver.gateway if local else resolver.origin
        address = GATEWAY[family] if local else resolver.ORIGIN[family]
        listener = stack.enter_context(resolver.open(where, family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 53))
        listener.listen()
        client = stack.enter_context(resolver.open(resolver.client, family, socket.SOCK_STREAM))
        client.setblocking(False)
        client.connect_ex((address, 53))
        seen: list[packet.Packet] = []
        answered = b""
        accepted: socket.socket | None = None
        deadline = time.monotonic() + PATIENCE
        while len(answered) < size:
            assert time.monotonic() < deadline
            ready, _, _ = select.select([held, client, *([listener] if accepted is None else [])], [], [], 1)
            if held in ready:
                for one in held.receive(100):
                    found = packet.parse(one.data)
                    assert found is not None
                    seen.append(found)
                    held.accept([one.number])
            if client in ready:
                answered += client.recv(65536)
            if listener in ready:
                accepted = stack.enter_context(listener.accept()[0])
                client.send(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(bytes(size))
        assert seen[0].flags & SYN
        assert sum(len(one.payload) for one in seen) == size
        asked = [one for one in map(packet.parse, copies.receive(1000)) if one is not None]
        assert asked[0].flags & SYN
        assert b"".join(one.payload for one in asked) == b"question"


def test_only_answers_of_connections_are_held(resolver: Lab, held: Queue, copies: Log, family: int) -> None:
    with (
        Conversation(resolver, family) as talk,
        resolver.listener(family, 5353, socket.SOCK_DGRAM) as other,
        resolver.open(resolver.client, family, socket.SOCK_DGRAM) as another,
    ):
        another.connect((resolver.ORIGIN[family], 5353))
        another.send(b"hello")
        _, peer = other.recvfrom(100)
        other.sendto(b"hello", peer)
        assert another.recv(100) == b"hello"  # no rule for another port
        # An unsolicited answer: to the client itself, and to the translated address.
        talk.resolver.sendto(b"forged", (resolver.CLIENT[family], 4000))
        talk.resolver.sendto(
            b"forged", ("203.0.113.1" if family == socket.AF_INET else "2001:db8:f::1", 4000)
        )
        # The socket of the client, which asked another server, receives no answer.
        assert nothing(talk.client)
        assert held.receive(10) == copies.receive(10) == []


def test_what_another_firewall_drops_is_not_held(resolver: Lab, held: Queue, family: int) -> None:
    run("nft add chain inet marker before '{ type filter hook forward priority 225; }'")
    run("nft add rule inet marker before udp sport 53 drop")
    with Conversation(resolver, family) as talk:
        talk.ask()
        talk.answer()
        assert nothing(talk.client)
        assert held.receive(10) == []


@pytest.mark.parametrize("dns", ["pass", "drop"])
def test_while_nobody_listens(lab: Lab, family: int, dns: Dns) -> None:
    install(lab, dns)
    with Conversation(lab, family) as talk:
        talk.ask()
        talk.answer()
        assert nothing(talk.client) == (dns == "drop")
        with Queue(DNS_QUEUE, fail_open=True) as held:
            talk.answer(b"held")
            wait_for(held)
        # The kernel drops held packets when the listener ends; the next packet passes as before.
        talk.ask(b"again")
        talk.answer(b"next")
        if dns == "pass":
            assert [talk.client.recv(100) for _ in range(2)] == [b"answer", b"next"]
        assert nothing(talk.client)


@pytest.mark.parametrize("fail_open", [True, False])
def test_too_many_held(resolver: Lab, family: int, fail_open: bool) -> None:
    with (
        Queue(DNS_QUEUE, fail_open=fail_open, length=5) as held,
        Conversation(resolver, family) as talk,
    ):
        talk.ask()
        for _ in range(8):
            talk.answer()
        wait_for(held)
        time.sleep(SOON)
        got = 0
        while not nothing(talk.client):
            talk.client.recv(100)
            got += 1
        assert got == (3 if fail_open else 0)
        assert held.dropped() == (0 if fail_open else 3)
        packets = held.receive(100)
        assert len(packets) == 5
        held.fail_open(not fail_open)
        for _ in range(3):
            talk.answer()
        assert nothing(talk.client) == fail_open
        held.accept([one.number for one in packets])
        assert talk.client.recv(100) == b"answer"


def test_a_full_buffer_is_noticed(resolver: Lab, family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "enforcer.kernel.packet_socket.RECEIVE_BUFFER", 1
    )  # the kernel raises it to a few kilobytes
    with Queue(DNS_QUEUE, fail_open=True) as held, Conversation(resolver, family) as talk:
        talk.ask()
        for _ in range(20):
            talk.answer(bytes(1000))
        wait_for(held)
        time.sleep(SOON)
        packets = held.receive(100)
        assert held.overflows >= 1
        assert 0 < len(packets) < 20
        held.accept([one.number for one in packets])
        for _ in range(20):  # packets that the buffer had no room for passed
            assert len(talk.client.recv(2000)) == 1000


def test_a_full_buffer_does_not_disturb_settings(
    resolver: Lab, held: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A socket that reports once that packets were lost."""

        def __init__(self, real: socket.socket) -> None:
            self.real, self.lost = real, True

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def recv(self, size: int) -> bytes:
            if self.lost:
                self.lost = False
                raise OSError(errno.ENOBUFS, "no buffer space")
            return self.real.recv(size)

    monkeypatch.setattr(held, "_socket", Full(held._socket))
    held.fail_open(False)
    assert held.overflows == 1


def test_one_listener_at_a_time(resolver: Lab, held: Queue, copies: Log) -> None:
    with pytest.raises(BusyError, match="another process"):
        Queue(DNS_QUEUE, fail_open=True)
    with pytest.raises(BusyError, match="another process"):
        Log(DNS_QUEUE)
    held.close()
    Queue(DNS_QUEUE, fail_open=True).close()
    with Queue(DNS_QUEUE + 1, fail_open=True), inside(resolver.client):
        Queue(DNS_QUEUE + 1, fail_open=True).close()  # in another namespace


def test_letting_go_what_is_not_held_is_no_error(resolver: Lab, held: Queue) -> None:
    held.accept([77, 78])
    held.drop([79])
    assert held.receive(10) == []
    assert held.late == 3


def test_two_questions_at_once_from_one_port(resolver: Lab, held: Queue, family: int) -> None:
    """The A and AAAA questions of a resolver library, whose answers take two seconds: none may be lost."""
    with Conversation(resolver, family) as talk:
        talk.client.send(b"A")
        talk.client.send(b"AAAA")
        asked = [talk.resolver.recvfrom(100) for _ in range(2)]
        time.sleep(2)
        for data, peer in asked:
            talk.resolver.sendto(data, peer)
        packets = []
        while len(packets) < 2:
            wait_for(held)
            packets += held.receive(10)
        held.accept([one.number for one in packets])
        assert [talk.client.recv(100) for _ in range(2)] == [b"A", b"AAAA"]


def test_copies_that_nobody_reads_hurt_nobody(
    resolver: Lab, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enforcer.kernel.packet_socket.RECEIVE_BUFFER", 1)
    with Log(DNS_QUEUE) as copies, Conversation(resolver, family) as talk:
        for number in range(50):
            talk.ask(b"%d" % number)
        found = copies.receive(100)
        assert copies.overflows >= 1
        first = packet.parse(found[0])
        assert first is not None
        assert first.payload == b"0"


# Another host of the same client prefix, and another client.
NEIGHBOUR = {socket.AF_INET: "10.1.0.2", socket.AF_INET6: "fd01::3"}
OTHER = {socket.AF_INET: "10.1.0.3", socket.AF_INET6: "fd01:0:0:1::2"}


@pytest.mark.parametrize("local", [False, True], ids=["forwarded", "local"])
@pytest.mark.parametrize("dns", ["pass", "drop"])
def test_one_clients_flood_is_not_shown(
    lab: Lab, family: int, dns: Dns, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above its rate a client's questions are not copied and its answers not held; other clients' are."""
    burst, flood = 5, 40
    monkeypatch.setattr(expr, "DNS_RATE", 1)
    monkeypatch.setattr(expr, "DNS_BURST", burst)
    install(lab, dns)
    for address in ("10.1.0.3/24", "fd01::3/64", "fd01:0:0:1::2/64"):
        run(f"ip -n {lab.client} addr add {address} dev eth0")
    run("ip addr add fd01:0:0:1::1/64 dev in0 nodad")
    with Queue(DNS_QUEUE, fail_open=True) as held, Log(DNS_QUEUE) as copies:
        with Conversation(lab, family, local, NEIGHBOUR[family]) as talk:
            for number in range(flood):
                talk.ask(b"%d" % number)
                talk.answer(b"%d" % number)
            # Each second that has passed adds a token.
            copied, kept = len(copies.receive(100)), len(held.receive(100))
            assert burst <= copied <= burst + 3
            assert burst <= kept <= burst + 3
            counted = nft.counters()
            assert counted[DNS_QUESTIONS_OVER][0] == flood - copied
            assert counted[DNS_ANSWERS_OVER][0] == flood - kept
            if dns == "pass":
                assert {talk.client.recv(100) for _ in range(flood - kept)}
            assert nothing(talk.client)
        with Conversation(lab, family, local, lab.CLIENT[family]) as talk:  # IPv6: the same /64
            for _ in range(burst):
                talk.ask()
                talk.answer()
            assert len(copies.receive(100)) <= 3
            assert len(held.receive(100)) <= 3
        with Conversation(lab, family, local, OTHER[family]) as talk:
            talk.ask()
            talk.answer()
            assert len(copies.receive(100)) == 1
            wait_for(held)
            (one,) = held.receive(100)
            held.accept([one.number])
            assert talk.client.recv(100) == b"answer"
