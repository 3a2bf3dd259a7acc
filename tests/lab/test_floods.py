"""Tests of one client's flood of packets: other clients notice nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from truth import agree, dedicated, families, look, packets, running, wait_for

from enforcer.gateway.reader import GatewayReader
from lab.clients import Session, tcp_ask
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN2, Lab

NOBODY = {4: "198.18.1.99", 6: "2001:db8:a1::99"}
FLOOD = 30_000
PACE = 15_000
"""Frames a second: fills every table within seconds and leaves processor time to the other clients."""
ORIGINS_OF_OTHERS = 40
UNANSWERED = 1000
LATENCY = 0.5
"""Maximum seconds until another client's connection opens: fifty times the usual duration."""


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    """A gateway with tables that one client's flood would fill."""
    sizes = {"flows": 8192, "origins": 8192, "unanswered_per_client": UNANSWERED}
    with running(lab, lab.config(limits={"connections_per_origin": 40000, **sizes})) as gateway:
        yield gateway


class Flood:
    """Frames of one client to increasing ports of an unassigned address, as long as the block runs."""

    def __init__(self, gateway: LabGateway, family: int, kind: type, source: str):
        lab = gateway.lab
        mac = look(gateway, partial(_mac, interface="in0"))
        network = (IP if family == 4 else IPv6)(src=source, dst=NOBODY[family])
        self._frame = bytearray(bytes(Ether(dst=mac) / network / kind(sport=0, dport=0)))
        self._ports = 14 + (20 if family == 4 else 40)
        self._sum_at = self._ports + (16 if kind is TCP else 6)
        (self._sum,) = struct.unpack_from(">H", self._frame, self._sum_at)
        self._raw = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._raw.bind(("eth0", 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.sent = 0

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._raw.close()

    def _send(self) -> None:
        began = time.monotonic()
        while self.sent < FLOOD and not self._over.is_set():
            while self.sent < min(FLOOD, (time.monotonic() - began) * PACE):
                with contextlib.suppress(OSError):  # the device's queue may be full
                    self._raw.send(self._next(1024, 1024 + self.sent))
                self.sent += 1
            time.sleep(0.001)

    def _next(self, sport: int, dport: int) -> bytearray:
        """The frame with these ports and the updated checksum (RFC 1624)."""
        checksum = (~self._sum & 0xFFFF) + sport + dport
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
        struct.pack_into(">HH", self._frame, self._ports, sport, dport)
        struct.pack_into(">H", self._frame, self._sum_at, checksum or 0xFFFF)
        return self._frame


def _mac(reader: GatewayReader, interface: str) -> str:
    row = reader.maps.interfaces.get(socket.if_nametoindex(interface))
    assert row is not None
    return bytes(row["mac"]).hex(":")


def others(lab: Lab, family: int, ports: range) -> list[float]:
    """The seconds that each connection of another client takes; each port is a new origin to the gateway."""
    taken = []
    for port in ports:
        began = time.monotonic()
        session = Session(lab.client2, ORIGIN2[family], port, CLIENT2[family], timeout=5)
        taken.append(time.monotonic() - began)
        assert session.seen.address in dedicated(family, CLIENT2[family])
        session.reset()
    return taken


@contextlib.contextmanager
def many_ports(lab: Lab, ports: range) -> Iterator[None]:
    """The second origin's reporter also answers on these ports."""
    lab.origin2.run("nft", "add table inet ports")
    lab.origin2.run("nft", "add chain inet ports prerouting { type nat hook prerouting priority -100; }")
    rule = f"add rule inet ports prerouting tcp dport {ports.start}-{ports.stop - 1} redirect to :9000"
    lab.origin2.run("nft", rule)
    yield
    lab.origin2.run("nft", "delete table inet ports")


@pytest.mark.rfc6888_req4
@pytest.mark.rfc6888_req4a
@pytest.mark.rfc6888_req5
@families
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["syn", "udp"])
def test_a_flood_of_one_client_is_its_own_affair(enforced: LabGateway, family: int, kind: type) -> None:
    lab, ports = enforced.lab, range(20000, 20000 + 2 * ORIGINS_OF_OTHERS)
    calm, stormy = range(ports.start, ports.start + ORIGINS_OF_OTHERS), ports[ORIGINS_OF_OTHERS:]
    refused = packets(enforced)
    with many_ports(lab, ports), Session(lab.client2, ORIGIN2[family], source=CLIENT2[family]) as known:
        before = others(lab, family, calm)
        with Flood(enforced, family, kind, CLIENT[family]) as flood:
            wait_for(lambda: flood.sent > 2 * UNANSWERED, "the flood")
            during = others(lab, family, stormy)
            # An existing connection and one to a known origin work, too.
            assert known.ask() == known.seen
            assert tcp_ask(lab.client2, ORIGIN2[family], source=CLIENT2[family]).address
            wait_for(lambda: flood.sent == FLOOD, "the flood's end")
    print(f"worst before {max(before):.3f} s, during {max(during):.3f} s")
    assert max(during) < LATENCY
    after = packets(enforced) - refused
    assert after["client-unanswered"] > FLOOD / 2
    assert not after["flows-full"] and not after["origins-full"]
    assert (UNANSWERED, UNANSWERED) in look(enforced, _clients)
    lab.gw.run("conntrack", "-D", "-d", NOBODY[family], "-f", f"ipv{family}", check=False)
    agree(enforced, patience=60)


def _clients(reader: GatewayReader) -> list[tuple[int, int]]:
    rows = reader.maps.client_prefixes.items()[1]
    return [(int(row["flows"]), int(row["unanswered"])) for row in rows]


@families
def test_many_clients_fill_the_tables_and_others_get_in(enforced: LabGateway, family: int) -> None:
    """Ten clients reach their caps; their unanswered flows make room."""
    lab, ports = enforced.lab, range(21000, 21000 + ORIGINS_OF_OTHERS)
    before = packets(enforced)
    host = "10.0.1.{}" if family == 4 else "fd00:{}::2"
    with contextlib.ExitStack() as floods, many_ports(lab, ports):
        if family == 6:
            # The inside network routes a /64 to each of them.
            lab.gw.run("ip", "-6", "route", "add", "fd00:100::/24", "via", CLIENT[6], "dev", "in0")
            floods.callback(lab.gw.run, "ip", "-6", "route", "del", "fd00:100::/24")
        for number in range(10):
            source = host.format(100 + number if family == 4 else f"{0x100 + number:x}")
            with Flood(enforced, family, UDP, source) as flood:
                wait_for(lambda flood=flood: flood.sent > UNANSWERED * 3 // 2, "the flood")  # type: ignore[misc]
        during = others(lab, family, ports)
    assert max(during) < LATENCY
    after = packets(enforced) - before
    assert not after["flows-full"] and not after["origins-full"]
    wait_for(lambda: "the table of flows is full" in enforced.said(), "the log saying so")
    tables = enforced.json("status")["tables"]
    assert tables["flows"]["full"] and tables["evicted"] > 0
    enforced.lab.gw.run("conntrack", "-F", check=False)
    agree(enforced, patience=60)
