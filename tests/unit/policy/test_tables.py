"""Match tables agree with the reference on packets near edges, in both families."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import mixes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixes import Rule

from enforcer.policy import sets
from enforcer.policy.facts import NOTHING, Connection
from enforcer.policy.language import parse
from enforcer.policy.reference import decide, evaluate, in_order
from enforcer.policy.rules import MAX_RULES, TooManyRulesError
from enforcer.policy.tables import MatchTables, compile_tables


def rules(*texts: str) -> list[Rule]:
    return [Rule(f"p{index}", index * 10, text) for index, text in enumerate(texts)]


# Few addresses, close together, so that random expressions overlap, nest and miss by one.
NETWORKS = [
    *(
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.128/25",
        "10.0.0.1",
        "10.0.1.0/24",
        "255.255.255.255",
    ),
    *("10.0.0.3..10.0.0.9", "0.0.0.0"),
    *("::/0", "fd00::/8", "fd00::/64", "fd00:0:0:0:8000::/65", "fd00::1", "fd00:0:0:1::/64", "::/80", "::"),
    *("fd00::3..fd00::9", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::fffe:0:0/95", "::fffe:0:0/96"),
]


def edges() -> tuple[list[IPv4Address], list[IPv6Address]]:
    found: dict[int, set[int]] = {4: {0, 2**32 - 1}, 6: {0, 2**128 - 1, 1 << 48, 0xFFFF << 32, (1 << 48) - 1}}
    for text in NETWORKS:
        for end in text.split(".."):
            network = ip_network(end)
            for address in (network.network_address, network.broadcast_address):
                found[network.version] |= {int(address) - 1, int(address), int(address) + 1}
    mapped = range(0xFFFF << 32, 1 << 48)  # no IPv6 packet on a wire has such an address
    return (
        [IPv4Address(value) for value in sorted(found[4]) if 0 <= value < 2**32],
        [IPv6Address(value) for value in sorted(found[6]) if 0 <= value < 2**128 and value not in mapped],
    )


V4, V6 = edges()


@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
@settings(max_examples=600, deadline=None)
def test_tables_agree_with_the_reference(chance: random.Random, seed: int) -> None:
    # Precedences descend in the list, so that the tables must sort.
    policies = [mixes.policy(chance, i, 100 - i) for i in range(chance.randrange(7))]
    # hypothesis shrinks the policies only.
    rest = random.Random(seed)
    world = mixes.world(rest)
    try:
        tables = compile_tables(policies)
    except TooManyRulesError:
        return
    check_shape(tables)
    ordered = in_order(policies)
    for _ in range(30):
        connection = world.connection(mixes.packet(rest))
        index = tables.decide(connection)
        assert (None if index is None else ordered[index]) == decide(policies, connection), connection


@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_a_policy_and_its_negation_share_all_that_is_known(chance: random.Random, seed: int) -> None:
    text = mixes.expression(chance, chance.randrange(1, 6))
    # hypothesis shrinks the policies only.
    rest = random.Random(seed)
    world = mixes.world(rest)
    try:
        tables = compile_tables(rules(text, f"not ({text})"))
    except TooManyRulesError:
        return
    for _ in range(30):
        connection = world.connection(mixes.packet(rest))
        values = {evaluate(parse(text), connection, host) for host in connection.hosts or (NOTHING,)}
        expected = 0 if True in values else 1 if False in values else None
        assert tables.decide(connection) == expected


def check_shape(tables: MatchTables) -> None:
    """Checks the properties that the BPF programs rely on."""
    assert tables.sets[0] == 0
    assert len(set(tables.sets)) == len(tables.sets)
    assert all(bits < 1 << len(tables.rules) for bits in tables.sets) or not tables.rules
    for trie in (tables.source, tables.destination):
        assert {IPv6Network("::/0"), IPv6Network("::ffff:0:0/96")} <= {network for network, _ in trie}
        assert len({network for network, _ in trie}) == len(trie)
    assert tables.ports[0][0] == 0 and tables.ports[-1][1] == 65535
    for (_, last, number), (first, _, following) in zip(tables.ports, tables.ports[1:], strict=False):
        assert first == last + 1 and number != following
    assert len(tables.protocols) == 256
    used = {number for _, number in (*tables.source, *tables.destination)}
    used |= {number for *_, number in tables.ports} | set(tables.protocols)
    assert used <= set(range(len(tables.sets)))


def test_no_policies() -> None:
    tables = compile_tables([])
    check_shape(tables)
    assert tables.sets == (0,) and tables.rules == ()
    assert tables.decide(Connection(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 1, 80, 6)) is None


@pytest.mark.parametrize(("source", "destination"), [("10.0.0.1", "192.0.2.1"), ("fd00::1", "2001:db8::1")])
def test_first_match_in_ascending_precedence(source: str, destination: str) -> None:
    packet = Connection(ip_address(source), ip_address(destination), 40000, 443, 6)
    policies = [
        Rule("late", 30, f"net.dst.ip == {destination}"),
        Rule("off", 1, "", enabled=False),
        Rule("other", 10, "net.dst.port == 80"),
        Rule("early", 20, f'net.src.ip == {source} and net.protocol == "tcp"'),
    ]
    found = decide(policies, packet)
    assert found is not None and found.name == "early"
    index = compile_tables(policies).decide(packet)
    # The index counts all policies, also disabled ones.
    assert index == 2 and in_order(policies)[index].name == "early"
    assert decide([replace(policy, enabled=False) for policy in policies], packet) is None


@pytest.mark.parametrize("network", ["::/0", "::/80", "::fffe:0:0/95"])
def test_no_ipv6_prefix_matches_ipv4(network: str) -> None:
    packet = Connection(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 1, 80, 6)
    assert compile_tables(rules(f"net.dst.ip in {{{network}}}")).decide(packet) is None
    assert compile_tables(rules(f"net.dst.ip not in {{{network}}}")).decide(packet) == 0


def test_icmp_has_port_zero() -> None:
    packet = Connection(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 0, 0, 1)
    tables = compile_tables(rules("net.dst.port in {1..65535}", "net.dst.port == 0"))
    assert tables.decide(packet) == 1


def test_several_rules_are_one_policy() -> None:
    tables = compile_tables(rules("net.src.ip == 10.0.0.1 or net.dst.ip == 10.0.0.2", "net.dst.port == 80"))
    assert tables.rules == (0, 0, 1)


def test_too_many_rules_name_the_policies_that_need_most() -> None:
    pairs = " or ".join(f"net.src.ip == 10.0.{i}.1 and net.dst.ip == 10.1.{i}.1" for i in range(97))
    policies = [*rules(*[""] * (MAX_RULES - 96)), Rule("greedy", 10**6, pairs)]
    with pytest.raises(
        TooManyRulesError, match=r"16,385 rules, 16,384 at most; most are needed by: greedy 97"
    ):
        compile_tables(policies)
    tables = compile_tables(policies[1:])
    check_shape(tables)
    assert len(tables.rules) == MAX_RULES


@given(
    st.lists(st.sampled_from(NETWORKS), max_size=6),
    st.lists(st.sampled_from(NETWORKS), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_address_sets_are_sets(first: list[str], second: list[str]) -> None:
    def members(entries: sets.AddressSet) -> set[str]:
        table = compile_trie(entries)
        return {str(address) for address in (*V4, *V6) if table(address)}

    def make(texts: list[str]) -> sets.AddressSet:
        expression = parse(f"net.dst.ip in {{{' '.join(texts)}}}") if texts else None
        return sets.addresses(expression.networks) if expression else sets.NO_ADDRESSES  # type: ignore[union-attr]

    one, two = make(first), make(second)
    everything = {str(address) for address in (*V4, *V6)}
    assert members(sets.intersect_addresses(one, two)) == members(one) & members(two)
    assert members(sets.unite_addresses(one, two)) == members(one) | members(two)
    assert members(sets.complement_addresses(one)) == everything - members(one)


def compile_trie(entries: sets.AddressSet):  # type: ignore[no-untyped-def]
    def look_up(address: IPv4Address | IPv6Address) -> bool:
        own = (address.version, int(address), address.max_prefixlen)
        return max((entry for entry in entries if sets.covers(entry[0], own)), key=lambda entry: entry[0][2])[
            1
        ]

    return look_up


def test_tables_that_do_not_fit_name_the_policies_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = rules(
        " or ".join(f"net.dst.ip == 10.0.0.{2 * i}" for i in range(100)),
        "net.dst.port in {1..9 11..19}",
    )
    compile_tables(policies)
    monkeypatch.setattr("enforcer.policy.tables.MAX_PREFIXES", 100)
    with pytest.raises(TooManyRulesError, match=r"10\d prefixes .* 100 at most; most are of: p0 \(10"):
        compile_tables(policies)
    monkeypatch.undo()
    monkeypatch.setattr("enforcer.policy.tables.MAX_SETS", 2)
    with pytest.raises(TooManyRulesError, match=r"sets of rules in the match tables, 2 at most"):
        compile_tables(policies)
