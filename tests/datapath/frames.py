"""Valid and invalid frames of an established flow, from a description that hypothesis chooses and shrinks."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields, replace

from .wire import checksum

ACK = 0x10
HEADER = {4: 20, 6: 40}
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_TCP, _UDP = 6, 17
_MORE, _FRAGMENT = 0x2000, 44
SHORTEST = 60  # bytes of an Ethernet frame: the fast path cuts off the trailer of a shorter packet
_VLAN = b"\x81\x00\x00\x05"


@dataclass(frozen=True)
class Ends:
    """Addresses (packed), ports and MAC addresses of one direction, as its sender uses them."""

    source: bytes
    destination: bytes
    ports: tuple[int, int]
    protocol: int
    from_mac: bytes
    to_mac: bytes

    @property
    def family(self) -> int:
        return 4 if len(self.source) == 4 else 6

    def pseudo(self, length: int) -> bytes:
        """The pseudo header (RFC 9293, 3.1; RFC 8200, 8.1)."""
        return self.source + self.destination + struct.pack(">II", length, self.protocol)


@dataclass(frozen=True, repr=False)
class Packet:
    """One packet. The defaults describe an ordinary packet; each other value makes it special."""

    back: bool = False
    payload: int = 0
    tos: int = 0
    flow_label: int = 0
    hop_limit: int = 64
    identification: int = 1
    fragment_field: int = 0  # IPv4: flags and offset
    options: bytes = b""  # IPv4
    extensions: tuple[int, ...] = ()  # IPv6: header types in their order
    tcp_flags: int = ACK
    more_tcp_flags: int = 0  # the four bits beside the data offset
    tcp_options: bytes = b""
    data_offset: int = 0  # added to the right value, in words
    sequence: int = 0
    acknowledgement: int = 0
    window: int = 65535
    urgent: int = 0
    udp_length: int = 0  # added to the right value
    check: int | None = 0  # added to the right value; None: the field is 0
    aim: int | None = None  # the last word of the payload makes the checksum this
    header_check: int = 0  # IPv4: added to the right value
    trailer: int = 0  # bytes after the IP packet
    total: int = 0  # added to the length in the IP header
    version: int = 0  # added to the IP version
    another_mac: bytes = b""  # instead of the gateway's
    vlan: bool = False
    pieces: int = 0  # bytes of payload in each fragment; 0: the packet is whole

    def __repr__(self) -> str:
        special = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if getattr(self, one.name) != one.default
        ]
        return f"Packet({', '.join(special)})"

    @property
    def is_wrong(self) -> bool:
        """Whether a checksum is wrong."""
        return bool(self.check or self.header_check)

    def corrected(self) -> Packet:
        return replace(self, check=self.check and 0, header_check=0)


def add16(value: int, more: int) -> int:
    """Ones' complement addition."""
    total = value + more
    return (total & 0xFFFF) + (total >> 16)


def subtract16(value: int, less: int) -> int:
    return add16(value, ~less & 0xFFFF)


def _content(packet: Packet) -> bytes:
    return bytes((at * 7 + packet.payload) & 0xFF for at in range(256)) * (packet.payload // 256 + 1)


def transport(packet: Packet, ends: Ends) -> bytes:
    """The TCP segment or UDP datagram."""
    payload = _content(packet)[: packet.payload]
    if ends.protocol == _TCP:
        words = 5 + len(packet.tcp_options) // 4
        offset = (words + packet.data_offset) % 16 << 4 | packet.more_tcp_flags
        head = struct.pack(
            ">HHIIBBHHH", *ends.ports, packet.sequence & 0xFFFFFFFF, packet.acknowledgement & 0xFFFFFFFF,
            offset, packet.tcp_flags, packet.window, 0, packet.urgent,
        ) + packet.tcp_options  # fmt: skip
        at = 16
    else:
        head = struct.pack(">HHHH", *ends.ports, max(0, 8 + len(payload) + packet.udp_length), 0)
        at = 6
    body = head + payload
    if packet.check is None:
        return body
    right = checksum(ends.pseudo(len(body)) + body)
    if packet.aim is not None and packet.payload % 2 == 0 and packet.payload > 1:
        word = add16(int.from_bytes(body[-2:], "big"), subtract16(right, packet.aim))
        body = body[:-2] + word.to_bytes(2, "big")
        right = checksum(ends.pseudo(len(body)) + body)
    field = add16(right, packet.check)
    if ends.protocol == _UDP and not field:
        field = 0xFFFF
    return body[:at] + field.to_bytes(2, "big") + body[at + 2 :]


def _ethernet(packet: Packet, ends: Ends, network: bytes) -> bytes:
    head = (packet.another_mac or ends.to_mac) + ends.from_mac
    return head + (_VLAN if packet.vlan else b"") + _ETHERTYPE[ends.family] + network + bytes(packet.trailer)


def _ipv4(packet: Packet, ends: Ends, body: bytes, field: int) -> bytes:
    words = 5 + len(packet.options) // 4
    head = struct.pack(
        ">BBHHHBBH", (4 + packet.version) % 16 << 4 | words, packet.tos,
        max(0, words * 4 + len(body) + packet.total), packet.identification, field, packet.hop_limit,
        ends.protocol, 0,
    ) + ends.source + ends.destination + packet.options  # fmt: skip
    check = add16(checksum(head), packet.header_check)
    return head[:10] + check.to_bytes(2, "big") + head[12:] + body


_EXTENSION = {
    0: bytes([1, 4, 0, 0, 0, 0]),  # hop-by-hop: PadN
    60: bytes([1, 4, 0, 0, 0, 0]),  # destination options: PadN
    44: bytes([0, 0, 0, 0, 0, 9]),  # an atomic fragment (RFC 6946)
    43: bytes([4, 0, 0, 0, 0, 0]),  # routing, no segments left
}


def _ipv6(packet: Packet, ends: Ends, body: bytes, fragment: bytes = b"") -> bytes:
    kinds = [*packet.extensions, *([_FRAGMENT] if fragment else [])]
    chain = b""
    for kind, after in zip(kinds, [*kinds, ends.protocol][1:], strict=True):
        rest = fragment if fragment and kind == _FRAGMENT else _EXTENSION[kind]
        chain += bytes([after, 0]) + rest
    first = (6 + packet.version) % 16 << 28 | packet.tos << 20 | packet.flow_label
    head = struct.pack(
        ">IHBB", first, max(0, len(chain) + len(body) + packet.total), (kinds or [ends.protocol])[0],
        packet.hop_limit,
    )  # fmt: skip
    return head + ends.source + ends.destination + chain + body


def frames(packet: Packet, ends: Ends) -> list[bytes]:
    """The frames on the wire: one, or several if the packet is cut into fragments."""
    body = transport(packet, ends)
    if not packet.pieces:
        if ends.family == 4:
            return [_ethernet(packet, ends, _ipv4(packet, ends, body, packet.fragment_field))]
        return [_ethernet(packet, ends, _ipv6(packet, ends, body))]
    made = []
    for start in range(0, len(body), packet.pieces):
        part = body[start : start + packet.pieces]
        more = start + packet.pieces < len(body)
        if ends.family == 4:
            network = _ipv4(packet, ends, part, start >> 3 | (_MORE if more else 0))
        else:
            place = (start | more).to_bytes(2, "big") + packet.identification.to_bytes(4, "big")
            network = _ipv6(packet, ends, part, place)
        made.append(_ethernet(packet, ends, network))
    return made


def length(packet: Packet, ends: Ends) -> int:
    """Bytes from the network header on, of the whole packet."""
    headers = HEADER[ends.family] + len(packet.options) + 8 * len(packet.extensions)
    own = 20 + len(packet.tcp_options) if ends.protocol == _TCP else 8
    return headers + own + packet.payload


def is_eligible(packet: Packet, ends: Ends, largest: int) -> bool:
    """Whether the packet must take the fast path after packets of ``largest`` bytes have passed."""
    if packet.options or packet.extensions or packet.pieces or packet.fragment_field & 0x3FFF:
        return False
    if packet.total or packet.version or packet.another_mac or packet.vlan or packet.hop_limit <= 1:
        return False
    size = length(packet, ends)
    if size > largest or (packet.trailer and 14 + size + packet.trailer != SHORTEST):
        return False
    if ends.protocol == _UDP:
        return not packet.udp_length and (packet.check is not None or ends.family == 4)
    words = (5 + len(packet.tcp_options) // 4 + packet.data_offset) % 16
    return packet.tcp_flags & 0x17 == ACK and 20 <= words * 4 <= size - HEADER[ends.family]
