"""Shadowed policies: each named one never decides, and the policies that decide instead are named."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network

import mixes
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from mixes import Rule

from enforcer.policy.facts import Connection, region_facts
from enforcer.policy.reference import decide
from enforcer.policy.rules import TooManyRulesError
from enforcer.policy.shadow import scope_of_policies, shadowed

TCP_UDP = scope_of_policies((6, 17), [])


def named(*texts: str) -> dict[str, tuple[str, ...]]:
    return {
        one.name: one.by
        for one in shadowed([Rule(f"p{i}", i, text) for i, text in enumerate(texts)], scope=TCP_UDP)
    }


@pytest.mark.parametrize(
    ("texts", "by"),
    [
        (["", "net.dst.port == 80"], ("p0",)),
        (["net.dst.port in {1..100}", "net.dst.port == 80"], ("p0",)),
        (["net.dst.port <= 80", "net.dst.port > 80", "net.dst.ip == 192.0.2.1"], ("p0", "p1")),
        (['net.protocol == "tcp"', 'net.protocol == "udp"', "net.src.port == 1"], ("p0", "p1")),
        (
            ["net.dst.ip in {10.0.0.0/9}", "net.dst.ip in {10.128.0.0/9}", "net.dst.ip in {10.0.0.0/8}"],
            ("p0", "p1"),
        ),
        (["net.dst.ip in {2001:db8::/32}", "net.dst.ip == 2001:db8::1"], ("p0",)),
        (["net.dst.ip in {2001:db8::/32 192.0.2.0/24}", "net.dst.ip in {192.0.2.1 2001:db8::1}"], ("p0",)),
        (['identity.email == "a"', 'identity.email == "a" and net.dst.port == 80'], ("p0",)),
        (['identity.email == "a"', 'identity.email == "b"', 'identity.email in {"a" "b"}'], ("p0", "p1")),
        (['identity.email != "a"', 'identity.email == "b"'], ("p0",)),
        (['any(identity.groups[*].name in {"x" "y"})', 'any(identity.groups[*].name == "x")'], ("p0",)),
        (['net.dst.geo.country in {"DE" "FR"}', 'net.dst.geo.country == "FR"'], ("p0",)),
        (['net.fqdn.host == "a.b"', 'net.fqdn.host == "a.b" and net.dst.port == 443'], ("p0",)),
        (['identity.email matches "x"', 'identity.email matches "x" and net.dst.port == 1'], None),
        (["net.dst.port == 80", "net.dst.port in {80 81}"], None),
        (['identity.email == "a"', "net.dst.port == 80"], None),
        (['identity.email == "a"', 'identity.email == "b"'], None),
        (['any(identity.groups[*].name == "x")', 'any(identity.groups[*].name == "y")'], None),
        (["net.dst.ip in {10.0.0.0/9}", "net.dst.ip in {10.0.0.0/8}"], None),
        (['not identity.email == "a"', 'net.src.ip == 192.0.2.1 or identity.email == "a"'], None),
    ],
)
def test_the_last_one_is_hidden_by(texts: list[str], by: tuple[str, ...] | None) -> None:
    assert named(*texts) == ({f"p{len(texts) - 1}": by} if by else {})


@pytest.mark.parametrize(
    "text",
    [
        "net.dst.port == 1 and net.dst.port == 2",
        'net.protocol == "icmp"',
        "net.dst.port == 53",
        'identity.email == "a" and identity.email == "b"',
        'net.src.geo.country == "DE" and not net.src.geo.country in {"DE" "FR"}',
    ],
)
def test_an_empty_policy_is_hidden_by_none(text: str) -> None:
    assert named(text) == {"p0": ()}


def test_private_networks_and_protocols_that_are_not_proxied() -> None:
    policies = [Rule("a", 1, "net.dst.ip in {10.20.1.0/24 fd20::1}"), Rule("b", 2, 'net.protocol == "udp"')]
    asked = scope_of_policies((6,), [ip_network("10.20.0.0/16"), ip_network("fd20::/48")])
    assert [one.name for one in shadowed(policies, scope=asked)] == ["a", "b"]
    assert shadowed(policies, scope=TCP_UDP) == []


def test_what_is_disabled_neither_hides_nor_is_hidden() -> None:
    assert not shadowed([Rule("off", 1, "", enabled=False), Rule("on", 2, "net.dst.port == 80")])
    assert not shadowed([Rule("on", 1, ""), Rule("off", 2, "net.dst.port == 80", enabled=False)])


def test_all_three_texts_count() -> None:
    one = Rule("one", 1, "", identity='identity.email == "a"')
    two = Rule(
        "two", 2, 'identity.email == "a"', device_posture='any(device_posture.checks.passed[*] == "d")'
    )
    assert [each.by for each in shadowed([one, two])] == [("one",)]
    assert not shadowed([two, Rule("three", 3, 'identity.email == "a"')])


@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
@settings(max_examples=200)
def test_what_is_hidden_never_decides(chance: random.Random, seed: int) -> None:
    """Random policies and a copy of one behind them; the search does not find the copy in every draw."""
    policies = [mixes.policy(chance, i, 100 - i) for i in range(chance.randrange(1, 6))]
    policies.append(replace(chance.choice(policies), name="copy", precedence=1000))
    try:
        found = {one.name for one in shadowed(policies, scope=TCP_UDP)}
    except TooManyRulesError:
        reject()
    assume(found)
    rest = random.Random(seed)
    world = mixes.world(rest)
    for _ in range(40):
        connection = world.connection(mixes.packet(rest))
        if connection.protocol in (6, 17) and connection.dst_port != 53:
            winner = decide(policies, connection)
            assert winner is None or winner.name not in found


# Comparisons of few values, so that policies often hide others, and every connection that they tell apart.
WORDS = [
    *("net.dst.ip in {198.18.0.0/24}", "net.dst.ip == 198.18.0.10"),
    "net.dst.ip in {198.18.0.0/16 2001:db8::1}",
    *("net.dst.port == 80", "net.dst.port in {80 443}", "net.dst.port > 100"),
    *('identity.email == "ann"', 'identity.email in {"ann" "bob"}'),
    *('identity.email != "ann"', 'identity.email not in {"ann" "bob"}'),
    *('net.src.geo.country in {"DE" "FR"}', 'net.src.geo.country == "FR"'),
    *('any(identity.groups[*].name == "x")', 'any(identity.groups[*].name in {"x" "y"})'),
    'not any(identity.groups[*].name == "x")',
]
EVERY_CONNECTION = [
    Connection(
        ip_address("10.0.0.1" if "." in destination else "fd00::1"),
        ip_address(destination),
        40000,
        port,
        6,
        region_facts("src", country, "EU"),
        region_facts("dst", None, None),
        {**email, **groups},
        (),
    )
    for destination in ("198.18.0.10", "198.18.0.11", "198.18.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::2")
    for port in (80, 443, 8080)
    for country in (None, "DE", "FR", "US")
    for email in ({}, *({"identity.email": (name,)} for name in ("ann", "bob", "eve")))
    for groups in ({}, *({"identity.groups.name": tuple(names)} for names in ("x", "y", "z", "xz")))
]


def test_of_few_values_every_connection_is_tried() -> None:
    chance = random.Random(1)
    found = 0
    for _ in range(300):
        texts = [chance.sample(WORDS, chance.randrange(1, 4)) for _ in range(4)]
        policies = [
            Rule(f"p{i}", i, chance.choice((" and ", " or ")).join(words)) for i, words in enumerate(texts)
        ]
        names = {one.name for one in shadowed(policies, scope=TCP_UDP)}
        found += len(names)
        if names:
            decided = {winner.name for each in EVERY_CONNECTION if (winner := decide(policies, each))}
            assert not names & decided, policies
    assert found > 100


def test_thousands_of_policies_are_searched_at_once() -> None:
    policies = [
        Rule(f"p{i}", i, f'identity.email == "user{i}" and net.dst.ip in {{10.{i >> 8}.{i & 255}.0/24}}')
        for i in range(3000)
    ]
    policies.append(Rule("again", 10**6, 'identity.email == "user7" and net.dst.ip == 10.0.7.9'))
    assert [(one.name, one.by) for one in shadowed(policies)] == [("again", ("p7",))]


PROGRAM = """
from enforcer.policy.language import parse
from enforcer.policy.rules import rules_of
from enforcer.policy.shadow import _example
group = "identity.groups[*].name"
alternatives = [f'all({group} in {{"{a}" "{b}" "{c}"}})' for a, b, c in ("amx", "bly", "ckz")]
for text in (" or ".join(alternatives), f'any({group} in {{"a" "b"}}) and any({group} in {{"c" "d"}})'):
    print([_example(box) for box in rules_of(parse(text))])
"""


def test_every_process_tries_the_same_connections() -> None:
    """Hashes of strings differ between processes; warnings must not depend on them."""
    said = set()
    for seed in range(8):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
