"""Tests of the lifetime and the end of flows on the fast path: one, hundreds and thousands of flows."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastpath import actives, learnt, rows, share, wait_until_fast
from messages import datagrams
from transfer import Transfer
from truth import agree, counted, families, look, origins, running, tracked, wait_for
from versions import impatient

from enforcer.datapath import fast_entries, fast_path
from enforcer.gateway.reader import GatewayReader
from enforcer.gateway.timers import REFRESH
from lab.clients import family_of
from lab.configuration import LAX1, Document
from lab.gateway import LabGateway
from lab.load import Hammer, Holders, client_sources
from lab.netns import Namespace
from lab.topology import CLIENT, ORIGIN1, ORIGIN2, Lab

PORT = 7200
TIMER = 1
HARD = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST instead of FIN
MANY = 40_000


def everything_by_one(lab: Lab) -> Document:
    """All traffic leaves by one egress IP, so each origin has one count."""
    policy = {
        "name": "everything",
        "precedence": 1,
        "traffic": 'net.protocol in {"tcp" "udp"}',
        "egress": {"ipv4": LAX1[4], "ipv6": LAX1[6]},
    }
    return lab.config(policies=[policy])


@pytest.fixture(scope="module")
def lab(machine: None) -> Iterator[Lab]:
    """A lab with two inside and two outside interfaces."""
    with Lab(f"lab{os.getpid()}-flows", outside=2) as built:
        yield built


@pytest.fixture(scope="module")
def enforced(lab: Lab) -> Iterator[LabGateway]:
    with running(lab, everything_by_one(lab)) as gateway:
        yield gateway


# --- interfaces


@families
def test_every_pair_of_interfaces(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    for client in (lab.client, lab.client2):
        for server, addresses in ((lab.origin1, ORIGIN1), (lab.origin2, ORIGIN2)):
            with Transfer(client, server, addresses[family], 1 << 21) as transfer:
                wait_until_fast(enforced, [transfer.client_port])
                assert transfer.finish() >= 1 << 22
    agree(enforced)


# --- learning


@families
def test_an_opening_is_not_learnt_from_but_the_first_data(enforced: LabGateway, family: int) -> None:
    (pair,) = connected(enforced.lab.client, enforced.lab.origin1, ORIGIN1[family], 1)
    assert learnt(enforced) == 0
    pair.near.send(b"x")
    wait_for(lambda: learnt(enforced) == 1, "the way out")
    pair.far.send(b"y")
    wait_for(lambda: learnt(enforced) == 2, "the way back")
    for end in (pair.near, pair.far):
        reset(end)
    wait_for(lambda: learnt(enforced) == 0, "its ways gone", 2)


@families
def test_who_only_acknowledges_is_learnt_from(enforced: LabGateway, family: int) -> None:
    """The origin sends data and receives none."""
    (pair,) = connected(enforced.lab.client, enforced.lab.origin1, ORIGIN1[family], 1)
    data = bytes(1 << 15)
    pair.near.settimeout(5)
    for _ in range(3):
        pair.far.sendall(data)
        left = len(data)
        while left:
            left -= len(pair.near.recv(left))
    wait_for(lambda: learnt(enforced) == 2, "both ways")
    for end in (pair.near, pair.far):
        reset(end)
    wait_for(lambda: learnt(enforced) == 0, "its ways gone", 2)


# --- ends


@dataclass
class Pair:
    """Both sockets of a connection."""

    near: socket.socket
    far: socket.socket


def connected(client: Namespace, server: Namespace, address: str, count: int) -> list[Pair]:
    """This number of connections with non-blocking sockets."""
    family = family_of(address)
    pairs = []

    def many() -> list[socket.socket]:
        return [socket.socket(family, socket.SOCK_STREAM) for _ in range(count)]

    with contextlib.closing(server.socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        listener.listen(count)
        for near in client.call(many):
            near.connect((address, PORT))
            far, _ = listener.accept()
            near.setblocking(False)
            far.setblocking(False)
            pairs.append(Pair(near, far))
    return pairs


def busy(pairs: list[Pair], rounds: int, chance: random.Random) -> None:
    """Both ends send and receive in random order, as much as is possible without blocking."""
    data = bytes(8192)
    for _ in range(rounds):
        for pair in pairs:
            for end in (pair.near, pair.far):
                if end.fileno() < 0:
                    continue
                with contextlib.suppress(OSError):
                    end.send(data[: chance.randrange(1, 8192)])
                if chance.random() < 0.9:
                    with contextlib.suppress(OSError):
                        end.recv(1 << 16)


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
    end.close()


def end_one(pair: Pair, chance: random.Random) -> None:
    """End the connection in a random way, with or without data in flight."""
    one, other = (pair.near, pair.far) if chance.random() < 0.5 else (pair.far, pair.near)
    kind = chance.randrange(4)
    if kind == 0:
        reset(one)
    elif kind == 1:
        one.close()  # unread data turns this into a reset
    else:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_WR)
            # The other direction goes on for some rounds.
            for _ in range(chance.randrange(10)):
                busy([pair], 1, chance)
        if kind == 2:
            reset(other)
        else:
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)


def drain(pairs: list[Pair]) -> None:
    """Read both ends until end of file and close them."""
    deadline = time.monotonic() + 10
    left = [end for pair in pairs for end in (pair.near, pair.far) if end.fileno() >= 0]
    while left and time.monotonic() < deadline:
        for end in list(left):
            try:
                if not end.recv(1 << 20):
                    end.close()
            except BlockingIOError:
                continue
            except OSError:
                end.close()
            if end.fileno() < 0:
                left.remove(end)
    assert not left, "an end was never heard of"


@families
def test_ends_at_any_moment_give_the_count_back_once(enforced: LabGateway, family: int) -> None:
    """Hundreds of connections end in random order, from a random side, in a random way, amid traffic."""
    lab, count = enforced.lab, 250
    chance = random.Random(family)
    pairs = connected(lab.client, lab.origin1, ORIGIN1[family], count)
    wait_for(lambda: sum(counted(enforced).values()) == count, "all counted")
    busy(pairs, 4, chance)
    ports = [pair.near.getsockname()[1] for pair in pairs]
    assert share(rows(enforced, ports)) > 0.5
    chance.shuffle(pairs)
    for pair in pairs:
        busy(chance.sample(pairs, 3), 1, chance)
        end_one(pair, chance)
        assert max(actives(enforced)) <= count
    drain(pairs)
    # At once: no timer is shorter than a minute.
    wait_for(lambda: not any(actives(enforced)), "all counts given back", 5)
    assert not counted(enforced)
    wait_for(lambda: learnt(enforced) == 0, "all ways gone", 5)
    time.sleep(0.2)
    assert not any(actives(enforced))


@families
@pytest.mark.parametrize("who", ["client", "origin"])
@pytest.mark.parametrize("sender", ["client", "origin"])
def test_a_reset_in_mid_transfer_ends_the_count_at_once(
    enforced: LabGateway, family: int, who: str, sender: str
) -> None:
    lab = enforced.lab
    chance = random.Random(0)
    (pair,) = connected(lab.client, lab.origin1, ORIGIN1[family], 1)
    near_port = pair.near.getsockname()[1]
    busy([pair], 20, chance)
    assert share(rows(enforced, [near_port])) > 0.5
    source, sink = (pair.near, pair.far) if sender == "client" else (pair.far, pair.near)
    with contextlib.suppress(BlockingIOError):
        while True:
            source.send(bytes(1 << 16))  # until the send buffer is full: the sink does not read
    sink.recv(1 << 16)
    reset(pair.near if who == "client" else pair.far)
    wait_for(lambda: not any(actives(enforced)), "the count given back", 2)
    drain([pair])
    wait_for(lambda: learnt(enforced) == 0, "its ways gone", 2)


@families
def test_half_a_connection_carries_on(enforced: LabGateway, family: int) -> None:
    """After the client's FIN the origin sends a megabyte; the flow stays counted until the origin's FIN."""
    lab, chance = enforced.lab, random.Random(1)
    (pair,) = connected(lab.client, lab.origin1, ORIGIN1[family], 1)
    busy([pair], 20, chance)
    assert share(rows(enforced, [pair.near.getsockname()[1]])) > 0.5
    pair.near.shutdown(socket.SHUT_WR)
    while pair.far.recv(1 << 20):
        pass
    with contextlib.suppress(BlockingIOError):
        while pair.near.recv(1 << 20):
            pass
    pair.near.settimeout(10)
    sent = os.urandom(1 << 20)
    got = bytearray()
    for start in range(0, len(sent), 1 << 15):
        pair.far.sendall(sent[start : start + (1 << 15)])
        got += pair.near.recv(1 << 20)
        assert sum(counted(enforced).values()) == 1
    pair.far.close()
    while part := pair.near.recv(1 << 20):
        got += part
    assert bytes(got) == sent
    pair.near.close()
    wait_for(lambda: not any(actives(enforced)), "the count given back", 2)


@families
@pytest.mark.parametrize("how", ["the origin closes first", "the client resets"])
def test_a_port_is_used_again_at_once(enforced: LabGateway, family: int, how: str) -> None:
    """The same five-tuple, with data at once."""
    lab, chance = enforced.lab, random.Random(2)
    address, port = ORIGIN1[family], 45000 + family
    with contextlib.closing(lab.origin1.socket(family_of(address), socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        listener.listen()
        listener.settimeout(5)
        for _ in range(15):
            near = lab.client.socket(family_of(address), socket.SOCK_STREAM)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            near.bind((CLIENT[family], port))
            near.settimeout(5)
            near.connect((address, PORT))
            far, _ = listener.accept()
            for end in (near, far):
                end.setblocking(False)
            busy([Pair(near, far)], 10, chance)
            (row,) = rows(enforced, [port])
            assert row["fast_packets"] > 0
            assert sum(counted(enforced).values()) == 1
            if how == "the client resets":
                reset(near)
                far.close()
            else:
                far.settimeout(5)
                near.setblocking(True)
                near.settimeout(5)
                far.shutdown(socket.SHUT_WR)
                while near.recv(1 << 20):
                    pass
                near.shutdown(socket.SHUT_WR)
                while far.recv(1 << 20):
                    pass
                near.close()
                far.close()
    wait_for(lambda: not any(actives(enforced)), "the count given back", 2)


@families
def test_a_port_that_conntrack_gives_to_another(enforced: LabGateway, family: int) -> None:
    """Replies go to the new flow at once, and packets of the old flow no longer use the port."""
    lab, given, port = enforced.lab, 40_007, 9600
    old, new = 45_100, 45_101
    protocol, address = {4: ("ip", ORIGIN1[4]), 6: ("ip6", ORIGIN1[6])}[family]
    with (
        datagrams(lab.client, CLIENT[family], old) as first,
        datagrams(lab.client, CLIENT[family], new) as second,
        datagrams(lab.origin1, address, port) as origin,
    ):
        first.sendto(b"which", (address, port))
        source = origin.recvfrom(16)[1][0]
        lab.gw.run("conntrack", "-F")
        # Both flows are translated before the daemon's own chain.
        lab.gw.run(
            "nft",
            f"table inet given {{ chain given {{ type nat hook postrouting priority 80; udp dport {port} "
            f"udp sport {{ {old}, {new} }} snat {protocol} to {_with_port(source, given)}; }}; }}",
        )
        try:
            enforced.run("relearn")  # the daemon does the same when the table appears
            time.sleep(0.5)
            for _ in range(4):
                first.sendto(b"old", (address, port))
                data, peer = origin.recvfrom(16)
                assert (data, peer[:2]) == (b"old", (source, given))
                origin.sendto(b"to old", peer)
                assert first.recv(16) == b"to old"
            assert share(rows(enforced, [old], "udp")) > 0
            lab.gw.run("conntrack", "-D", "-p", "udp", "--orig-port-src", str(old), "-f", f"ipv{family}")
            second.sendto(b"new", (address, port))
            data, peer = origin.recvfrom(16)
            assert (data, peer[:2]) == (b"new", (source, given))
            origin.sendto(b"to new", peer)
            assert second.recv(16) == b"to new"
            first.sendto(b"old", (address, port))
            origin.settimeout(0.5)
            with pytest.raises(TimeoutError):
                origin.recvfrom(16)
        finally:
            lab.gw.run("nft", "delete table inet given")
            lab.gw.run("conntrack", "-F")


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# --- over time


@pytest.fixture
def impatience(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGateway]:
    """A gateway whose conntrack forgets a flow after six seconds of silence (TIMER and REFRESH)."""
    version = impatient(tmp_path_factory.mktemp("version"))
    with Lab(f"lab{os.getpid()}-impatient") as lab:
        timers = {"tcp_established": TIMER, "udp": TIMER}
        with running(lab, everything_by_one(lab) | {"timers": timers}, version) as gateway:
            yield gateway


def test_flows_live_by_fast_packets_and_die_when_idle(impatience: LabGateway) -> None:
    lab = impatience.lab
    with contextlib.ExitStack() as stack:
        stack.enter_context(Holders(lab.origin1, PORT, capacity=10))
        flows: list[socket.socket] = []
        for family in (4, 6):
            stream = lab.client.socket(family_of(ORIGIN1[family]), socket.SOCK_STREAM)
            datagrams = lab.client.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM)
            for each in (stream, datagrams):
                stack.enter_context(contextlib.closing(each))
                each.settimeout(5)
                each.connect((ORIGIN1[family], PORT))
                flows.append(each)
        before = None
        end = time.monotonic() + TIMER + REFRESH + fast_path.LIFETIME
        while time.monotonic() < end:
            for each in flows:
                each.send(b"?" * 100)
                assert each.recv(200) == b"?" * 100
            time.sleep(0.05)
            entries = tracked(lab)
            before = before or entries
            assert entries == before
        ports = [each.getsockname()[1] for each in flows]
        found = [*rows(impatience, ports, "tcp"), *rows(impatience, ports, "udp")]
        assert len(found) == len(flows)
        assert share(found) > 0.9
        # No connection was admitted twice.
        assert sorted((row["active"], row["total"]) for row in origins(impatience)) == [(1, 1)] * 4
        assert learnt(impatience) == 2 * len(flows)
        wait_for(lambda: not tracked(lab) and not any(actives(impatience)), "all forgotten", 20)
        wait_for(lambda: learnt(impatience) == 0, "nothing learnt", 5)
        assert not rows(impatience, ports)


# --- forty thousand


@pytest.mark.slow
@families
def test_forty_thousand_flows_at_one_origin(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab

    def live_long(reader: GatewayReader) -> None:
        """Entries stay valid longer than one round over all flows takes."""
        row = reader.maps.fast_path.get(0)
        assert row is not None
        row["lifetime"] *= 30
        reader.maps.fast_path.put(0, row)

    def packets(reader: GatewayReader) -> dict[bytes, int]:
        """For each live flow, the packets that took the kernel's path."""
        keys, values = reader.maps.flows.items()
        living = values["counted"] == 1
        numbers = values["packets"][living].sum(axis=1)
        return dict(zip((key.tobytes() for key in keys[living]), numbers.tolist(), strict=True))

    look(enforced, live_long)
    try:
        with (
            Holders(lab.origin1, PORT) as holders,
            Hammer(lab.client, ORIGIN1[family], PORT, sources=client_sources(family)) as hammer,
        ):
            opened = hammer.open(MANY)
            assert (opened.opened, opened.failed) == (MANY, {})
            assert hammer.probe().answered == MANY
            before = look(enforced, packets)
            assert hammer.probe().answered == MANY
            after = look(enforced, packets)
            assert sum(counted(enforced).values()) == len(after) == MANY
            assert look(enforced, lambda reader: fast_entries.count_fast(reader.maps)) >= 0.995 * MANY
            # Some flows have no room for the entry of one direction.
            assert sum(after[key] == number for key, number in before.items()) >= 0.95 * MANY
            peers = holders.peers()
            assert len(peers) == len(set(peers)) == MANY
            hammer.close(MANY // 2)
            hammer.reset(MANY)
            wait_for(lambda: not any(actives(enforced)), "all counts given back", 30)
        wait_for(lambda: learnt(enforced) == 0, "all ways gone")
    finally:
        enforced.run("reload")
        lab.gw.run("conntrack", "-F")
