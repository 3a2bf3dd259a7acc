"""The parser of DNS messages, on messages that dnspython writes."""

from __future__ import annotations

from itertools import pairwise

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.dns import message
from enforcer.dns.message import MalformedError

FOUR = bytes(10) + b"\xff\xff"


def address(text: str) -> bytes:
    import ipaddress

    parsed = ipaddress.ip_address(text)
    return FOUR + parsed.packed if parsed.version == 4 else parsed.packed


def answer(kind: str, *records: str, name: str = "www.example.lab.") -> bytes:
    """A response; each record is "owner TTL type data"."""
    made = dns.message.make_response(dns.message.make_query(name, kind))
    for record in records:
        owner, ttl, rtype, data = record.split(maxsplit=3)
        made.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", rtype, data))
    return made.to_wire()


def found(wire: bytes) -> message.AnswerAddresses:
    return message.answer_addresses(wire, message.header(wire))


def test_a_question() -> None:
    query = dns.message.make_query("WwW.Example.lab.", "AAAA", id=77)
    head = message.header(query.to_wire())
    assert (head.number, head.response, head.query, head.truncated) == (77, False, True, False)
    assert head.question == (b"\3www\7example\3lab\0", message.AAAA, 1)
    assert message.host(head.name, head.kind) == "www.example.lab"


def test_an_answers_flags() -> None:
    made = dns.message.make_response(dns.message.make_query("www.example.lab.", "A"))
    made.flags |= dns.flags.TC
    made.set_rcode(dns.rcode.NXDOMAIN)
    head = message.header(made.to_wire())
    assert (head.response, head.truncated, head.rcode) == (True, True, message.NXDOMAIN)


@pytest.mark.parametrize(
    ("kind", "records", "addresses", "ttl"),
    [
        ("A", ["www.example.lab. 60 A 198.18.1.1"], ["198.18.1.1"], 60),
        ("AAAA", ["www.example.lab. 60 AAAA 2001:db8::1"], ["2001:db8::1"], 60),
        (
            "A",
            ["www.example.lab. 60 A 198.18.1.1", "www.example.lab. 60 A 198.18.1.2"],
            ["198.18.1.1", "198.18.1.2"],
            60,
        ),
        (
            "A",
            ["www.example.lab. 9 CNAME a.lab.", "a.lab. 300 CNAME b.lab.", "b.lab. 60 A 198.18.1.1"],
            ["198.18.1.1"],
            9,
        ),
        ("A", ["b.lab. 60 A 198.18.1.1", "www.example.lab. 90 CNAME B.lab."], ["198.18.1.1"], 60),
        ("A", ["www.example.lab. 60 CNAME a.lab.", "b.lab. 60 A 198.18.1.1"], [], 60),
        ("A", ["other.lab. 60 A 198.18.1.1", "www.example.lab. 0 A 198.18.1.2"], ["198.18.1.2"], 0),
        ("A", ["www.example.lab. 60 AAAA 2001:db8::1"], [], None),
        ("ANY", ["www.example.lab. 5 AAAA 2001:db8::1", "www.example.lab. 7 A 198.18.1.1"],
         ["198.18.1.1", "2001:db8::1"], 5),
        ("CNAME", ["www.example.lab. 60 CNAME a.lab."], [], 60),
        ("A", ["www.example.lab. 2147483647 A 198.18.1.1"], ["198.18.1.1"], message.TTL_AT_MOST),
    ],
)  # fmt: skip
def test_where_an_answer_leads(kind: str, records: list[str], addresses: list[str], ttl: int | None) -> None:
    got = found(answer(kind, *records))
    assert got.addresses == tuple(map(address, addresses))
    assert got.ttl == (message.TTL_AT_MOST if ttl is None else ttl)


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_hints_of_service_records(kind: str) -> None:
    hints = "ipv4hint=198.18.1.1,198.18.1.2 ipv6hint=2001:db8::1"
    expected = tuple(map(address, ["198.18.1.1", "198.18.1.2", "2001:db8::1"]))
    for target in (".", "www.example.lab.", "WWW.example.lab."):
        got = found(answer(kind, f"www.example.lab. 60 {kind} 1 {target} alpn=h3 {hints}"))
        assert (got.addresses, got.ttl, got.elsewhere) == (expected, 60, 0)
    got = found(answer(kind, f"www.example.lab. 60 {kind} 1 cdn.lab. {hints}"))
    assert (got.addresses, got.elsewhere) == ((), 1)
    got = found(answer(kind, f"www.example.lab. 60 {kind} 0 cdn.lab."))
    assert (got.addresses, got.elsewhere) == ((), 1)


def test_a_services_host() -> None:
    name = "_8443._https.www.example.lab."
    wire = answer("HTTPS", f"{name} 60 HTTPS 1 . ipv4hint=198.18.1.1", name=name)
    head = message.header(wire)
    assert message.host(head.name, head.kind) == "www.example.lab"
    assert message.answer_addresses(wire, head).addresses == (address("198.18.1.1"),)
    assert message.host(message.header(answer("A", name="_a.lab.")).name, message.A) == "_a.lab"


def test_mapped_addresses_are_nobodys() -> None:
    got = found(answer("AAAA", "www.example.lab. 60 AAAA ::ffff:198.18.1.1"))
    assert (got.addresses, got.mapped) == ((), 1)
    assert found(answer("HTTPS", "www.example.lab. 60 HTTPS 1 . ipv6hint=::ffff:198.18.1.1")).addresses == ()


def test_a_ttl_with_its_top_bit_set_is_zero() -> None:
    wire = answer("A", "www.example.lab. 60 A 198.18.1.1")
    at = wire.rindex(b"\0\0\0\x3c")
    assert found(wire[:at] + b"\x80\0\0\x3c" + wire[at + 4 :]).ttl == 0


def test_other_classes_are_passed_over() -> None:
    wire = answer("A", "www.example.lab. 60 A 198.18.1.1")
    at = wire.rindex(b"\0\x01\0\x01\0\0\0\x3c")
    assert found(wire[:at] + b"\0\x01\0\x03\0\0\0\x3c" + wire[at + 8 :]).addresses == ()


def test_circles_and_long_chains() -> None:
    with pytest.raises(MalformedError):
        found(answer("A", "www.example.lab. 60 CNAME a.lab.", "a.lab. 60 CNAME www.example.lab."))

    def chain(length: int) -> bytes:
        names = ["www.example.lab.", *(f"n{number}.lab." for number in range(length))]
        records = [f"{a} 60 CNAME {b}" for a, b in pairwise(names)]
        return answer("A", *records, f"{names[-1]} 60 A 198.18.1.1")

    assert found(chain(message.CHAIN_AT_MOST)).addresses == (address("198.18.1.1"),)
    with pytest.raises(MalformedError):
        found(chain(message.CHAIN_AT_MOST + 1))


def test_too_many_records() -> None:
    records = [
        f"www.example.lab. 60 A 198.18.{n // 256}.{n % 256}" for n in range(message.RECORDS_AT_MOST + 1)
    ]
    assert len(found(answer("A", *records[1:])).addresses) == message.RECORDS_AT_MOST
    with pytest.raises(MalformedError):
        found(answer("A", *records))


def test_strange_names() -> None:
    labels = [
        b"a.b",
        b"\xff",
        b"",
    ]
    query = dns.message.make_query(dns.name.Name(labels), "A")
    head = message.header(query.to_wire())
    assert message.host(head.name, head.kind) == "a\\.b.\\255"
    assert message.host(b"\0", message.A) == ""


def malformed() -> dict[str, bytes]:
    good = answer("A", "www.example.lab. 60 A 198.18.1.1")
    end = message.header(good).end
    return {
        "empty": b"",
        "half a header": good[:7],
        "no question": good[:4] + b"\0\0" + good[6:],
        "two questions": good[:4] + b"\0\2" + good[6:],
        "a pointer in the question": good[:12] + b"\xc0\x0c" + good[14:],
        "a label past the end": good[:12] + b"\x3f" + good[13:20],
        "a name of 256 bytes": good[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
        "the question breaks off": good[: end - 1],
        "the record breaks off": good[:-1],
        "more records than there are": good[:6] + b"\0\5" + good[8:],
        "an address of three bytes": good[:-6] + b"\0\3" + good[-4:-1],
        "a pointer to itself": good[:end] + b"\xc0" + bytes([end]) + good[end + 2 :],
        "a pointer forward": good[:end] + b"\xc0\xff" + good[end + 2 :],
    }


@pytest.mark.parametrize("wire", malformed().values(), ids=malformed())
def test_malformed(wire: bytes) -> None:
    with pytest.raises(MalformedError):
        found(wire)


def check(wire: bytes) -> None:
    try:
        head = message.header(wire)
        message.host(head.name, head.kind)
        message.answer_addresses(wire, head)
    except MalformedError:
        pass


@given(st.binary(max_size=300))
def test_nothing_else_is_raised(wire: bytes) -> None:
    check(wire)
    check(answer("A")[:-4] + wire)


GOOD = [
    answer("A", "www.example.lab. 60 CNAME a.lab.", "a.lab. 60 A 198.18.1.1"),
    answer("HTTPS", "www.example.lab. 60 HTTPS 1 . alpn=h2,h3 port=8443 ipv4hint=198.18.1.1"),
    answer("AAAA", "www.example.lab. 60 AAAA 2001:db8::1", "www.example.lab. 60 AAAA 2001:db8::2"),
]


@settings(max_examples=1000)
@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4))
def test_changed_bytes_raise_nothing_else(wire: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(wire)
    for place, value in changes:
        changed[place % len(changed)] = value
    check(bytes(changed))


labels = st.text("abcxyzABC019-_", min_size=1, max_size=20)
hosts = st.lists(labels, min_size=1, max_size=4).map(lambda parts: ".".join(parts) + ".")


@given(hosts, st.lists(hosts, max_size=5), st.lists(st.ip_addresses(v=4), max_size=5))
def test_it_is_what_dnspython_makes_of_it(name: str, aliases: list[str], addresses: list[object]) -> None:
    chain = list(dict.fromkeys(alias.lower() for alias in [name, *aliases]))
    records = [f"{a} 60 CNAME {b}" for a, b in pairwise(chain)]
    records += [f"{chain[-1]} 30 A {one}" for one in dict.fromkeys(addresses)]
    wire = answer("A", *records, name=name)
    parsed = dns.message.from_wire(wire)
    assert isinstance(parsed, dns.message.QueryMessage)
    resolved = parsed.resolve_chaining().answer
    expected = [address(record.address) for record in resolved] if resolved else []
    got = found(wire)
    assert sorted(got.addresses) == sorted(expected)
    if expected:
        assert got.ttl == (30 if len(chain) > 1 or addresses else 60)
