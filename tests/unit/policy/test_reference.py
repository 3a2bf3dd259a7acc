"""The reference: three-valued logic, names of a destination, the first match, reasons of failures."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.policy.expression import And, Expression, Not, Or
from enforcer.policy.facts import Connection, Facts, host_facts, region_facts
from enforcer.policy.language import Lists, parse
from enforcer.policy.reference import Step, decide, evaluate, in_order, matches, trace

CLIENT: Facts = {
    "identity.email": ("a@example.com",),
    "identity.groups.id": (),
    "identity.groups.name": ("Finance", "All"),
    "device_posture.checks.passed": (),
    'identity.saml_attributes["dept"]': ("x", "y"),
}
BARE = Connection(ip_address("10.1.0.9"), ip_address("203.0.113.9"), 40000, 443, 6)
KNOWN = BARE._replace(
    source_region=region_facts("src", "DE", "EU"),
    destination_region=region_facts("dst", None, "NA"),
    client=CLIENT,
    hosts=(host_facts("www.example.com"), host_facts("cdn.example.net")),
)


@pytest.mark.parametrize(
    ("text", "known", "bare"),
    [
        ("", True, True),
        ("net.src.ip in {10.0.0.0/8}", True, True),
        ("net.dst.ip in {::/0}", False, False),
        ("net.dst.ip not in {::/0}", True, True),
        ("net.dst.ip < 203.0.113.10 and net.dst.ip >= 203.0.113.9", True, True),
        ("net.dst.ip > ::", False, False),
        ("net.src.port == 40000 and net.dst.port in {400..500}", True, True),
        ("net.dst.port < 443 or net.dst.port > 443", False, False),
        ('net.protocol in {"udp" "icmp"}', False, False),
        # regions
        ('net.src.geo.country == "de"', True, None),
        ('net.src.geo.country != "de"', False, None),
        ('net.src.geo.country not in {"FR"}', True, None),
        ('net.dst.geo.country == "US"', None, None),
        ('not net.dst.geo.country == "US"', None, None),
        ('net.dst.geo.continent == "NA"', True, None),
        # clients
        ('identity.email == "a@example.com"', True, None),
        ('identity.email == "A@example.com"', False, None),
        ('identity.email matches "@example"', True, None),
        ('identity.email matches "^example"', False, None),
        ('identity.name == "A"', None, None),
        ('any(identity.groups[*].name == "All")', True, None),
        ('all(identity.groups[*].name == "All")', False, None),
        ('any(identity.groups[*].name != "All")', True, None),
        ('all(identity.groups[*].name != "All")', False, None),
        ('all(identity.groups[*].name matches "l|F")', True, None),
        # in an empty list no element matches, and none fails to match
        ('any(identity.groups[*].id == "1")', False, None),
        ('any(identity.groups[*].id != "1")', False, None),
        ('all(identity.groups[*].id == "1")', True, None),
        ('all(device_posture.checks.passed[*] != "1")', True, None),
        ('identity.saml_attributes["dept"] == "y"', True, None),
        ('identity.saml_attributes["dept"] != "y"', False, None),
        ('any(identity.saml_attributes["dept"] != "y")', True, None),
        ('identity.saml_attributes["other"] != "y"', None, None),
        # an unknown value decides only if no other value does
        ('identity.name == "A" or net.dst.port == 443', True, True),
        ('identity.name == "A" or net.dst.port == 80', None, None),
        ('identity.name == "A" and net.dst.port == 80', False, False),
        ('identity.name == "A" and net.dst.port == 443', None, None),
        ('not (identity.name == "A" and net.dst.port == 80)', True, True),
        ('identity.name == "A" xor net.dst.port == 443', None, None),
        ('net.dst.port == 80 xor identity.email == "a@example.com"', True, None),
        ('net.dst.port == 443 xor identity.email == "a@example.com"', False, None),
    ],
)
def test_values(text: str, known: bool | None, bare: bool | None) -> None:
    expression = parse(text)
    assert evaluate(expression, KNOWN, KNOWN.hosts[0]) is known
    assert evaluate(expression, BARE) is bare
    assert matches(expression, KNOWN) is (known is True)
    assert matches(expression, BARE) is (bare is True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('net.fqdn.host == "www.example.com"', True),
        ('net.fqdn.host == "cdn.example.net"', True),
        ('net.fqdn.host == "example.com"', False),
        ('any(net.fqdn.domains[*] == "example.com")', True),
        ('any(net.fqdn.domains[*] == "net")', True),
        ('any(net.fqdn.domains[*] == "xample.com")', False),
        # one name at a time: the other one is not www.example.com, but no name is both
        ('net.fqdn.host != "www.example.com"', True),
        ('net.fqdn.host == "www.example.com" and net.fqdn.host == "cdn.example.net"', False),
        ('net.fqdn.host == "www.example.com" and any(net.fqdn.domains[*] == "net")', False),
        ('net.fqdn.host not in {"www.example.com" "cdn.example.net"}', False),
    ],
)
def test_a_policy_matches_with_one_of_the_names(text: str, expected: bool) -> None:
    assert matches(parse(text), KNOWN) is expected
    assert not matches(parse(text), BARE)
    assert not matches(parse(f"not ({text})"), BARE)


@dataclass(frozen=True)
class Policy:
    name: str
    precedence: int
    traffic: str = ""
    identity: str = ""
    device_posture: str = ""
    enabled: bool = True


LISTS = Lists({"web": ["80", "443"]})
POLICIES = [
    Policy("rest", 90),
    Policy("off", 5, enabled=False),
    Policy("ssh", 10, "net.dst.port == 22"),
    Policy("finance", 20, "net.dst.port in $web", 'any(identity.groups[*].name == "Finance")'),
    Policy(
        "checked",
        15,
        "",
        'identity.email matches "@example.com$"',
        "net.dst.port == 443 and net.src.port == 1",
    ),
    Policy("last", 99, "net.dst.port == 443"),
]


def test_the_first_match_decides() -> None:
    assert [policy.name for policy in in_order(POLICIES)] == [
        "off",
        "ssh",
        "checked",
        "finance",
        "rest",
        "last",
    ]
    assert decide(POLICIES, KNOWN, LISTS) == POLICIES[3]
    assert decide(POLICIES, BARE, LISTS) == POLICIES[0]
    assert decide(POLICIES, KNOWN._replace(dst_port=22), LISTS) == POLICIES[2]
    assert decide(POLICIES[1:3], KNOWN, LISTS) is None


def told(steps: list[Step[Policy]]) -> list[tuple[str, str, str, str]]:
    return [(step.policy.name, step.outcome, step.selector, step.reason) for step in steps]


def test_a_trace_says_of_every_policy_what_became_of_it() -> None:
    assert told(trace(POLICIES, KNOWN, LISTS)) == [
        ("off", "disabled", "", ""),
        ("ssh", "failed", "net.dst.port == 22", "net.dst.port is 443"),
        ("checked", "failed", "net.src.port == 1", "net.src.port is 40000"),
        ("finance", "matched", "", ""),
        ("rest", "after", "", ""),
        ("last", "after", "", ""),
    ]
    assert told(trace(POLICIES, BARE, LISTS))[2:4] == [
        ("checked", "failed", 'identity.email matches "@example.com$"', "unknown: no session for 10.1.0.9"),
        (
            "finance",
            "failed",
            'any(identity.groups[*].name == "Finance")',
            "unknown: no session for 10.1.0.9",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "selector", "reason"),
    [
        ("net.src.ip in {10.2.0.0/16}", "net.src.ip in {10.2.0.0/16}", "net.src.ip is 10.1.0.9"),
        ("net.dst.ip == 2001:db8::1", "net.dst.ip == 2001:db8::1", "net.dst.ip is 203.0.113.9"),
        ('net.protocol == "udp"', 'net.protocol == "udp"', "net.protocol is tcp"),
        (
            'net.dst.geo.country == "US"',
            'net.dst.geo.country == "US"',
            "unknown: no country known for 203.0.113.9",
        ),
        ('net.src.geo.country == "US"', 'net.src.geo.country == "US"', 'net.src.geo.country is "DE"'),
        (
            'identity.name == "A"',
            'identity.name == "A"',
            "unknown: the session of 10.1.0.9 has no identity.name",
        ),
        (
            'any(identity.groups[*].name == "x")',
            'any(identity.groups[*].name == "x")',
            'identity.groups[*].name is "Finance", "All"',
        ),
        (
            'any(identity.groups[*].id == "x")',
            'any(identity.groups[*].id == "x")',
            "identity.groups[*].id is empty",
        ),
        (
            'net.fqdn.host == "x.org"',
            'net.fqdn.host == "x.org"',
            'net.fqdn.host is "www.example.com", "cdn.example.net"',
        ),
        # of an `and` the first that fails, of an `or` all
        (
            "net.dst.port == 443 and net.dst.port == 1 and net.dst.port == 2",
            "net.dst.port == 1",
            "net.dst.port is 443",
        ),
        (
            'net.dst.port == 1 or net.protocol == "udp" or net.dst.port == 2',
            'net.dst.port == 1 or net.protocol == "udp" or net.dst.port == 2',
            "net.dst.port is 443; net.protocol is tcp",
        ),
        (
            " or ".join(f"net.dst.port == {port}" for port in range(9)),
            " or ".join([*(f"net.dst.port == {port}" for port in range(5)), "4 more"]),
            "net.dst.port is 443",
        ),
        # negations
        ("net.dst.port != 443", "net.dst.port != 443", "net.dst.port is 443"),
        ("net.dst.port not in {443}", "net.dst.port not in {443}", "net.dst.port is 443"),
        ("not net.dst.port == 443", "not net.dst.port == 443", "net.dst.port is 443"),
        ("not net.dst.port != 80", "not net.dst.port != 80", "net.dst.port is 443"),
        ("not not net.dst.port == 80", "net.dst.port == 80", "net.dst.port is 443"),
        (
            'identity.saml_attributes["dept"] != "x"',
            'identity.saml_attributes["dept"] != "x"',
            'identity.saml_attributes["dept"] is "x", "y"',
        ),
        ("not (net.dst.port == 443 or net.dst.port == 1)", "not net.dst.port == 443", "net.dst.port is 443"),
        (
            'not (net.dst.port == 443 and net.protocol == "tcp")',
            'not net.dst.port == 443 or not net.protocol == "tcp"',
            "net.dst.port is 443; net.protocol is tcp",
        ),
    ],
)
def test_why_a_policy_failed(text: str, selector: str, reason: str) -> None:
    (step,) = trace([Policy("p", 1, text)], KNOWN)
    assert (step.outcome, step.selector, step.reason) == ("failed", selector, reason)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ('net.fqdn.host == "cdn.example.net" and net.dst.port == 80', "net.dst.port == 80"),
        ('net.fqdn.host != "www.example.com" and identity.name == "A"', 'identity.name == "A"'),
        ('net.dst.port == 80 and net.fqdn.host == "x.org"', "net.dst.port == 80"),
        ('net.fqdn.host == "x.org" and net.dst.port == 80', 'net.fqdn.host == "x.org"'),
    ],
)
def test_why_is_asked_of_the_name_that_fits(text: str, selector: str) -> None:
    """KNOWN has two names; the reason is not the name that does not match."""
    (step,) = trace([Policy("p", 1, text)], KNOWN)
    assert (step.outcome, step.selector) == ("failed", selector)


def test_why_a_name_is_not_known() -> None:
    (step,) = trace([Policy("p", 1, 'net.fqdn.host != "x.org"')], BARE)
    assert step.reason == "unknown: no name learnt for 203.0.113.9"
    (step,) = trace([Policy("p", 1, 'net.dst.port == 443 and not net.dst.geo.continent == "EU"')], BARE)
    assert step.selector == 'not net.dst.geo.continent == "EU"'
    assert step.reason == "unknown: no continent known for 203.0.113.9"


LEAVES = [
    "net.dst.port == 443",
    "net.dst.port == 80",
    'net.src.geo.country == "DE"',
    'net.src.geo.country != "DE"',
    'identity.email matches "a"',
    'any(identity.groups[*].name == "All")',
    'all(identity.groups[*].name != "All")',
    'any(device_posture.checks.passed[*] == "1")',
    'net.fqdn.host == "www.example.com"',
    'any(net.fqdn.domains[*] in {"net"})',
]
EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(
    st.sampled_from([parse(leaf) for leaf in LEAVES]),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts))),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.sets(st.sampled_from(sorted({**CLIENT, **KNOWN.source_region, **KNOWN.hosts[0]}))))
@settings(max_examples=500, deadline=None)
def test_what_is_decided_stays_so_when_more_is_known(expression: Expression, hidden: set[str]) -> None:
    def less(facts: Facts) -> Facts:
        return {field: values for field, values in facts.items() if field not in hidden}

    little = KNOWN._replace(source_region=less(KNOWN.source_region), client=less(KNOWN.client))
    found = evaluate(expression, little, less(KNOWN.hosts[0]))
    everything = evaluate(expression, KNOWN, KNOWN.hosts[0])
    assert everything is not None
    assert found in (None, everything)
    assert evaluate(Not(expression), little, less(KNOWN.hosts[0])) is (None if found is None else not found)


@given(EXPRESSIONS, EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_de_morgan(one: Expression, two: Expression) -> None:
    for connection in (BARE, KNOWN):
        host = connection.hosts[0] if connection.hosts else {}
        both = evaluate(Not(And((one, two))), connection, host)
        assert both is evaluate(Or((Not(one), Not(two))), connection, host)


@given(
    st.lists(st.tuples(st.sampled_from(LEAVES), st.sampled_from(LEAVES), st.booleans()), max_size=6),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_trace_and_a_decision_agree(drawn: list[tuple[str, str, bool]], known: bool) -> None:
    policies = [
        Policy(str(index), index, f"not ({one} or {two})" if index % 2 else one, two, enabled=enabled)
        for index, (one, two, enabled) in enumerate(drawn)
    ]
    connection = KNOWN if known else BARE
    steps = trace(reversed(policies), connection)
    assert [step.policy for step in steps] == policies
    matched = [step.policy for step in steps if step.outcome == "matched"]
    decided = decide(policies, connection)
    assert matched == ([decided] if decided else [])
    for step in steps:
        assert (step.outcome == "disabled") is not step.policy.enabled
        assert (step.outcome == "failed") is bool(step.selector) is bool(step.reason)
