"""Packets that tests build by hand, and conntrack entries that tests look up and age."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address, ip_address
from typing import Any

from enforcer.constants import MAPPED
from enforcer.kernel import conntrack
from lab.clients import family_of
from lab.netns import Namespace
from lab.topology import Lab

ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
NAMES = {
    socket.IPPROTO_ICMP: "icmp",
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_ICMPV6: "icmpv6",
}

ECHO_REQUEST = {4: (8, 0), 6: (128, 0)}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
PARAMETER_PROBLEM = {4: (12, 0), 6: (4, 0)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}

# All errors of ICMP (RFC 792; RFC 1812, 5.2.7.1) and ICMPv6 (RFC 4443, 3) that report a failed delivery.
# Redirects are not among them: they concern the next hop alone.
ERRORS = {
    4: [*((3, code) for code in range(16)), (4, 0), (11, 0), (11, 1), (12, 0)],
    6: [*((1, code) for code in range(7)), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)],
}


def packet(source: str, destination: str, content: Any, **fields: Any) -> bytes:
    """An IP packet; ``content`` is a scapy layer, which fills in checksums and lengths."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    return bytes((IPv6 if ":" in source else IP)(src=source, dst=destination, **fields) / content)


def icmp(
    source: str,
    destination: str,
    what: tuple[int, int],
    body: bytes,
    *,
    rest: int = 0,
    broken: bool = False,
    **fields: Any,
) -> bytes:
    """An ICMP or ICMPv6 message as an IP packet: ``what`` is type and code, ``rest`` its second word.

    ``broken`` gives it a wrong checksum.
    """
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6, in6_chksum
    from scapy.packet import Raw
    from scapy.utils import checksum

    message = struct.pack("!BBHI", *what, 0, rest) + body
    ip: Any
    if ":" in source:
        ip = IPv6(src=source, dst=destination, nh=socket.IPPROTO_ICMPV6, **fields)
        number = in6_chksum(socket.IPPROTO_ICMPV6, ip, message)
    else:
        ip = IP(src=source, dst=destination, proto=socket.IPPROTO_ICMP, **fields)
        number = checksum(message)
    message = message[:2] + struct.pack("!H", number ^ (0x5555 if broken else 0)) + message[4:]
    return bytes(ip / Raw(message))


def about(what: tuple[int, int]) -> int:
    """The second word of an error: for "packet too big" an MTU that limits no packet, otherwise 0."""
    return 1500 if what in TOO_BIG.values() else 0


def send(namespace: Namespace, *packets: bytes) -> None:
    """Send complete IP packets from this host, unchanged."""
    for each in packets:
        version = each[0] >> 4
        to = each[16:20] if version == 4 else each[24:40]
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with namespace.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(each, (socket.inet_ntop(family, to), 0))


def entries(
    lab: Lab, protocol: int, client: str, port: int | None = None, to: int | None = None
) -> list[conntrack.Entry]:
    """The gateway's conntrack entries of a client's flows, of any or one source port and destination port.

    For an ICMP echo ``port`` is the identifier, and ``to`` does not apply.
    """
    packed = _packed(client)
    return [
        entry
        for entry in lab.gw.call(lambda: list(conntrack.entries()))
        if entry.original.protocol == protocol
        and entry.original.source == packed
        and port in (None, entry.original.source_port)
        and to in (None, entry.original.destination_port)
    ]


def entry(lab: Lab, protocol: int, client: str, port: int, to: int | None = None) -> conntrack.Entry:
    """The only such entry; ValueError if there is another number of entries."""
    (found,) = entries(lab, protocol, client, port, to)
    return found


def age(lab: Lab, flow: conntrack.Entry, seconds: int) -> None:
    """Set the remaining lifetime of an entry to this number of seconds."""
    name = NAMES[flow.original.protocol]
    family = "ipv4" if flow.family == socket.AF_INET else "ipv6"
    source, destination = _text(flow.original.source), _text(flow.original.destination)
    ports = "--sport", str(flow.original.source_port), "--dport", str(flow.original.destination_port)
    lab.gw.run(
        *f"conntrack -U -f {family} -p {name} -s {source} -d {destination} -t {seconds}".split(),
        *(ports if name in ("tcp", "udp") else ()),
    )


def datagrams(namespace: Namespace, address: str, port: int = 0, timeout: float = 5.0) -> socket.socket:
    """An unconnected UDP socket bound to this address, which uses one local port towards all origins."""
    made = namespace.socket(family_of(address), socket.SOCK_DGRAM)
    made.settimeout(timeout)
    made.bind((address, port))
    return made


def _packed(address: str) -> bytes:
    packed = ip_address(address).packed
    return packed if len(packed) == 16 else MAPPED + packed


def _text(packed: bytes) -> str:
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)
