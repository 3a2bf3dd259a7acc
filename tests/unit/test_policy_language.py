"""The language of traffic expressions: what it accepts, what it means, and what it says of the rest."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.policy.expression import AddressIn, And, Everything, Not, Or, PortIn, ProtocolIn
from enforcer.policy.language import MAX_LENGTH, MAX_NESTING, ExpressionError, parse
from enforcer.policy.reference import Tuple5, matches
from enforcer.policy.rules import TooManyRulesError, rules_of

WEB = PortIn(((80, 80),))
TCP = ProtocolIn(frozenset({6}))


def networks(*texts: str) -> tuple[object, ...]:
    return tuple(map(ip_network, texts))


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("", Everything()),
        (" \n\t ", Everything()),
        ("net.dst.port == 80", WEB),
        ("net.dst.port==80", WEB),
        ("(net.dst.port == 80)", WEB),
        ("net.dst.port != 80", Not(WEB)),
        ("not net.dst.port == 80", Not(WEB)),
        ("!net.dst.port == 80", Not(WEB)),
        ("!(net.dst.port == 80)", Not(WEB)),
        ("not(net.dst.port == 80)", Not(WEB)),
        ("not not net.dst.port == 80", Not(Not(WEB))),
        ("net.dst.port in {80}", WEB),
        ("net.dst.port in{80}", WEB),
        ("net.dst.port not in {80}", Not(WEB)),
        ("net.dst.port in {80 443 8000..8999}", PortIn(((80, 80), (443, 443), (8000, 8999)))),
        ("net.dst.port in {0..65535}", PortIn(((0, 65535),))),
        ('net.protocol == "tcp"', TCP),
        ('net.protocol == "TCP"', TCP),
        ('net.protocol != "udp"', Not(ProtocolIn(frozenset({17})))),
        ('net.protocol in {"tcp" "udp"}', ProtocolIn(frozenset({6, 17}))),
        ('net.protocol == "icmp"', ProtocolIn(frozenset({1, 58}))),
        ("net.src.ip == 192.0.2.1", AddressIn("source", networks("192.0.2.1/32"))),
        ("net.dst.ip == 2001:db8::1", AddressIn("destination", networks("2001:db8::1/128"))),
        (
            "net.dst.ip in {192.0.2.0/24 2001:db8::/32 ::1}",
            AddressIn("destination", networks("192.0.2.0/24", "2001:db8::/32", "::1/128")),
        ),
        (
            "net.dst.ip in {192.0.2.1..192.0.2.4}",
            AddressIn("destination", networks("192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/32")),
        ),
        ("net.src.ip in {2001:db8::..2001:db8::1}", AddressIn("source", networks("2001:db8::/127"))),
        ('net.dst.port == 80 and net.protocol == "tcp"', And((WEB, TCP))),
        ('net.dst.port == 80 && net.protocol == "tcp"', And((WEB, TCP))),
        ('net.dst.port == 80 or net.protocol == "tcp"', Or((WEB, TCP))),
        ('net.dst.port == 80||net.protocol == "tcp"', Or((WEB, TCP))),
        # `not` binds tighter than `and`, which binds tighter than `or`
        ('not net.dst.port == 80 and net.protocol == "tcp"', And((Not(WEB), TCP))),
        ('net.dst.port == 80 or net.dst.port == 80 and net.protocol == "tcp"', Or((WEB, And((WEB, TCP))))),
        ('(net.dst.port == 80 or net.dst.port == 80) and net.protocol == "tcp"', And((Or((WEB, WEB)), TCP))),
        ("net.dst.port == 80\n  and\n\tnet.dst.port == 80", And((WEB, WEB))),
    ],
)
def test_what_a_text_says(text: str, expression: object) -> None:
    assert parse(text) == expression


FIELDS = "a field (net.src.ip, net.dst.ip, net.dst.port, net.protocol), `not` or `(`"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("net.dst.prt == 80", 1, "net.dst.prt is no known field; expected net.dst.port (did you mean that?)"),
        ("dst.port == 80", 1, "dst.port is no known field; expected net.dst.port"),
        ("http.host == 80", 1, "expected one of net.src.ip, net.dst.ip, net.dst.port, net.protocol"),
        ("any(net.dst.ip)", 1, "any is no known field"),
        ("net.dst.port", 13, "the expression ends here; expected `==`, `!=`, `in {…}` or `not`"),
        ("net.dst.port = 80", 14, "= cannot stand here; expected `==`, `!=`, `in {…}` or `not` (equality is"),
        ("net.dst.port > 80", 14, "> cannot stand here; expected `==`"),
        ("net.dst.port == ", 16, "the expression ends here; expected a value"),
        ("net.dst.port == 80 and", 23, f"the expression ends here; expected {FIELDS}"),
        ("and net.dst.port == 80", 1, f"and cannot stand here; expected {FIELDS}"),
        (
            "net.dst.port == 80 xor net.dst.port == 81",
            20,
            "xor cannot stand here; expected `and`, `or` or the end",
        ),
        ("(net.dst.port == 80", 20, "the expression ends here; expected `)`"),
        ("net.dst.port == 80)", 19, ") cannot stand here; expected the end"),
        ("net.dst.port in 80", 17, "80 cannot stand here; expected `{` (a set, even of one value: in {80})"),
        ("net.dst.port in {80,443}", 20, "(values in {…} are separated by blanks)"),
        ("net.dst.port in {80", 20, "the expression ends here; expected `}` or a value"),
        ("net.dst.port in {}", 17, "{ begins an empty set; expected at least one value"),
        ("net.dst.port == {80}", 17, "{ cannot stand here; expected a value"),
        # kinds
        (
            'net.dst.port == "80"',
            17,
            '"80" is text in quotes; expected a port from 0 to 65535, without quotes',
        ),
        ("net.dst.port == 192.0.2.1", 17, "is an IP address; expected a port from 0 to 65535"),
        ("net.dst.port == http", 17, "http is no port"),
        ("net.dst.port == 65536", 17, "65536 is no port; expected a port from 0 to 65535"),
        ("net.dst.port == -1", 17, "-1 is no port"),
        ("net.dst.port == ٣", 17, "is no port"),
        ("net.dst.port in {80-90}", 18, "expected a range of ports as in {80..90}"),
        ("net.dst.port in {90..80}", 18, "90..80 ends before it begins; expected 80..90"),
        ("net.dst.port in {80..}", 18, "80.. is no port"),
        ("net.dst.port == 80..90", 17, "is a range; expected one value here, or the range in a set"),
        ("net.dst.ip == 80", 15, "80 is a number; expected an IP address, such as 192.0.2.1"),
        ('net.dst.ip == "192.0.2.1"', 15, "is text in quotes; expected an IP address"),
        ("net.dst.ip == 192.0.2.0/24", 15, "is a prefix; expected one address here, or the prefix in a set"),
        ("net.dst.ip == 192.0.2.256", 15, "192.0.2.256 is no IP address"),
        ("net.dst.ip in {192.0.2.1/24}", 16, "has bits set after the first 24; expected 192.0.2.0/24"),
        ("net.dst.ip in {2001:db8::1/32}", 16, "has bits set after the first 32; expected 2001:db8::/32"),
        ("net.dst.ip in {192.0.2.0/33}", 16, "is no IP address"),
        ("net.dst.ip in {192.0.2.9..192.0.2.1}", 16, "ends before it begins; expected 192.0.2.1..192.0.2.9"),
        ("net.dst.ip in {192.0.2.9..::1}", 16, "mixes IPv4 and IPv6"),
        ("net.dst.ip in {a..b}", 16, "is no range of IP addresses"),
        (
            "net.dst.ip == ::ffff:192.0.2.1",
            15,
            "has IPv4-mapped addresses in it; expected the IPv4 address, 192.0.2.1",
        ),
        ("net.dst.ip in {::fffe:ffff:ffff..::ffff:0:1}", 16, "has IPv4-mapped addresses in it"),
        ("net.dst.ip == fe80::1%eth0", 15, "has a zone"),
        ("net.protocol == tcp", 17, 'tcp is not in quotes; expected "tcp"'),
        ("net.protocol == 6", 17, '6 is a number; expected one of "tcp", "udp", "icmp"'),
        ("net.protocol == 'tcp'", 17, '(text stands in double quotes: "tcp")'),
        ('net.protocol == "sctp"', 17, '"sctp" is no known protocol; expected one of "tcp", "udp", "icmp"'),
        ('net.protocol in {"tcp}', 18, '" cannot stand here'),
        ("net.dst.port == 80 or\nnet.dst.prot == 1", 23, "net.dst.prot is no known field"),
        ("§", 1, "§ cannot stand here"),
    ],
)
def test_what_is_wrong_and_where(text: str, column: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert message in caught.value.message
    assert "; expected " in caught.value.message
    assert caught.value.column == column


def test_limits_of_size_and_depth() -> None:
    deep = "(" * MAX_NESTING + "net.dst.port == 80" + ")" * MAX_NESTING
    assert parse(deep) == WEB
    for text in (
        f"({deep})",
        f"not {deep}",
        "(" * 30000 + "net.dst.port == 80" + ")" * 30000,
        "not " * 16000 + "x",
    ):
        with pytest.raises(
            ExpressionError, match=r"nests more than 100 levels deep|is no known field|ends here"
        ):
            parse(text)
    with pytest.raises(ExpressionError, match="longer than 65,536 characters"):
        parse("net.dst.port == 80".ljust(MAX_LENGTH) + " ")
    assert parse("net.dst.port == 80".ljust(MAX_LENGTH)) == WEB


def test_the_deepest_expression_can_be_evaluated_and_compiled() -> None:
    level = '(net.dst.port == 80 or net.protocol == "tcp" and not '
    text = level * (MAX_NESTING // 2) + "net.dst.port == 81" + ")" * (MAX_NESTING // 2)
    packet = Tuple5(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 1, 80, 6)
    assert matches(parse(text), packet)
    assert rules_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "net.dst.ip in {" + " ".join(f"10.{i % 250}.{i // 250}.1" for i in range(5000)) + "}",
        " or ".join(f"net.dst.port == {i}" for i in range(2500)),
        "not (" + " and ".join(f"net.dst.ip != 10.0.{i // 250}.{i % 250}" for i in range(1800)) + ")",
    ],
    ids=["set", "or", "not and"],
)
def test_a_long_list_is_one_rule(text: str) -> None:
    assert len(rules_of(text)) == 1


@pytest.mark.parametrize("count", [20, 500])
def test_an_expression_that_multiplies_is_refused_in_time(count: int) -> None:
    terms = (
        f"(net.src.ip != 10.0.{i // 250}.{i % 250} or net.dst.ip != 10.1.{i // 250}.{i % 250})"
        for i in range(count)
    )
    with pytest.raises(TooManyRulesError):
        rules_of(" and ".join(terms))


@pytest.mark.parametrize(
    "text",
    [
        "net.dst.port == 80 and net.dst.port == 81",
        'net.protocol == "tcp" and net.protocol != "tcp"',
        "net.dst.ip in {192.0.2.0/24} and net.dst.ip in {2001:db8::/32}",
        "net.dst.ip == 192.0.2.1 and net.dst.ip not in {192.0.0.0/8}",
        "net.dst.port not in {0..65535}",
        "not (net.dst.port == 80 or net.dst.port != 80)",
        "net.src.ip not in {0.0.0.0/0 ::/0}",
    ],
)
def test_what_nothing_matches_needs_no_rule(text: str) -> None:
    assert rules_of(text) == ()


WORDS = [
    "net.dst.port",
    "net.src.ip",
    "net.dst.ip",
    "net.protocol",
    "==",
    "!=",
    "in",
    "not",
    "and",
    "or",
    "!",
]
WORDS += ["&&", "||", "(", ")", "{", "}", "80", "80..90", "1.2.3.4", "10.0.0.0/8", "::1", "fd00::/8", '"tcp"']
WORDS += ['"udp"', ",", "=", ".", "foo"]


@given(st.lists(st.sampled_from(WORDS), max_size=14))
@settings(max_examples=1500, deadline=None)
def test_any_row_of_words_is_an_expression_or_an_error_inside_of_it(words: list[str]) -> None:
    text = " ".join(words)
    try:
        parse(text)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1


@given(st.text(max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    try:
        parse(text)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1
