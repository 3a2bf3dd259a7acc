"""The rate and the delay of learning names from DNS answers that pass the gateway.

This process is both client and resolver, with a raw socket on either side of the gateway. It sends whole
frames, so no network stack of a client or a resolver takes time. Each query has its own source port, as
those of stub resolvers have.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import ip_address
from statistics import median

import numpy as np

from bench.figures.process import running
from bench.report.results import Row, Sample
from bench.rig import documents, traffic_facts
from bench.rig.measure import Bench
from bench.rig.wire import FAR_MAC, INSIDE_MAC, NEAR_MAC, OUTSIDE_MAC, Wire
from enforcer.address import pack
from enforcer.datapath.maps import Maps
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance
from lab.netns import LabError

NAMES = "Names learnt from DNS answers"
_MANY, _FEW = 10_000, 300
_AT_ONCE = 128
"""Queries that have no answer yet, at any time."""
_FIRST_PORT = 10_000
_A, _AAAA = 1, 28
_DNS_PORT = 53
_CLIENT, _RESOLVER = ip_address("10.64.0.1"), ip_address("198.18.0.53")
_QUIET = 2.0
_ETHERNET, _IP, _UDP = 14, 20, 8
_ETH_P_IP = 0x0800
_OUTGOING = 4
_HEADERS = _ETHERNET + _IP + _UDP


def names(bench: Bench) -> None:
    """Measures new names, the same names again, and single answers, with and without policies on names."""
    regions = traffic_facts.write_regions(bench.directory / "regions.mmdb", prefixes=1000)
    mixed = documents.located(documents.policies(1000), regions)
    bench.say(NAMES)
    with running(bench, "names", mixed, sinks=False) as daemon:
        daemon.start()
        with ExitStack() as stack:
            resolver = stack.enter_context(closing(Resolver(daemon.wire)))
            maps = stack.enter_context(closing(Gateway(Instance(daemon.namespace.cookie())).maps()))
            began = time.monotonic()
            resolver.ask(range(_MANY), _AT_ONCE, partial(_is_learnt, maps))
            new = _MANY / (time.monotonic() - began)
            began = time.monotonic()
            resolver.ask(range(_MANY), _AT_ONCE)
            again = _MANY / (time.monotonic() - began)
            held = median(resolver.ask(range(_MANY, _MANY + _FEW), 1))
    with running(bench, "nameless", documents.gateway(), sinks=False) as daemon:
        daemon.start()
        with closing(Resolver(daemon.wire)) as resolver:
            unheld = median(resolver.ask(range(_FEW), 1))
    found = [
        (f"{_MANY:,} new names, 1,000 policies", "/s", new),
        ("the same names again", "/s", again),
        ("one answer to a new name, from its question on", "ms", 1000 * held),
        ("the same where no policy asks about names", "ms", 1000 * unheld),
    ]
    bench.add([Row(NAMES, "", what, unit, (Sample(value),)) for what, unit, value in found])


def _address(name: int) -> bytes:
    """Even names have an IPv4 address, odd ones an IPv6 address."""
    first = "2001:db8:b::" if name % 2 else "198.19.0.0"
    return (ip_address(first) + name).packed


def _is_learnt(maps: Maps, name: int) -> None:
    """Looks one name in a hundred up in the classifier's map; LabError if the map lacks it."""
    if name % 100:
        return
    key = np.zeros((), dtype=maps.hosts.key)
    address = _address(name)
    key["client"] = np.frombuffer(pack(_CLIENT), dtype="<u4")
    key["address"] = np.frombuffer(pack(ip_address(address)), dtype="<u4")
    if maps.hosts.get(key) is None:
        raise LabError(f"the client has the answer about name {name} before it is learnt")


class Resolver:
    """A resolver and its client, on either side of a gateway."""

    def __init__(self, wire: Wire):
        self._near, self._far = self._open(wire, "near"), self._open(wire, "far")
        self._port = _FIRST_PORT

    @staticmethod
    def _open(wire: Wire, interface: str) -> socket.socket:
        opened = wire.ends.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        opened.bind((interface, _ETH_P_IP))
        opened.setblocking(False)
        return opened

    def close(self) -> None:
        self._near.close()
        self._far.close()

    def ask(self, wanted: range, at_once: int, seen: Callable[[int], None] = lambda _: None) -> list[float]:
        """Asks for names by number; returns the seconds that each answer took.

        ``seen`` is called with each name when its answer arrives. Raises LabError if an answer is missing.
        """
        took: list[float] = []
        open_: dict[int, float] = {}
        left = iter(wanted)
        base = wanted.start
        while len(took) < len(wanted):
            while len(open_) < at_once and (name := next(left, None)) is not None:
                open_[name - base] = time.monotonic()
                self._near.send(self._question(name, name - base))
            ready, _, _ = select.select([self._near, self._far], [], [], _QUIET)
            if not ready:
                raise LabError(f"{len(open_):,} of {len(wanted):,} DNS answers did not come")
            for frame in self._received(self._far):
                self._far.send(answer(frame))
            for frame in self._received(self._near):
                (number,) = struct.unpack_from("!H", frame, _HEADERS)
                if number in open_:
                    took.append(time.monotonic() - open_.pop(number))
                    seen(base + number)
        return took

    @staticmethod
    def _received(source: socket.socket) -> list[bytes]:
        """UDP frames that arrived at the socket's interface, without those that this process sent there."""
        found: list[bytes] = []
        while True:
            try:
                frame, (_, _, kind, *_) = source.recvfrom(2048)
            except BlockingIOError:
                return found
            if kind != _OUTGOING and frame[_ETHERNET + 9] == socket.IPPROTO_UDP:
                found.append(frame)

    def _question(self, name: int, number: int) -> bytes:
        self._port = self._port + 1 if self._port < 65000 else _FIRST_PORT
        return question(name, number, self._port)


def question(name: int, number: int, port: int) -> bytes:
    """The frame of the client's query for a name, from a source port."""
    labels = f"n{name}.{traffic_facts.site(name % 200)}".split(".")
    written = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    message = struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + written
    message += struct.pack("!2H", _AAAA if name % 2 else _A, 1)
    return _frame((INSIDE_MAC, NEAR_MAC), (_CLIENT.packed, _RESOLVER.packed), (port, _DNS_PORT), message)


def answer(frame: bytes) -> bytes:
    """The frame of the resolver's answer to the query in ``frame``."""
    source, destination = frame[_ETHERNET + 12 : _ETHERNET + 16], frame[_ETHERNET + 16 : _ETHERNET + 20]
    ports = struct.unpack_from("!2H", frame, _ETHERNET + _IP)
    asked = frame[_HEADERS:]
    label = asked[13 : 13 + asked[12]]
    address = _address(int(label[1:]))
    (number,) = struct.unpack_from("!H", asked)
    message = struct.pack("!6H", number, 0x8180, 1, 1, 0, 0) + asked[12:]
    kind = _AAAA if len(address) == 16 else _A
    message += struct.pack("!3HIH", 0xC00C, kind, 1, 3600, len(address)) + address
    return _frame((OUTSIDE_MAC, FAR_MAC), (destination, source), (ports[1], ports[0]), message)


def _frame(
    macs: tuple[str, str], addresses: tuple[bytes, bytes], ports: tuple[int, int], message: bytes
) -> bytes:
    """An Ethernet frame of one UDP datagram over IPv4, without the optional checksum (RFC 768)."""
    size = _UDP + len(message)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, _IP + size, 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
    ip += addresses[0] + addresses[1]
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]
    ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + struct.pack("!H", _ETH_P_IP)
    return ethernet + ip + struct.pack("!4H", *ports, size, 0) + message
