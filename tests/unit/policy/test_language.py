"""The language of policies: valid expressions and their meaning, and messages for invalid ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from effort import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.policy.expression import (
    AddressIn,
    And,
    Everything,
    Expression,
    Not,
    Or,
    PortIn,
    ProtocolIn,
    TextIn,
    TextMatches,
    comparisons,
)
from enforcer.policy.facts import DIMENSIONS, Connection
from enforcer.policy.fields import FIELDS, OPERATORS, WRITTEN
from enforcer.policy.language import (
    MAX_COMPARISONS,
    MAX_LENGTH,
    MAX_NESTING,
    ExpressionError,
    ListError,
    Lists,
    expression_of,
    parse,
)
from enforcer.policy.lists import MAX_VALUES
from enforcer.policy.patterns import MAX_PATTERN
from enforcer.policy.predicate import is_single
from enforcer.policy.reference import matches
from enforcer.policy.rules import MAX_RULES, TooManyRulesError, rules_of

WEB = PortIn("destination", ((80, 80),))
TCP = ProtocolIn(frozenset({6}))


def networks(*texts: str) -> tuple[object, ...]:
    return tuple(map(ip_network, texts))


def ports(*ranges: tuple[int, int]) -> PortIn:
    return PortIn("destination", ranges)


def one(field: str, *values: str) -> TextIn:
    return TextIn(field, frozenset(values))


def every(field: str, *values: str) -> TextIn:
    return TextIn(field, frozenset(values), "all")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("", Everything()),
        (" \n\t ", Everything()),
        ("net.dst.port == 80", WEB),
        ("net.dst.port==80", WEB),
        ("net.dst.port eq 80", WEB),
        ("(net.dst.port == 80)", WEB),
        ("net.dst.port != 80", Not(WEB)),
        ("net.dst.port ne 80", Not(WEB)),
        ("not net.dst.port == 80", Not(WEB)),
        ("!net.dst.port == 80", Not(WEB)),
        ("!(net.dst.port == 80)", Not(WEB)),
        ("not(net.dst.port == 80)", Not(WEB)),
        ("not not net.dst.port == 80", Not(Not(WEB))),
        ("net.dst.port in {80}", WEB),
        ("net.dst.port in{80}", WEB),
        ("net.dst.port not in {80}", Not(WEB)),
        ("net.src.port == 80", PortIn("source", ((80, 80),))),
        ("net.dst.port in {80 443 8000..8999}", ports((80, 80), (443, 443), (8000, 8999))),
        ("net.dst.port in {0..65535}", ports((0, 65535))),
        ('net.dst.port == "80"', WEB),  # as in Cloudflare's documents
        ("net.dst.port == 0x50", WEB),
        ("net.dst.port < 80", ports((0, 79))),
        ("net.dst.port lt 80", ports((0, 79))),
        ("net.dst.port <= 80", ports((0, 80))),
        ("net.dst.port le 80", ports((0, 80))),
        ("net.dst.port > 80", ports((81, 65535))),
        ("net.dst.port gt 80", ports((81, 65535))),
        ("net.dst.port >= 80", ports((80, 65535))),
        ("net.dst.port ge 80", ports((80, 65535))),
        ("net.dst.port<0", ports()),
        ("net.dst.port > 65535", ports()),
        ('net.protocol == "tcp"', TCP),
        ('net.protocol == "TCP"', TCP),
        ('net.protocol == r"tcp"', TCP),
        ('net.protocol != "udp"', Not(ProtocolIn(frozenset({17})))),
        ('net.protocol in {"tcp" "udp"}', ProtocolIn(frozenset({6, 17}))),
        ('net.protocol == "icmp"', ProtocolIn(frozenset({1, 58}))),
        ("net.src.ip == 192.0.2.1", AddressIn("source", networks("192.0.2.1/32"))),
        ("net.dst.ip == 2001:db8::1", AddressIn("destination", networks("2001:db8::1/128"))),
        ("net.dst.ip != 0.0.0.0", Not(AddressIn("destination", networks("0.0.0.0/32")))),
        (
            "net.dst.ip in {192.0.2.0/24 2001:db8::/32 ::1}",
            AddressIn("destination", networks("192.0.2.0/24", "2001:db8::/32", "::1/128")),
        ),
        (
            "net.dst.ip in {192.0.2.1..192.0.2.4}",
            AddressIn("destination", networks("192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/32")),
        ),
        ("net.src.ip in {2001:db8::..2001:db8::1}", AddressIn("source", networks("2001:db8::/127"))),
        ("net.dst.ip < 64.0.0.0", AddressIn("destination", networks("0.0.0.0/2"))),
        ("net.dst.ip >= 8000::", AddressIn("destination", networks("8000::/1"))),
        ("net.dst.ip < 0.0.0.0", AddressIn("destination", ())),
        # a field with one value is a list with one element
        ("any(net.dst.ip[*] in {10.0.0.0/8})", AddressIn("destination", networks("10.0.0.0/8"))),
        ("all(net.dst.ip[*] in {10.0.0.0/8})", AddressIn("destination", networks("10.0.0.0/8"))),
        ("net.src.ip[*] in {10.0.0.0/8}", AddressIn("source", networks("10.0.0.0/8"))),
        ('any(net.dst.geo.country[*] in {"RU" "KP"})', one("net.dst.geo.country", "RU", "KP")),
        ('all(identity.email[*] != "x")', Not(one("identity.email", "x"))),
        # regions
        ('net.src.geo.country == "us"', one("net.src.geo.country", "US")),
        ('net.dst.geo.continent in {"EU" "na"}', one("net.dst.geo.continent", "EU", "NA")),
        ('net.src.geo.continent == "North America"', one("net.src.geo.continent", "NA")),
        # hosts
        ('net.fqdn.host == "WWW.Example.com."', one("net.fqdn.host", "www.example.com")),
        ('net.fqdn.host == "xn--bcher-kva.example"', one("net.fqdn.host", "xn--bcher-kva.example")),
        ('any(net.fqdn.domains[*] == "example.com")', one("net.fqdn.domains", "example.com")),
        ('any(net.fqdn.domains[*] in {"a.example" "b"})', one("net.fqdn.domains", "a.example", "b")),
        # clients
        ('identity.email == "User@company.com"', one("identity.email", "User@company.com")),
        ('identity.name == "Test User"', one("identity.name", "Test User")),
        ('net.vnet_id == "957fc748"', one("net.vnet_id", "957fc748")),
        ('proxy.endpoint == "3ele0ss56t.proxy.x"', one("proxy.endpoint", "3ele0ss56t.proxy.x")),
        ('any(identity.groups[*].id in {"1" "2"})', one("identity.groups.id", "1", "2")),
        ('any(identity.groups[*].name == "a")', one("identity.groups.name", "a")),
        ('any(identity.groups.name[*] in {"a"})', one("identity.groups.name", "a")),
        ('any(identity.groups[*].name[*] in {"a"})', one("identity.groups.name", "a")),
        ('any (identity.groups[*].email == "a@b")', one("identity.groups.email", "a@b")),
        ('all(identity.groups[*].name == "a")', every("identity.groups.name", "a")),
        ('any(identity.groups[*].name != "a")', Not(every("identity.groups.name", "a"))),
        ('all(identity.groups[*].name != "a")', Not(one("identity.groups.name", "a"))),
        ('all(identity.groups[*].name not in {"a"})', Not(one("identity.groups.name", "a"))),
        ('not any(identity.groups[*].name == "a")', Not(one("identity.groups.name", "a"))),
        ('not(any(identity.groups[*].name == "a"))', Not(one("identity.groups.name", "a"))),
        ('any(device_posture.checks.passed[*] in {"x"})', one("device_posture.checks.passed", "x")),
        ('any(identity.saml_attributes["dept"] in {"x"})', one('identity.saml_attributes["dept"]', "x")),
        ('identity.saml_attributes["dept"] == "x"', one('identity.saml_attributes["dept"]', "x")),
        ('identity.saml_attributes["dept"][*] == "x"', one('identity.saml_attributes["dept"]', "x")),
        ('identity.saml_attributes["dept"] != "x"', Not(one('identity.saml_attributes["dept"]', "x"))),
        ('any(identity.saml_attributes["d"] != "x")', Not(every('identity.saml_attributes["d"]', "x"))),
        (
            'all(identity.saml_attributes["http://a/b c"] == "x")',
            every('identity.saml_attributes["http://a/b c"]', "x"),
        ),
        (
            'any(identity.saml_attributes[*] == "groups=x=y")',
            one('identity.saml_attributes["groups"]', "x=y"),
        ),
        (
            'any(identity.saml_attributes[*] in {"groups=a" "groups=b" "dept=c"})',
            Or(
                (
                    one('identity.saml_attributes["groups"]', "a", "b"),
                    one('identity.saml_attributes["dept"]', "c"),
                )
            ),
        ),
        # regular expressions
        ('identity.email matches ".*@example\\.com$"', TextMatches("identity.email", ".*@example\\.com$")),
        ('identity.email ~ r"\\w+"', TextMatches("identity.email", "\\w+")),
        ('identity.email ~ r#"say "x""#', TextMatches("identity.email", 'say "x"')),
        ('not(identity.email matches "a")', Not(TextMatches("identity.email", "a"))),
        ('identity.email not matches "a"', Not(TextMatches("identity.email", "a"))),
        ('identity.name matches "a\\"b["]\\\\"', TextMatches("identity.name", 'a"b["]\\\\')),
        ('all(net.fqdn.domains[*] matches "x")', TextMatches("net.fqdn.domains", "x", "all")),
        (
            'any(identity.groups[*].name not matches "x")',
            Not(TextMatches("identity.groups.name", "x", "all")),
        ),
        # strings
        (r'identity.name == "a\"b\\c"', one("identity.name", 'a"b\\c')),
        (r'identity.name == "\x41\102\xc3\xa9"', one("identity.name", "ABé")),
        (r'identity.name == r"a\x41"', one("identity.name", "a\\x41")),
        ('identity.name == r##"a"#b"##', one("identity.name", 'a"#b')),
        ('identity.name == r"" and net.dst.port == 80', And((one("identity.name", ""), WEB))),
        ('identity.name in {"and" "a b" r"}"}', one("identity.name", "and", "a b", "}")),
        # `not` binds tighter than `and`, which binds tighter than `xor`, which binds tighter than `or`
        ('net.dst.port == 80 and net.protocol == "tcp"', And((WEB, TCP))),
        ('net.dst.port == 80 && net.protocol == "tcp"', And((WEB, TCP))),
        ('net.dst.port == 80 or net.protocol == "tcp"', Or((WEB, TCP))),
        ('net.dst.port == 80||net.protocol == "tcp"', Or((WEB, TCP))),
        ('not net.dst.port == 80 and net.protocol == "tcp"', And((Not(WEB), TCP))),
        ('net.dst.port == 80 or net.dst.port == 80 and net.protocol == "tcp"', Or((WEB, And((WEB, TCP))))),
        ('(net.dst.port == 80 or net.dst.port == 80) and net.protocol == "tcp"', And((Or((WEB, WEB)), TCP))),
        ("net.dst.port == 80\n  and\n\tnet.dst.port == 80", And((WEB, WEB))),
        ('net.dst.port == 80 xor net.protocol == "tcp"', And((Or((WEB, TCP)), Not(And((WEB, TCP)))))),
        ('net.dst.port == 80 ^^ net.protocol == "tcp"', And((Or((WEB, TCP)), Not(And((WEB, TCP)))))),
        (
            "net.dst.port == 80 or net.dst.port == 80 xor net.dst.port == 80 and net.dst.port == 80",
            Or((WEB, And((Or((WEB, And((WEB, WEB)))), Not(And((WEB, And((WEB, WEB))))))))),
        ),
    ],
)
def test_what_a_text_says(text: str, expression: object) -> None:
    assert parse(text) == expression


FIELD = "a field, such as net.dst.ip"
ONE_OF = ", ".join(WRITTEN)
ON_TEXT = "`==`, `!=`, `in`, `not in` or `matches`"
ON_NUMBERS = "`==`, `!=`, `in`, `not in`, `<`, `<=`, `>` or `>=`"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        # fields
        ("net.dst.prt == 80", 1, "net.dst.prt is no known field; expected net.dst.port (did you mean that?)"),
        ("dst.port == 80", 1, "dst.port is no known field; expected net.dst.port"),
        ("zzz == 80", 1, f"zzz is no known field; expected one of {ONE_OF}"),
        ('net.vmnet_id == "x"', 1, "expected net.vnet_id (did you mean that?)"),
        (
            'any(identity.group[*].name == "x")',
            5,
            "identity.group.name is no known field; expected identity.gr",
        ),
        ("any(net.dst.ip)", 15, f") cannot stand here; expected {ON_NUMBERS}"),
        ('lower(identity.email) == "x"', 1, "lower is no function here; expected any(…) or all(…)"),
        (
            "any(app.ids[*] in {505})",
            5,
            "app.ids needs Cloudflare's catalogue of applications; expected their",
        ),
        (
            "any(net.fqdn.content_category[*] in {1})",
            5,
            "needs Cloudflare's catalogue of sites; expected hosts",
        ),
        ('net.sni.host == "x"', 1, "expected net.fqdn.host"),
        ('http.request.host == "x"', 1, "is read from a request"),
        (
            'any(device_posture.checks.failed[*] in {"x"})',
            5,
            "expected not any(device_posture.checks.passed[*]",
        ),
        ("net.src.internal_src_ip == 10.0.0.1", 1, "expected net.src.ip"),
        ('identity.groups[*] == "x"', 1, "expected identity.groups[*].id, .name or .email"),
        ('identity.saml_attributes == "x"', 1, 'expected one of them, identity.saml_attributes["…"]'),
        ('identity.email["x"] == "y"', 16, '"x" is no part of this field; expected identity.email without'),
        ("net.dst.port[0] == 3", 14, '0 cannot stand here; expected `*` or "…"'),
        # lists and single fields
        (
            'identity.groups.name == "x"',
            1,
            "is a list; expected any(identity.groups[*].name == …), or all(…)",
        ),
        (
            'device_posture.checks.passed[*] == "x"',
            1,
            "is a list; expected any(device_posture.checks.passed[*]",
        ),
        ('any(identity.groups.name == "x")', 5, "has no [*]; expected any(identity.groups[*].name == …)"),
        ('all(net.fqdn.domains in {"x"})', 5, "has no [*]; expected all(net.fqdn.domains[*] in …)"),
        (
            "any(net.dst.port == 80)",
            5,
            "net.dst.port in any(…) has no [*]; expected net.dst.port == … without any(…), or any(net.dst.po",
        ),
        ('any(identity.saml_attributes[*] == "x")', 36, "names no attribute"),
        ('any(identity.saml_attributes[*] != "a=b")', 33, "!= does not compare"),
        ('any(identity.saml_attributes[*] ~ "a=b")', 33, "expected ==, in"),
        ('all(identity.saml_attributes[*] == "a=b")', 5, "is all attributes; expected one of them"),
        (
            'any(identity.groups[*].id == "x" or identity.groups[*].id == "y")',
            34,
            "or cannot stand here; expected `)`",
        ),
        # operators
        ("net.dst.port", 13, f"the expression ends here; expected {ON_NUMBERS}"),
        ("net.dst.port = 80", 14, f"= cannot stand here; expected {ON_NUMBERS} (equality is written ==)"),
        ('identity.email contains "x"', 16, f"expected {ON_TEXT} (a part of a text is found by matches)"),
        (
            'net.dst.port matches "80"',
            14,
            "matches does not compare net.dst.port, which is a port; expected ==,",
        ),
        ('net.dst.ip ~ "x"', 12, "~ does not compare net.dst.ip, which is an address; expected ==, !=, in"),
        ('net.protocol < "tcp"', 14, "< does not compare net.protocol, which is a protocol; expected =="),
        ("net.fqdn.host < 3", 15, "< does not compare net.fqdn.host, which is a name; expected ==, !=, in"),
        ('identity.email gt "x"', 16, "gt does not compare identity.email, which is text; expected =="),
        ('net.src.geo.country >= "US"', 21, ">= does not compare net.src.geo.country, which is a country"),
        ('identity.email ! "x"', 18, '"x" cannot stand here; expected `in` or `matches`'),
        # grammar
        ("net.dst.port == ", 16, "the expression ends here; expected a value"),
        ("net.dst.port == 80 and", 23, f"the expression ends here; expected {FIELD}, `not` or `(`"),
        ("and net.dst.port == 80", 1, f"and cannot stand here; expected {FIELD}, `not` or `(`"),
        (
            "net.dst.port == 80 nor net.dst.port == 81",
            20,
            "nor cannot stand here; expected `and`, `or`, `xor` or the",
        ),
        ("(net.dst.port == 80", 20, "the expression ends here; expected `)`"),
        ("net.dst.port == 80)", 19, ") cannot stand here; expected the end"),
        (
            "net.dst.port in 80",
            17,
            "80 cannot stand here; expected `{` or $name of a list (a set, even of one",
        ),
        ("net.dst.port in {80,443}", 20, "(values in {…} are separated by blanks)"),
        ("net.dst.port in {80", 20, "the expression ends here; expected `}` or a value"),
        ("net.dst.port in {}", 17, "{ begins an empty set; expected at least one value"),
        ("net.dst.port == {80}", 17, "{ cannot stand here; expected a value"),
        ("net.dst.port == $x", 17, "$x cannot stand here; expected a value"),
        ("§", 1, "§ cannot stand here"),
        # ports
        ("net.dst.port == 192.0.2.1", 17, "is an IP address; expected a port from 0 to 65535"),
        ("net.dst.port == http", 17, "http is no port"),
        ("net.dst.port == 65536", 17, "65536 is no port; expected a port from 0 to 65535"),
        ("net.dst.port < 65536", 16, "65536 is no port"),
        ("net.dst.port == -1", 17, "-1 is no port"),
        (
            "net.dst.port == 0443",
            17,
            "begins with a zero, which makes it octal; expected 443, if that is meant",
        ),
        ("net.dst.port == ٣", 17, "is no port"),
        ("net.dst.port in {80-90}", 18, "expected a range of ports as in {80..90}"),
        ("net.dst.port in {90..80}", 18, "90..80 ends before it begins; expected 80..90"),
        ("net.dst.port in {80..}", 18, "80.. is no port"),
        (
            "net.dst.port == 80..90",
            17,
            "is a range; expected one port here, or a range in a set: net.dst.port in",
        ),
        ("net.dst.port > 80..90", 16, "80..90 is a range; expected a port"),
        # addresses
        ("net.dst.ip == 80", 15, "80 is a number; expected an IP address, such as 192.0.2.1"),
        ('net.dst.ip == "192.0.2.1"', 15, "is text in quotes; expected an IP address"),
        ("net.dst.ip == 192.0.2.0/24", 15, "is a prefix; expected one address here, or a prefix in a set"),
        ("net.dst.ip > 192.0.2.0/24", 14, "is a prefix; expected an IP address"),
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
        # protocols
        ("net.protocol == tcp", 17, 'tcp is not in quotes; expected "tcp"'),
        ("net.protocol == 6", 17, '6 is a number; expected one of "tcp", "udp", "icmp"'),
        ("net.protocol == 'tcp'", 17, '(text stands in double quotes: "tcp")'),
        ('net.protocol == "sctp"', 17, '"sctp" is no known protocol; expected one of "tcp", "udp", "icmp"'),
        # text
        ("identity.email == foo", 19, 'foo is not in quotes; expected "foo"'),
        ("identity.email == 5", 19, '5 is a number; expected "5"'),
        ('identity.email in {"a', 20, '" has no end; expected a closing quote'),
        ('identity.email == "a\\"', 19, '" has no end; expected a closing quote'),
        ('identity.email == "a\\q"', 19, "has \\q in it, which is no escape; expected"),
        ('identity.email == "\\xff"', 19, "is not UTF-8; expected"),
        ('identity.email == "a\\\n"', 19, "has \\  in it"),
        # regions
        ('net.src.geo.country == "USA"', 24, '"USA" is no country code; expected two letters (ISO 3166)'),
        ('net.src.geo.country == "UK"', 24, '"UK" is no country code; expected "GB"'),
        ('net.src.geo.country == "T1"', 24, "stands for the Tor network"),
        ('net.src.geo.country in {"DE" "XX"}', 30, "countries that are not known"),
        (
            'net.src.geo.continent == "XY"',
            26,
            '"XY" is no continent; expected one of AF, AN, AS, EU, NA, OC, SA',
        ),
        ('net.src.geo.continent == "T1"', 26, "stands for the Tor network"),
        # hosts
        (
            'net.fqdn.host == "bücher.example"',
            18,
            'is not ASCII, as DNS names are; expected the A-label, "xn--bcher-kva.example"',
        ),
        ('net.fqdn.host == "*.example.com"', 18, 'expected any(net.fqdn.domains[*] == "example.com"), which'),
        ('any(net.fqdn.domains[*] == ".example.com")', 28, "stands for many names"),
        ('net.fqdn.host == "https://example.com/"', 18, "is a URL; expected a name"),
        ('net.fqdn.host == "192.0.2.1"', 18, "is an IP address; expected a name"),
        ('net.fqdn.host == ""', 18, "is no DNS name"),
        (f'net.fqdn.host == "{"a" * 64}.example"', 18, "is no DNS name"),
        # regular expressions
        (
            'identity.email matches "(a"',
            24,
            "is no regular expression here: missing ): (a; expected one that RE2",
        ),
        ('identity.email matches "(?=a)"', 24, "invalid perl operator: (?="),
        ('identity.email matches "(a)\\1"', 24, "invalid escape sequence"),
        ('identity.email matches "((a{100}){100}){10}"', 24, "invalid repetition size"),
        ('identity.email matches "\\pL{300}"', 24, "needs more than 1 MiB when compiled"),
        ('identity.email matches "[a&&b]"', 24, "&& inside of […] is not known"),
        ('identity.email matches "[a[b]]"', 24, "[ inside of […] is not known"),
        ('identity.email matches "[a"', 24, '" has no end; expected a closing quote, outside of […]'),
        (f'identity.email matches "{"a" * (MAX_PATTERN + 1)}"', 24, "longer than 4,096 characters"),
        ("identity.email matches a", 24, 'a cannot stand here; expected a regular expression in "…"'),
        ("net.dst.port == 80 or\nnet.dst.prot == 1", 23, "net.dst.prot is no known field"),
    ],
)
def test_what_is_wrong_and_where(text: str, column: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert message in caught.value.message
    assert "; expected " in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.column == column


UUID = "957fc748-591a-4e96-a15d-1a90204a7923"
LISTS = Lists(
    {
        "offices": ["10.0.0.0/8", "2001:db8::/32"],
        "ports": ["80", "8000..8999"],
        UUID: ["Example.com"],
        "mixed": ["10.0.0.1", "example.com"],
        "none": [],
    }
)


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("net.dst.ip in $offices", AddressIn("destination", networks("10.0.0.0/8", "2001:db8::/32"))),
        (
            "net.dst.ip not in $offices",
            Not(AddressIn("destination", networks("10.0.0.0/8", "2001:db8::/32"))),
        ),
        ("not net.src.ip in $none", Not(AddressIn("source", ()))),
        ("any(net.dst.ip[*] in $offices)", AddressIn("destination", networks("10.0.0.0/8", "2001:db8::/32"))),
        ("net.dst.port in $ports", ports((80, 80), (8000, 8999))),
        (f"net.fqdn.host in ${UUID}", one("net.fqdn.host", "example.com")),
        (f"net.fqdn.host in ${UUID.replace('-', '')}", one("net.fqdn.host", "example.com")),
        (f"any(net.fqdn.domains[*] in ${UUID.upper()})", one("net.fqdn.domains", "example.com")),
        (f"identity.email in ${UUID}", one("identity.email", "Example.com")),
        ("identity.email in $none", one("identity.email")),
    ],
)
def test_lists(text: str, expression: object) -> None:
    assert parse(text, LISTS) == expression


def test_a_list_that_is_not_there_or_of_another_kind() -> None:
    with pytest.raises(ExpressionError, match=rf"\$office is no list; expected one of \$offices, .*\${UUID}"):
        parse("net.dst.ip in $office", LISTS)
    with pytest.raises(ExpressionError, match="a list of that name under `lists`; there are none"):
        parse("net.dst.ip in $offices")
    for _ in range(2):
        with pytest.raises(ListError) as caught:
            parse("net.dst.port == 80 and net.dst.ip in $mixed", LISTS)
        assert (caught.value.name, caught.value.index, caught.value.column) == ("mixed", 1, 38)
        assert caught.value.message.startswith(
            "$mixed has example.com as value 2, which is no IP address; expect"
        )


def test_the_values_of_a_list_are_read_once() -> None:
    def parsed(times: int) -> None:
        lists = Lists(
            {
                "addresses": [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(10_000)],
                "names": [f"host-{i}.example.com" for i in range(9_999)] + ["not a name"],
            }
        )
        for port in range(times):
            parse(f"net.dst.ip in $addresses and net.dst.port == {port}", lists)
            with pytest.raises(ListError):
                parse(f"net.fqdn.host in $names and net.dst.port == {port}", lists)

    # Reading the lists once per expression would multiply the calls.
    assert calls(lambda: parsed(50)) < 2 * calls(lambda: parsed(1))


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
    assert parse("net.dst.port == 80".ljust(MAX_LENGTH)) == WEB
    for length in (MAX_LENGTH + 1, 1 << 20):
        with pytest.raises(
            ExpressionError, match="longer than 262,144 characters; expected several policies"
        ):
            parse("net.dst.port == 80".ljust(length))


def test_xor_is_refused_before_it_explodes() -> None:
    for text in (
        " xor ".join(f"net.dst.port == {port}" for port in range(500)),
        "(" * 90 + "net.dst.port == 1" + " xor net.dst.port == 2)" * 90,
    ):
        with pytest.raises(ExpressionError, match="xor makes more than 4,096 comparisons"):
            parse(text)
    expression = parse(" xor ".join(f"net.dst.port == {port}" for port in range(10)))
    packet = Connection(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 1, 5, 6)
    assert matches(expression, packet)
    assert not matches(expression, packet._replace(dst_port=10))


def test_the_deepest_expression_can_be_evaluated_and_compiled() -> None:
    level = '(net.dst.port == 80 or net.protocol == "tcp" and not '
    text = level * (MAX_NESTING // 2) + "net.dst.port == 81" + ")" * (MAX_NESTING // 2)
    packet = Connection(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 1, 80, 6)
    assert matches(parse(text), packet)
    assert rules_of(parse(text))


@dataclass(frozen=True)
class Three:
    traffic: str = ""
    identity: str = ""
    device_posture: str = ""


def test_a_policy_is_its_three_texts() -> None:
    assert expression_of(Three()) == Everything()
    assert expression_of(Three(identity="net.dst.port == 80")) == WEB
    assert expression_of(Three("net.dst.port == 80", " ", 'net.protocol == "tcp"')) == And((WEB, TCP))
    three = Three(*["net.dst.port == 80"] * 3)
    assert expression_of(three) == And((WEB, WEB, WEB))
    assert expression_of(Three("net.dst.ip in $none"), LISTS) == AddressIn("destination", ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net.dst.port==80", "net.dst.port == 80"),
        ("net.dst.port   in\n{ 80\t443 }", "net.dst.port in {80 443}"),
        ("net.dst.port !=80", "net.dst.port != 80"),
        ("net.dst.port not  in {1 2}", "net.dst.port not in {1 2}"),
        ('any ( identity.groups[*].name in {"a  b"} )', 'any(identity.groups[*].name in {"a  b"})'),
        ('identity.email ~ r"a b"', 'identity.email matches r"a b"'),
        (
            f"net.dst.port in {{{' '.join(map(str, range(5000)))}}}",
            "net.dst.port in {0 1 2 3 4 5 6 7 8 9 10 11 … 5,000 values}",
        ),
        ("net.dst.ip  in $offices", "net.dst.ip in $offices"),
    ],
)
def test_a_comparison_keeps_its_text(text: str, expected: str) -> None:
    (comparison,) = comparisons(parse(text, LISTS))
    assert comparison.text == expected
    long = parse(f'identity.email == "{"x" * 5000}"')
    assert isinstance(long, TextIn) and len(long.text) < 300


def test_every_field_and_every_operator_of_its_kind() -> None:
    assert set(DIMENSIONS) < set(FIELDS)
    values = {
        "address": "192.0.2.1",
        "port": "80",
        "protocol": '"tcp"',
        "country": '"US"',
        "continent": '"EU"',
        "host": '"example.com"',
        "text": '"x"',
    }
    for field in FIELDS.values():
        for operator in (*OPERATORS["port"], "matches"):
            value = f"{{{values[field.kind]}}}" if "in" in operator else values[field.kind]
            value = '"x"' if operator == "matches" else value
            text = f"{field.written} {operator} {value}"
            text = f"any({text})" if field.many else text
            if operator in OPERATORS[field.kind]:
                (comparison,) = comparisons(parse(text))
                assert comparison.text == text
                if field.name in DIMENSIONS:
                    assert comparison.field == field.name
            else:
                with pytest.raises(ExpressionError, match="does not compare"):
                    parse(text)


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
    assert len(rules_of(parse(text))) == 1


@pytest.mark.parametrize("count", [20, 500])
def test_an_expression_that_multiplies_is_refused_in_time(count: int) -> None:
    terms = (
        f"(net.src.ip != 10.0.{i // 250}.{i % 250} or net.dst.ip != 10.1.{i // 250}.{i % 250})"
        for i in range(count)
    )
    with pytest.raises(TooManyRulesError):
        rules_of(parse(" and ".join(terms)))


PEOPLE = Lists(
    {
        "people": [f"{number}@example.com" for number in range(100_000)],
        "more": [f"{number}@example.com" for number in range(50_000, 150_000)],
    }
)


@pytest.mark.parametrize(
    "term",
    [
        '(identity.email in $people and identity.email != "{}@example.com" or net.dst.port == {})',
        '(identity.email in $people or identity.email != "{}@example.com" and net.dst.port == {})',
        "(identity.email in $people and net.src.port != {} or identity.email not in $more)",
        'any(identity.groups[*].name in $people) or any(identity.groups[*].name == "{}")',
    ],
)
def test_a_large_list_in_many_terms_is_refused_soon(term: str) -> None:
    """Values count towards the limit: otherwise such an expression takes minutes and gigabytes."""
    expression = parse(" and ".join(term.replace("{}", str(number)) for number in range(60)), PEOPLE)

    def refused() -> None:
        with pytest.raises(TooManyRulesError):
            rules_of(expression)

    assert calls(refused) < 200_000


def test_a_large_list_in_many_terms_that_are_one() -> None:
    terms = (f"(identity.email in $people or net.dst.port == {number})" for number in range(60))
    assert len(rules_of(parse(" and ".join(terms), PEOPLE))) == 1


def test_a_large_list_costs_nothing_where_nothing_meets_it() -> None:
    terms = [f"net.dst.port == {i} and net.dst.ip == 10.0.0.{i}" for i in range(100)]
    one_list = f"identity.email in $people and ({' or '.join(f'({term})' for term in terms)})"
    assert len(rules_of(parse(one_list, PEOPLE))) == 100
    each = " or ".join(f"identity.email in $people and {term}" for term in terms[:30])
    assert len(rules_of(parse(each, PEOPLE))) == 30
    groups = " or ".join(f'any(identity.groups[*].name == "g{i}") and {term}' for i, term in enumerate(terms))
    assert len(rules_of(parse(f"identity.email in $people and ({groups})", PEOPLE))) == 100


def test_which_fields_have_several_values_is_said_once() -> None:
    for field in FIELDS.values():
        assert is_single(field.name) is not field.many
    assert not is_single('identity.saml_attributes["department"]')


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
    assert rules_of(parse(text)) == ()


# fmt: off
WORDS = [
    'net.dst.port', 'net.src.ip', 'net.dst.ip', 'net.protocol', 'identity.email', 'identity.groups',
    'net.fqdn.domains', '.name', 'identity.saml_attributes', 'net.src.geo.country', '==', '!=', '<', '>=',
    'eq', 'in', 'not', 'and', 'or', 'xor', 'matches', '~', '!', '&&', '||', '^^', '(', ')', '{', '}', '[',
    ']', '[*]', '["a"]', 'any(', 'all(', 'any', '80', '80..90', '1.2.3.4', '10.0.0.0/8', '::1', 'fd00::/8',
    '"tcp"', '"udp"', '"US"', '"a.example"', 'r"x"', 'r#"y"#', '$offices', '$ports', '$none', ',', '=', '.',
    'foo', '"', 'r#"', '\\', '$'
]
# fmt: on


@given(st.lists(st.sampled_from(WORDS), max_size=14), st.sampled_from([" ", "", "\n"]))
@settings(max_examples=2500, deadline=None)
def test_any_row_of_words_is_an_expression_or_an_error_inside_of_it(words: list[str], blank: str) -> None:
    text = blank.join(words)
    try:
        parse(text, LISTS)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1
        assert "\n" not in error.message


@given(
    st.text(max_size=60)
    | st.text(st.sampled_from('"\\rx#[]()*.$a {}=~'), max_size=30).map(lambda end: f"identity.name {end}")
)
@settings(max_examples=1000, deadline=None)
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    try:
        parse(text)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1


@given(st.text(max_size=20), st.sampled_from(["identity.name", 'identity.saml_attributes["x"]']))
@settings(max_examples=500, deadline=None)
def test_any_value_can_be_said(value: str, field: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'{field} == "{quoted}"') == one(field, value)
    hashes = "#" * 21
    assert parse(f'{field} == r{hashes}"{value}"{hashes}') == one(field, value)


@given(st.text(max_size=12))
@settings(max_examples=500, deadline=None)
def test_any_pattern_is_taken_or_refused(pattern: str) -> None:
    try:
        expression = parse(f'identity.name matches r{"#" * 13}"{pattern}"{"#" * 13}')
    except ExpressionError as error:
        assert "is no regular expression here" in error.message
    else:
        assert expression == TextMatches("identity.name", pattern)


LEAVES = st.sampled_from(
    [
        "net.dst.port == 80",
        "net.dst.port not in {1..9 443}",
        "net.src.ip in {10.0.0.0/8}",
        "net.dst.ip >= 10.0.0.0",
        'net.protocol != "udp"',
        'any(identity.groups[*].name in {"a" "b"})',
        'all(net.fqdn.domains[*] matches "x|y")',
        'identity.saml_attributes["x y"] == "z"',
        'net.src.geo.country == "US"',
    ]
)
TREES = st.recursive(
    LEAVES.map(lambda text: (parse(text), text)),
    lambda trees: st.one_of(
        trees.map(lambda tree: (Not(tree[0]), f"not ({tree[1]})")),
        st.tuples(
            st.sampled_from([(And, "and"), (Or, "or"), (And, "&&"), (Or, "||")]),
            st.lists(trees, min_size=2, max_size=4),
        ).map(
            lambda made: (
                made[0][0](tuple(tree[0] for tree in made[1])),
                f" {made[0][1]} ".join(f"({tree[1]})" for tree in made[1]),
            )
        ),
    ),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_what_is_read(tree: tuple[Expression, str]) -> None:
    assert parse(tree[1]) == tree[0]


DOCUMENT = Path(__file__).parents[3] / "docs" / "policy-language.md"


def test_the_document_has_every_field_with_an_example_that_is_right() -> None:
    lists = Lists({"staff": ["a@example.com"], "payroll": ["hr.example.net"]})
    rows = [row for row in DOCUMENT.read_text().splitlines() if re.match(r"\| `[a-z_]+\.", row)]
    assert {row.split("`")[1] for row in rows} == set(WRITTEN)
    for row in rows:
        written, compared, example, _ = (cell.strip() for cell in row.strip("|").split("|"))
        (comparison,) = comparisons(parse(example.strip("`"), lists))
        name = written.strip("`").replace("[*]", "")
        kind = FIELDS[name].kind if name in FIELDS else "text"
        assert compared == {
            "address": "equality, order",
            "port": "equality, order",
            "protocol": "equality",
        }.get(kind, "equality, matches")
        if name in DIMENSIONS:
            assert isinstance(comparison, TextIn) and comparison.field == name


def test_the_document_has_the_limits_and_its_example() -> None:
    text = DOCUMENT.read_text()
    for limit in (MAX_LENGTH, MAX_COMPARISONS, MAX_VALUES, MAX_PATTERN, MAX_RULES):
        assert f"{limit:,}" in text
    assert f"| {MAX_NESTING} levels |" in text
    lists = Lists({"payroll": ["payroll.example.com"]})
    for key in ("traffic", "identity", "device_posture"):
        (example,) = re.findall(rf"^    {key}: (.*)$", text, re.MULTILINE)
        assert parse(example, lists)
