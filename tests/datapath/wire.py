"""Frames at the far ends of a box's links, and TCP segments of a client and an origin."""

from __future__ import annotations

import os
import socket
import struct
import time
from ipaddress import ip_address

from enforcer.address import pack
from enforcer.kernel import conntrack, netlink
from enforcer.kernel.conntrack import Entry, Tuple

from .box import CLIENT, CLIENT_MAC, MAC, ORIGIN, ROUTER_MAC

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
_ADDRESS = {"in0": bytes([10, 1, 0, 1]), "out0": bytes([192, 0, 2, 1])}
_NEIGHBOUR = {"in0": bytes([10, 1, 0, 2]), "out0": bytes([192, 0, 2, 2])}
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def packed(address: str) -> bytes:
    return ip_address(address).packed


def ip(source: bytes, destination: bytes, protocol: int, payload: bytes, hop_limit: int = 64) -> bytes:
    """An IP packet of the addresses' family, without options."""
    if len(source) == 16:
        return (
            struct.pack(">IHBB", 6 << 28, len(payload), protocol, hop_limit) + source + destination + payload
        )
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, hop_limit, protocol, 0)
    head += source + destination
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def tcp(
    source: bytes, destination: bytes, ports: tuple[int, int], seq: int, ack: int, flags: int,
    payload: bytes = b"", window: int = 65535,
) -> bytes:  # fmt: skip
    """A TCP segment with its checksum, for an IP packet between these addresses."""
    body = struct.pack(">HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, window, 0, 0)
    body += payload
    pseudo = source + destination + struct.pack(">II", len(body), socket.IPPROTO_TCP)
    return body[:16] + struct.pack(">H", checksum(pseudo + body)) + body[18:]


def ethernet(interface: str, packet: bytes) -> bytes:
    """A frame to the gateway's ``interface`` from its neighbour."""
    neighbour = {"in0": CLIENT_MAC, "out0": ROUTER_MAC}[interface]
    return _mac(MAC[interface]) + _mac(neighbour) + _ETHERTYPE[packet[0] >> 4] + packet


class Wire:
    """Packet sockets at both far ends. When a send call returns, the frame has arrived or was dropped."""

    def __init__(self) -> None:
        self.client, self.origin = (self._open(name) for name in ("client0", "origin0"))
        # On one processor, which has one queue, the ARP request of settle() stays behind earlier frames.
        self._processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._processors)})

    @staticmethod
    def _open(name: str) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((name, 3))
        made.setblocking(False)
        return made

    def close(self) -> None:
        self.client.close()
        self.origin.close()
        os.sched_setaffinity(0, self._processors)

    @staticmethod
    def taken(end: socket.socket) -> list[bytes]:
        """The frames that have arrived at a far end."""
        found = []
        while True:
            try:
                frame, where = end.recvfrom(65535)
            except BlockingIOError:
                return found
            if where[2] != socket.PACKET_OUTGOING:
                found.append(frame)

    def from_client(self, packet: bytes) -> list[bytes]:
        """The packets that arrive at the origin for a packet of the client, without Ethernet headers."""
        return self._through("in0", self.client, self.origin, packet)

    def from_origin(self, packet: bytes) -> list[bytes]:
        """The packets that arrive at the client for a packet of the origin, without Ethernet headers."""
        return self._through("out0", self.origin, self.client, packet)

    def _through(self, interface: str, near: socket.socket, far: socket.socket, packet: bytes) -> list[bytes]:
        self.taken(far)
        self.taken(near)
        near.send(ethernet(interface, packet))
        came = self.taken(far)
        if not came:
            self.settle(interface)
            came = self.taken(far)
        return [frame[14:] for frame in came]

    def settle(self, interface: str) -> None:
        """Sends an ARP request to the gateway; at its reply all earlier frames have been handled."""
        near = self.client if interface == "in0" else self.origin
        mac, asker, asked = _mac(MAC[interface]), _NEIGHBOUR[interface], _ADDRESS[interface]
        question = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + mac[:5] + b"\x99" + asker + bytes(6) + asked
        near.send(mac + mac[:5] + b"\x99" + b"\x08\x06" + question)
        deadline = time.monotonic() + 10
        while not any(frame[12:14] == b"\x08\x06" for frame in self.taken(near)):
            assert time.monotonic() < deadline, f"no answer on {interface}"


class Connection:
    """One TCP tuple through the gateway, and its translated address and port."""

    def __init__(self, wire: Wire, family: int, client_port: int, origin_port: int = 443):
        self.wire = wire
        self.client, self.origin = packed(CLIENT[family]), packed(ORIGIN[family])
        self.client_port, self.origin_port = client_port, origin_port
        self.translated: tuple[bytes, int] | None = None

    @property
    def tuple(self) -> Tuple:
        client, origin = (pack(ip_address(address)) for address in (self.client, self.origin))
        return Tuple(socket.IPPROTO_TCP, client, origin, self.client_port, self.origin_port)

    def send(self, seq: int, ack: int, flags: int, payload: bytes = b"", window: int = 65535) -> bool:
        """Sends a segment of the client; True if it reached the origin's end."""
        segment = tcp(
            self.client, self.origin, (self.client_port, self.origin_port), seq, ack, flags, payload, window
        )
        came = self.wire.from_client(ip(self.client, self.origin, socket.IPPROTO_TCP, segment))
        for packet in came:
            at, end = (12, 20) if packet[0] >> 4 == 4 else (8, 40)
            self.translated = packet[at : at + len(self.client)], struct.unpack_from(">H", packet, end)[0]
        return bool(came)

    def answer(self, seq: int, ack: int, flags: int, payload: bytes = b"", window: int = 65535) -> bool:
        """Sends a segment of the origin, after one of the client; True if it reached the client's end."""
        assert self.translated is not None
        address, port = self.translated
        segment = tcp(self.origin, address, (self.origin_port, port), seq, ack, flags, payload, window)
        return bool(self.wire.from_origin(ip(self.origin, address, socket.IPPROTO_TCP, segment)))

    def tracked(self) -> Entry | None:
        """conntrack's entry."""
        request = netlink.Message(conntrack.GET, netlink.REQUEST, conntrack._request(self.tuple))
        with netlink.Channel(netlink.NETLINK_NETFILTER, "looking up a connection") as channel:
            (answer,) = channel.ask([request])
        return None if isinstance(answer, int) else conntrack._entry(answer)
