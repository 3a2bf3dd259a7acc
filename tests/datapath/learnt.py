"""A flow with fast-path entries, and the outcome of its packets with and without the fast path."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import numpy as np

from enforcer.address import pack
from enforcer.constants import TCP
from enforcer.datapath import fast_path
from enforcer.reasons import by_name

from . import frames as made
from .box import CLIENT, CLIENT_MAC, MAC, ORIGIN, ROUTER_MAC, Box
from .frames import Ends, Packet
from .wire import _ADDRESS, _NEIGHBOUR, ACK, SYN, Wire, _mac

REPLY = by_name()["reply"].number
"""The reason in entries of the reply direction."""
LARGEST = 1500
_PACKET_VNET_HDR = 15  # linux/if_packet.h
PLAIN = bytes(10)
"""A virtio_net_hdr that requests no offload."""


@dataclass(frozen=True)
class Outcome:
    """The frames that the gateway sends for one packet, at both ends, each with its virtio header."""

    far: list[bytes]
    near: list[bytes]
    fast: int = 0
    """The number of packets that the entry counted."""


@dataclass
class Place:
    """The place of one direction's entry in the table."""

    bucket: int
    slot: int


class OffloadWire(Wire):
    """A wire whose frames carry a virtio_net_hdr, which can request checksum and segmentation offload."""

    def __init__(self) -> None:
        super().__init__()
        for end in (self.client, self.origin):
            end.setsockopt(263, _PACKET_VNET_HDR, 1)  # SOL_PACKET
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)

    def put(self, back: bool, frames: list[bytes], header: bytes = PLAIN) -> Outcome:
        """Sends frames at one end; returns the frames that arrive at both."""
        near, far = (self.origin, self.client) if back else (self.client, self.origin)
        self.taken(near)
        self.taken(far)
        for frame in frames:
            near.send(header + frame)
        # A busy processor may have deferred work.
        returned = self.ask("out0" if back else "in0", near)
        return Outcome(self.taken(far), returned)

    def ask(self, interface: str, near: socket.socket) -> list[bytes]:
        """The frames that arrive before the reply to an ARP request (Wire.settle)."""
        mac, asker, asked = _mac(MAC[interface]), _NEIGHBOUR[interface], _ADDRESS[interface]
        question = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac[:5] + b"\x99" + asker + bytes(6) + asked
        near.send(PLAIN + mac + mac[:5] + b"\x99" + b"\x08\x06" + question)
        near.settimeout(10)
        found: list[bytes] = []
        try:
            while True:
                frame, where = near.recvfrom(1 << 17)
                if where[2] == socket.PACKET_OUTGOING:
                    continue
                if frame[22:24] == b"\x08\x06":
                    return found
                found.append(frame)
        finally:
            near.setblocking(False)

    @staticmethod
    def taken(end: socket.socket) -> list[bytes]:
        found: list[bytes] = []
        while True:
            try:
                frame, where = end.recvfrom(1 << 17)
            except BlockingIOError:
                return found
            if where[2] != socket.PACKET_OUTGOING:
                found.append(frame)


@dataclass
class Learnt:
    """An established flow from the client to the origin."""

    box: Box
    wire: OffloadWire
    family: int
    protocol: int
    client_port: int
    origin_port: int = 443
    translated: tuple[bytes, int] = (b"", 0)
    entries: dict[bool, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fast_path.set_enabled(self.box.maps, on=False)
        first = Packet(tcp_flags=SYN, sequence=999)
        assert self.put(first).far
        answer = Packet(back=True, tcp_flags=SYN | ACK, sequence=1999, acknowledgement=1000)
        assert self.put(answer).far
        if self.protocol == TCP:
            assert self.put(Packet(sequence=1000, acknowledgement=2000)).far

    def ends(self, back: bool) -> Ends:
        client, origin = (ip_address(one[self.family]).packed for one in (CLIENT, ORIGIN))
        ports = self.client_port, self.origin_port
        if not back:
            return Ends(client, origin, ports, self.protocol, _mac(CLIENT_MAC), _mac(MAC["in0"]))
        address, port = self.translated
        return Ends(
            origin, address, (self.origin_port, port), self.protocol, _mac(ROUTER_MAC), _mac(MAC["out0"])
        )

    def placed(self, packet: Packet) -> Packet:
        """The packet with absolute sequence numbers; those of ``packet`` are relative to the connection."""
        if packet.tcp_flags & SYN:
            return packet
        mine, theirs = (2000, 1000) if packet.back else (1000, 2000)
        return replace(
            packet, sequence=packet.sequence + mine, acknowledgement=packet.acknowledgement + theirs
        )

    def put(self, packet: Packet) -> Outcome:
        """Sends the packet unchanged."""
        outcome = self.wire.put(packet.back, made.frames(packet, self.ends(packet.back)))
        if outcome.far and packet.tcp_flags & SYN and not packet.back:
            self._note_translation(outcome.far[0][24:])
        return outcome

    def _note_translation(self, packet: bytes) -> None:
        """Records the translated address and port: a reopened connection may get another port."""
        at, ports = (12, 20) if self.family == 4 else (8, 40)
        size = 4 if self.family == 4 else 16
        self.translated = packet[at : at + size], int.from_bytes(packet[ports : ports + 2], "big")

    def full(self, back: bool, size: int = LARGEST) -> Packet:
        """An ordinary packet of ``size`` bytes."""
        empty = Packet(back=back)
        return self.placed(Packet(back=back, payload=size - made.length(empty, self.ends(back))))

    def learn(self, size: int = LARGEST) -> None:
        """Switches the fast path on and has both entries created from packets of this size."""
        fast_path.set_enabled(self.box.maps, on=True)
        for back in (False, True):
            assert self.put(self.full(back, size)).far
        self.entries = self.found()
        assert self.entries.keys() == {False, True}, "not learnt"

    def switch_on(self) -> None:
        """Switches the fast path on; later packets create the entries."""
        fast_path.set_enabled(self.box.maps, on=True)

    def forget(self) -> None:
        """Switches the fast path off: the kernel forwards every packet."""
        fast_path.set_enabled(self.box.maps, on=False)

    def found(self) -> dict[bool, Place]:
        """The valid entries."""
        current = self.box.maps.fast_path.get(0)
        assert current is not None
        _, buckets = self.box.maps.fast_buckets.items()
        entries = buckets["entry"]
        client = pack(ip_address(CLIENT[self.family]))
        mine = (
            (entries["until"] != 0)
            & (entries["generation"] == current["generation"])
            & (entries["client_port"] == socket.htons(self.client_port))
            & (entries["kind"] & 0x7F == self.protocol)
            & (entries["client"].view("u1").reshape(*entries.shape, 16) == np.frombuffer(client, "u1")).all(
                axis=-1
            )
        )
        found = {}
        for index, slot in zip(*np.nonzero(mine), strict=True):
            found[int(entries[index, slot]["reason"]) == REPLY] = Place(int(index), int(slot))
        return found

    def fast_packets(self, back: bool) -> int:
        """The number of packets of this direction that took the fast path."""
        place = self.entries[back]
        bucket, flow = self.box.maps.fast_buckets.get(place.bucket), self.box.maps.flows.get(self.key())
        assert bucket is not None
        assert flow is not None
        return int(flow["fast_packets"][int(back)]) + int(bucket["entry"][place.slot]["packets"])

    def key(self) -> np.ndarray:
        key = np.zeros((), dtype=self.box.maps.flows.key)
        client, origin = (
            np.frombuffer(pack(ip_address(one[self.family])), "<u4") for one in (CLIENT, ORIGIN)
        )
        key["client"], key["origin"] = client, origin
        key["client_port"], key["origin_port"] = (
            socket.htons(self.client_port),
            socket.htons(self.origin_port),
        )
        key["protocol"] = self.protocol
        return key

    def watched(self, packet: Packet) -> Outcome:
        """Sends the packet; the outcome tells whether it took the fast path."""
        before = self.fast_packets(packet.back)
        outcome = self.put(packet)
        return Outcome(outcome.far, outcome.near, self.fast_packets(packet.back) - before)
