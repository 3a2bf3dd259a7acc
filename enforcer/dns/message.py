"""Parses DNS messages (RFC 1035, 4): the question, and the addresses that an answer leads to.

It uses dnspython's wire parser, because ``dns.message.from_wire`` takes three times as long. It skips the
authority and additional sections: they contain no answers (RFC 2181, 5.4.1), and signatures (TSIG) need keys.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.wire

from enforcer.constants import MAPPED

A, CNAME, AAAA, SVCB, HTTPS, ANY = 1, 5, 28, 64, 65, 255
IN = 1
NOERROR, NXDOMAIN = 0, 3

RECORDS_AT_MOST = 256
"""Limit for the records of an answer; larger answers are malformed, to bound the parsing time."""
CHAIN_AT_MOST = 16
"""Limit for a chain of CNAMEs; BIND follows 11 (max-query-restarts), older versions 16."""
TTL_AT_MOST = 86_400
"""Seconds; the default of Unbound's cache-max-ttl."""

_HEADER = struct.Struct(">HHHHHH")
_TYPE_AND_CLASS = struct.Struct(">HH")
_RESPONSE, _TRUNCATED = 0x8000, 0x0200
_OPCODE = 0x7800
_PLAIN = re.compile(rb"[a-z0-9_-]+")
_POINTER = 0xC0
_LONGEST_NAME = 255
_LONGEST_LABEL = 63


class MalformedError(Exception):
    """The bytes are not a valid or complete message."""


class Header(NamedTuple):
    """The header and the one question; ``name`` is in wire format and lower case (RFC 4343)."""

    number: int
    response: bool
    query: bool
    """The opcode is QUERY."""
    truncated: bool
    rcode: int
    answers: int
    name: bytes
    kind: int
    klass: int
    end: int
    """Offset of the answer section."""

    @property
    def question(self) -> tuple[bytes, int, int]:
        """Name, type and class of the question; 0x20 mixing of letters' case makes no difference."""
        return self.name, self.kind, self.klass


class AnswerAddresses(NamedTuple):
    """The addresses of an answer, 16 bytes each, and their TTL in seconds."""

    addresses: tuple[bytes, ...]
    ttl: int
    elsewhere: int = 0
    """Number of service records (HTTPS, SVCB) with another target name; the client asks for that itself."""
    mapped: int = 0
    """Number of IPv4-mapped IPv6 addresses (::ffff:0:0/96), which no host has (RFC 4038, 4.2)."""


def header(wire: bytes) -> Header:
    """Return header and question; MalformedError, also if there is not exactly one question."""
    try:
        number, flags, questions, answers, _, _ = _HEADER.unpack_from(wire)
        if questions != 1:
            raise MalformedError(f"{questions} questions")
        end = _end_of_name(wire, _HEADER.size)
        kind, klass = _TYPE_AND_CLASS.unpack_from(wire, end)
    except (struct.error, IndexError) as error:
        raise MalformedError("the message breaks off") from error
    return Header(
        number,
        bool(flags & _RESPONSE),
        not flags & _OPCODE,
        bool(flags & _TRUNCATED),
        flags & 15,
        answers,
        wire[_HEADER.size : end].lower(),  # length bytes are below 64, so lower() keeps them
        kind,
        klass,
        end + 4,
    )


def _end_of_name(wire: bytes, start: int) -> int:
    """Return the offset after the first name, which cannot be compressed."""
    offset = start
    while length := wire[offset]:
        offset += 1 + length
        if length > _LONGEST_LABEL or offset - start >= _LONGEST_NAME:
            raise MalformedError("the question's name is malformed")
    return offset + 1


def answer_addresses(wire: bytes, asked: Header) -> AnswerAddresses:
    """Return the addresses of the question's name, through CNAMEs, of the type asked for; MalformedError.

    Records of other names are ignored.
    """
    if asked.answers > RECORDS_AT_MOST:
        raise MalformedError(f"{asked.answers} records")
    try:
        return _walk(asked, _records(wire, asked))
    except MalformedError:
        raise
    except Exception as error:  # dnspython may raise any error; untrusted bytes must not end the daemon
        raise MalformedError(str(error)) from error


_Records = dict[tuple[bytes, int], list[tuple[int, Any]]]


def _records(wire: bytes, asked: Header) -> _Records:
    """Return (TTL, value) of class IN by owner and type; values: address, target or service record."""
    parser = dns.wire.Parser(wire, asked.end)
    records: _Records = {}
    pointers: dict[bytes, bytes] = {}
    for _ in range(asked.answers):
        owner = _owner(wire, parser, pointers)
        kind, klass, ttl, length = parser.get_struct("!HHIH")
        value: Any = None
        with parser.restrict_to(length):
            if klass == IN and kind == A:
                value = _exactly(parser.get_remaining(), 4)
            elif klass == IN and kind == AAAA:
                value = _exactly(parser.get_remaining(), 16)
            elif klass == IN and kind == CNAME:
                value = _lower(dns.name.from_wire_parser(parser))
            elif klass == IN and kind in (HTTPS, SVCB):
                value = dns.rdata.from_wire_parser(
                    dns.rdataclass.IN, dns.rdatatype.RdataType.make(kind), parser
                )
            else:
                parser.get_remaining()
        if value is not None:
            # A TTL with the top bit set is zero (RFC 2181, 8).
            ttl = min(ttl, TTL_AT_MOST) if ttl < 1 << 31 else 0
            records.setdefault((owner, kind), []).append((ttl, value))
    return records


def _owner(wire: bytes, parser: dns.wire.Parser, pointers: dict[bytes, bytes]) -> bytes:
    """Return a record's owner; ``pointers`` caches the names of compression pointers (RFC 1035, 4.1.4)."""
    pointer = wire[parser.current : parser.current + 2]
    if pointer in pointers:
        parser.get_bytes(2)
        return pointers[pointer]
    name = _lower(dns.name.from_wire_parser(parser))
    if pointer[0] >= _POINTER:
        pointers[pointer] = name
    return name


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise MalformedError(f"an address of {len(data)} bytes")
    return data


def _walk(asked: Header, records: _Records) -> AnswerAddresses:
    name, ttl = asked.name, TTL_AT_MOST
    for _ in range(CHAIN_AT_MOST + 1):
        alias = records.get((name, CNAME))
        if alias is None:
            break
        ttl = min(ttl, alias[0][0])
        name = alias[0][1]
    else:
        raise MalformedError("too many CNAMEs in a row")
    addresses: dict[bytes, None] = {}
    elsewhere = mapped = 0
    for kind in (A, AAAA, HTTPS, SVCB) if asked.kind == ANY else (asked.kind,):
        for lifetime, value in records.get((name, kind), ()):
            if kind == A:
                hints = [MAPPED + value]
            elif kind == AAAA:
                hints = [value] if not value.startswith(MAPPED) else []
                mapped += not hints
            elif kind in (HTTPS, SVCB):
                target = _lower(value.target)
                if value.priority == 0 or target not in (b"\0", name, asked.name):
                    elsewhere += 1
                    continue
                hints = _hints(value)
            else:
                continue
            ttl = min(ttl, lifetime)
            addresses.update(dict.fromkeys(hints))
    return AnswerAddresses(tuple(addresses), ttl, elsewhere, mapped)


def _hints(record: Any) -> list[bytes]:
    """Return the addresses of ipv4hint and ipv6hint (RFC 9460, 7.3)."""
    import dns.inet
    from dns.rdtypes.svcbbase import ParamKey

    four, six = record.params.get(ParamKey.IPV4HINT), record.params.get(ParamKey.IPV6HINT)
    texts = [*(four.addresses if four else ()), *(six.addresses if six else ())]
    packed = [dns.inet.inet_pton(dns.inet.af_for_address(text), text) for text in texts]
    return [
        MAPPED + address if len(address) == 4 else address
        for address in packed
        if not address.startswith(MAPPED)
    ]


def _lower(name: dns.name.Name) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name.labels).lower()


@lru_cache(maxsize=4096)
def host(name: bytes, kind: int) -> str:
    """Return the host name of a question as policies write it: without a final dot; "" for the root.

    A question for a service has labels for port and protocol first (RFC 9460, 2.3:
    ``_8443._https.www.example.com``); they are not part of the host name.
    """
    labels = []
    offset = 0
    while length := name[offset]:
        labels.append(name[offset + 1 : offset + 1 + length])
        offset += 1 + length
    if kind in (HTTPS, SVCB):
        while labels and labels[0].startswith(b"_"):
            del labels[0]
    if all(_PLAIN.fullmatch(label) for label in labels):
        return b".".join(labels).decode("ascii")
    return dns.name.Name(labels).to_text()  # escapes \. and \000 as in zone files
