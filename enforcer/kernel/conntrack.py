"""conntrack, the kernel's connection table: read it, look up, change and delete single connections.

The parser is light: pyroute2's takes about 200 µs for an entry, and a gateway has 100,000 and more. It relies
on the order in which net/netfilter/nf_conntrack_netlink.c writes a tuple, and parses other entries attribute
by attribute. Standard library only.

Addresses are 16 bytes everywhere, IPv4 as ::ffff:a.b.c.d, as in the datapath's maps. Ports are in host
order; of ICMP the "source port" is the identifier, and the "destination port" is type << 8 | code.

Rules of other software (``ct zone set``, iptables' CT target, Open vSwitch) may put a connection into a zone.
Its key is the original tuple with that direction's zone, 0 by default (nf_conntrack_core.c, nf_ct_key_equal),
so requests name the zones to search.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from enforcer.constants import ICMP, ICMPV6, MAPPED, TCP
from enforcer.kernel import netlink, sysctl
from enforcer.kernel.netlink import ACK, NETLINK_NETFILTER, REQUEST, Channel, Message

# include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
SUBSYSTEM = 1 << 8
NEW, GET, DELETE = SUBSYSTEM | 0, SUBSYSTEM | 1, SUBSYSTEM | 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_TIMEOUT, CTA_MARK = 1, 2, 3, 4, 7, 8
CTA_ZONE = 18
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_TUPLE_ZONE = 1, 2, 3
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
# Identifier, type and code.
ICMP_ATTRIBUTES = {ICMP: (4, 5, 6), ICMPV6: (7, 8, 9)}
CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE = 1, 1

# include/uapi/linux/netfilter/nf_conntrack_common.h, enum ip_conntrack_status
IPS_EXPECTED, IPS_SEEN_REPLY, IPS_ASSURED = 1, 2, 4

# include/uapi/linux/netfilter/nf_conntrack_tcp.h, enum tcp_conntrack
TCP_STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)


# Both tuples of a connection with ports, headers skipped: source, destination, protocol, two ports.
_TUPLE = "8x4x{0}s4x{0}s4x4xB3x4xH2x4xH2x"
_PAIR4 = struct.Struct(">" + 2 * _TUPLE.format(4))
_PAIR6 = struct.Struct(">" + 2 * _TUPLE.format(16))
_TUPLE4_SIZE, _TUPLE6_SIZE = _PAIR4.size // 2, _PAIR6.size // 2
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")


class Tuple(NamedTuple):
    """One direction of a connection."""

    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int

    @classmethod
    def of(cls, key: Any) -> Tuple:
        """The original direction of a flow, by its key in the map of flows."""
        return cls(
            int(key["protocol"]),
            key["client"].tobytes(),
            key["origin"].tobytes(),
            int(key["client_port"].byteswap()),
            int(key["origin_port"].byteswap()),
        )


class Entry(NamedTuple):
    """One connection; ``timeout`` is the seconds left, ``state`` is empty for what is not TCP."""

    original: Tuple
    reply: Tuple
    state: str
    timeout: int
    mark: int
    status: int = 0
    zone: int = 0
    """Of the original direction."""

    @property
    def expected(self) -> bool:
        """Whether a conntrack helper expected it because of another connection."""
        return bool(self.status & IPS_EXPECTED)

    @property
    def replied(self) -> bool:
        """Whether a packet of the reply direction was seen."""
        return bool(self.status & IPS_SEEN_REPLY)

    @property
    def assured(self) -> bool:
        """Whether conntrack keeps it when the table is full."""
        return bool(self.status & IPS_ASSURED)

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return _family(self.original)


def entries(family: int = socket.AF_UNSPEC) -> Iterator[Entry]:
    """Every connection of one family or both, while the table changes: some may be missing or repeated."""
    with Channel(NETLINK_NETFILTER, "reading the connection table") as channel:
        for message in channel.dump(GET, _nfgen(family)):
            yield _entry(message)


def fill() -> tuple[int, int]:
    """(number of this namespace's entries, size of the table)."""
    return (
        int(sysctl.read("net/netfilter/nf_conntrack_count")),
        int(sysctl.read("net/netfilter/nf_conntrack_max")),
    )


def zones(sample: int) -> list[int]:
    """The zones other than 0 among the first ``sample`` entries, most frequent first.

    The table is a hash, so a dump's first entries are a random sample.
    """
    with Channel(NETLINK_NETFILTER, "reading the connection table") as channel:
        some = islice(channel.dump(GET, _nfgen(socket.AF_UNSPEC)), sample)
        found = Counter(_zone(netlink.attributes(message, 4)) for message in some)
    return [zone for zone, _ in found.most_common() if zone]


NO_ZONE = (0,)


def exists(original: Tuple) -> bool:
    """Whether the connection with this original tuple is in the table, in zone 0."""
    return not missing([original])


def missing(originals: Sequence[Tuple], zones: Sequence[int] = NO_ZONE) -> list[int]:
    """The positions of the connections that none of these zones has."""
    operation = "looking up connections"
    absent = list(range(len(originals)))
    with Channel(NETLINK_NETFILTER, operation) as channel:
        for zone in zones:
            requests = [Message(GET, REQUEST, _request(originals[position], zone)) for position in absent]
            answers = channel.ask(requests)
            for answer in answers:
                if isinstance(answer, int) and answer != errno.ENOENT:
                    raise netlink.failure(operation, answer)
            absent = [
                position for position, answer in zip(absent, answers, strict=True) if answer == errno.ENOENT
            ]
    return absent


def delete(originals: Iterable[Tuple], zones: Sequence[int] = NO_ZONE) -> int:
    """Deletes connections by original tuple, each in the first of the zones that has it; returns how many."""
    requests = [
        [Message(DELETE, REQUEST | ACK, _request(original, zone)) for zone in zones] for original in originals
    ]
    return _change(requests, "deleting connections")


def delete_entries(found: Iterable[Entry]) -> int:
    """Deletes these connections, each in its own zone; returns how many still existed."""
    requests = [[Message(DELETE, REQUEST | ACK, _request(entry.original, entry.zone))] for entry in found]
    return _change(requests, "deleting connections")


def set_tcp_state(
    originals: Iterable[Tuple], state: str, timeout: int, zones: Sequence[int] = NO_ZONE
) -> int:
    """Sets the state of TCP connections and their timeout in seconds; returns how many existed."""
    tcp = netlink.nested(
        CTA_PROTOINFO_TCP, netlink.attribute(CTA_PROTOINFO_TCP_STATE, bytes([TCP_STATES.index(state)]))
    )
    change = netlink.nested(CTA_PROTOINFO, tcp) + netlink.attribute(CTA_TIMEOUT, _U32.pack(timeout))
    # Without CREATE the kernel does not recreate a missing connection (nf_conntrack_netlink.c,
    # ctnetlink_new_conntrack).
    requests = [
        [Message(NEW, REQUEST | ACK, _request(original, zone) + change) for zone in zones]
        for original in originals
    ]
    return _change(requests, "changing connections")


def _change(requests: list[list[Message]], operation: str) -> int:
    """Sends each row's requests in order until one finds its connection; returns how many did."""
    left, done = requests, 0
    with Channel(NETLINK_NETFILTER, operation) as channel:
        while left:
            refused = channel.change([row[0] for row in left])
            for refusal in refused:
                if refusal.code != errno.ENOENT:
                    raise netlink.failure(operation, refusal.code, refusal.detail)
            done += len(left) - len(refused)
            left = [left[refusal.position][1:] for refusal in refused]
            left = [row for row in left if row]
    return done


def _family(direction: Tuple) -> int:
    return socket.AF_INET if direction.source.startswith(MAPPED) else socket.AF_INET6


def _nfgen(family: int) -> bytes:
    return struct.pack(">BBH", family, 0, 0)


def _request(original: Tuple, zone: int = 0) -> bytes:
    """The key of a connection in a request: its original tuple and zone."""
    family = _family(original)
    source, destination = original.source, original.destination
    # CTA_IP_V4_SRC, _DST, _V6_SRC, _DST
    first = 3
    if family == socket.AF_INET:
        source, destination, first = source[-4:], destination[-4:], 1
    ip = netlink.attribute(first, source) + netlink.attribute(first + 1, destination)
    proto = netlink.attribute(CTA_PROTO_NUM, bytes([original.protocol]))
    if original.protocol in ICMP_ATTRIBUTES:
        identifier, kind, code = ICMP_ATTRIBUTES[original.protocol]
        proto += netlink.attribute(identifier, _U16.pack(original.source_port))
        proto += netlink.attribute(kind, bytes([original.destination_port >> 8]))
        proto += netlink.attribute(code, bytes([original.destination_port & 0xFF]))
    else:
        proto += netlink.attribute(CTA_PROTO_SRC_PORT, _U16.pack(original.source_port))
        proto += netlink.attribute(CTA_PROTO_DST_PORT, _U16.pack(original.destination_port))
    parts = netlink.nested(CTA_TUPLE_IP, ip) + netlink.nested(CTA_TUPLE_PROTO, proto)
    in_zone = netlink.attribute(CTA_ZONE, _U16.pack(zone)) if zone else b""
    return _nfgen(family) + netlink.nested(CTA_TUPLE_ORIG, parts) + in_zone


def _entry(message: bytes) -> Entry:
    size, _ = netlink.ATTRIBUTE.unpack_from(message, 4)
    family = message[0]
    if size == _TUPLE4_SIZE and family == socket.AF_INET:
        a, b, protocol, c, d, e, f, reply_protocol, g, h = _PAIR4.unpack_from(message, 4)
        original = Tuple(protocol, MAPPED + a, MAPPED + b, c, d)
        reply = Tuple(reply_protocol, MAPPED + e, MAPPED + f, g, h)
        offset = 4 + _PAIR4.size
    elif size == _TUPLE6_SIZE and family == socket.AF_INET6:
        a, b, protocol, c, d, e, f, reply_protocol, g, h = _PAIR6.unpack_from(message, 4)
        original = Tuple(protocol, a, b, c, d)
        reply = Tuple(reply_protocol, e, f, g, h)
        offset = 4 + _PAIR6.size
    else:
        parts = netlink.attributes(message, 4)
        original, reply = _tuple(parts[CTA_TUPLE_ORIG]), _tuple(parts[CTA_TUPLE_REPLY])
        offset = 4
    rest = netlink.attributes(message, offset)
    timeout, mark, status = rest.get(CTA_TIMEOUT), rest.get(CTA_MARK), rest.get(CTA_STATUS)
    state = ""
    if original.protocol == TCP and CTA_PROTOINFO in rest:
        tcp = netlink.attributes(netlink.attributes(rest[CTA_PROTOINFO]).get(CTA_PROTOINFO_TCP, b""))
        number = tcp.get(CTA_PROTOINFO_TCP_STATE, b"\0")[0]
        state = TCP_STATES[number] if number < len(TCP_STATES) else str(number)
    return Entry(
        original,
        reply,
        state,
        _U32.unpack(timeout)[0] if timeout else 0,
        _U32.unpack(mark)[0] if mark else 0,
        _U32.unpack(status)[0] if status else 0,
        _zone(rest),
    )


def _zone(parts: dict[int, bytes]) -> int:
    """The original direction's zone, or the zone of both directions; 0 if neither is given."""
    if CTA_ZONE in parts:
        return int.from_bytes(parts[CTA_ZONE][:2], "big")
    return int.from_bytes(netlink.attributes(parts.get(CTA_TUPLE_ORIG, b"")).get(CTA_TUPLE_ZONE, b""), "big")


def _tuple(data: bytes) -> Tuple:
    """A tuple with its attributes in any order; missing ports are 0."""
    parts = netlink.attributes(data)
    ip, proto = netlink.attributes(parts[CTA_TUPLE_IP]), netlink.attributes(parts[CTA_TUPLE_PROTO])
    protocol = proto[CTA_PROTO_NUM][0]
    source, destination = (MAPPED + ip[1], MAPPED + ip[2]) if 1 in ip else (ip[3], ip[4])
    if protocol in ICMP_ATTRIBUTES:
        identifier, kind, code = (proto.get(attribute, b"\0") for attribute in ICMP_ATTRIBUTES[protocol])
        return Tuple(protocol, source, destination, int.from_bytes(identifier, "big"), kind[0] << 8 | code[0])
    ports = (int.from_bytes(proto.get(kind, b""), "big") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    return Tuple(protocol, source, destination, *ports)
