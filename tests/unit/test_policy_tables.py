"""Match tables agree with the reference on every packet near an edge, in both families."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.policy import sets
from enforcer.policy.language import parse
from enforcer.policy.reference import Tuple5, decide, in_order, matches
from enforcer.policy.rules import MAX_RULES, TooManyRulesError, rules_of
from enforcer.policy.tables import MatchTables, compile_tables, unreachable


@dataclass(frozen=True)
class Rule:
    name: str
    precedence: int
    traffic: str
    enabled: bool = True


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
PORTS = ["0", "1", "53", "80", "80..90", "81", "443", "0..79", "91..65535", "65535", "1024..65535"]
PROTOCOLS = ['"tcp"', '"udp"', '"icmp"']


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


def comparisons() -> st.SearchStrategy[str]:
    def of(field: str, values: list[str]) -> st.SearchStrategy[str]:
        several = st.lists(st.sampled_from(values), min_size=1, max_size=4).map(" ".join)
        single = st.sampled_from([value for value in values if ".." not in value and "/" not in value])
        return st.one_of(
            st.builds(f"{field} {{}} {{{{{{}}}}}}".format, st.sampled_from(["in", "not in"]), several),
            st.builds(f"{field} {{}} {{}}".format, st.sampled_from(["==", "!="]), single),
        )

    return st.one_of(
        of("net.src.ip", NETWORKS),
        of("net.dst.ip", NETWORKS),
        of("net.dst.port", PORTS),
        of("net.protocol", PROTOCOLS),
    )


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(parts, min_size=2, max_size=3)
    return st.one_of(
        several.map(lambda each: f"({' and '.join(each)})"),
        several.map(lambda each: f"({' or '.join(each)})"),
        parts.map(lambda each: f"not ({each})"),
    )


EXPRESSIONS = st.just("") | st.recursive(comparisons(), joined, max_leaves=7)
ADDRESS_PAIRS = st.tuples(st.sampled_from(V4), st.sampled_from(V4)) | st.tuples(
    st.sampled_from(V6), st.sampled_from(V6)
)
PACKETS = st.builds(
    lambda pair, port, protocol: Tuple5(*pair, 40000, port if protocol in (6, 17) else 0, protocol),
    ADDRESS_PAIRS,
    st.sampled_from([0, 1, 2, 52, 53, 79, 80, 81, 90, 91, 443, 1023, 1024, 65534, 65535]),
    st.sampled_from([6, 17, 1, 58, 0, 132, 255]),
)


@given(
    st.lists(st.tuples(EXPRESSIONS, st.booleans()), max_size=6), st.lists(PACKETS, min_size=20, max_size=60)
)
@settings(max_examples=600, deadline=None)
def test_tables_agree_with_the_reference(chosen: list[tuple[str, bool]], packets: list[Tuple5]) -> None:
    # Precedences descend in the list, so that the order is the tables' work.
    policies = [Rule(f"p{i}", 100 - i, text, on) for i, (text, on) in enumerate(chosen)]
    try:
        tables = compile_tables(policies)
    except TooManyRulesError:
        return
    check_shape(tables)
    ordered = in_order(policies)
    for packet in packets:
        index = tables.decide(packet)
        assert (None if index is None else ordered[index]) == decide(policies, packet), packet


@given(EXPRESSIONS, st.lists(PACKETS, min_size=20, max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_policy_and_its_negation_share_all_packets(text: str, packets: list[Tuple5]) -> None:
    if not text:
        return
    tables = compile_tables(rules(text, f"not ({text})"))
    for packet in packets:
        assert tables.decide(packet) == (0 if matches(parse(text), packet) else 1)


def check_shape(tables: MatchTables) -> None:
    """What the kernel side relies on."""
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
    assert tables.decide(Tuple5(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 1, 80, 6)) is None


@pytest.mark.parametrize(("source", "destination"), [("10.0.0.1", "192.0.2.1"), ("fd00::1", "2001:db8::1")])
def test_first_match_in_ascending_precedence(source: str, destination: str) -> None:
    packet = Tuple5(ip_address(source), ip_address(destination), 40000, 443, 6)
    policies = [
        Rule("late", 30, f"net.dst.ip == {destination}"),
        Rule("off", 1, "", enabled=False),
        Rule("other", 10, "net.dst.port == 80"),
        Rule("early", 20, f'net.src.ip == {source} and net.protocol == "tcp"'),
    ]
    found = decide(policies, packet)
    assert found is not None and found.name == "early"
    index = compile_tables(policies).decide(packet)
    # The index counts all policies, the disabled one too.
    assert index == 2 and in_order(policies)[index].name == "early"
    assert decide([replace(policy, enabled=False) for policy in policies], packet) is None


@pytest.mark.parametrize("network", ["::/0", "::/80", "::fffe:0:0/95"])
def test_no_ipv6_prefix_matches_ipv4(network: str) -> None:
    packet = Tuple5(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 1, 80, 6)
    assert compile_tables(rules(f"net.dst.ip in {{{network}}}")).decide(packet) is None
    assert compile_tables(rules(f"net.dst.ip not in {{{network}}}")).decide(packet) == 0


def test_icmp_has_port_zero() -> None:
    packet = Tuple5(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 0, 0, 1)
    tables = compile_tables(rules("net.dst.port in {1..65535}", "net.dst.port == 0"))
    assert tables.decide(packet) == 1


def test_several_rules_are_one_policy() -> None:
    tables = compile_tables(rules("net.src.ip == 10.0.0.1 or net.dst.ip == 10.0.0.2", "net.dst.port == 80"))
    assert tables.rules == (0, 0, 1)


def test_too_many_rules_name_the_policies_that_need_most() -> None:
    pairs = " or ".join(f"net.src.ip == 10.0.{i}.1 and net.dst.ip == 10.1.{i}.1" for i in range(97))
    policies = [*rules(*[""] * (MAX_RULES - 96)), Rule("greedy", 10**6, pairs)]
    with pytest.raises(TooManyRulesError, match=r"4,097 rules, 4,096 at most; most are needed by: greedy 97"):
        compile_tables(policies)
    tables = compile_tables(policies[1:])
    check_shape(tables)
    assert len(tables.rules) == MAX_RULES


def test_unreachable_policies_are_named() -> None:
    assert unreachable(rules("net.dst.port == 1", "net.dst.port == 1 and net.dst.port == 2")) == ["p1"]


def mixed(count: int) -> list[Rule]:
    kinds = [
        'net.dst.ip in {{10.{hi}.{lo}.0/24 2001:db8:{i:x}::/48}} and net.protocol == "tcp"',
        "net.dst.port in {{{i} {i}..{j}}}",
        "net.src.ip in {{10.{hi}.{lo}.0/24}} and net.dst.ip not in {{2001:db8:{i:x}::/48}}",
        "not (net.dst.ip == 198.51.{hi}.{lo} or net.dst.port == 443) and net.src.ip == 10.1.{hi}.{lo}",
        "net.src.ip in {{10.2.{hi}.1..10.2.{hi}.{lo}}} and net.dst.port != 25",
    ]
    return [
        Rule(f"p{i}", i, kinds[i % len(kinds)].format(i=i, j=i + 9, hi=i >> 8, lo=(i & 255) or 1))
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "seconds"), [(1000, 0.3), (4000, 1.5)])
def test_compiling_is_fast(count: int, seconds: float) -> None:
    policies = mixed(count)
    for policy in policies:
        parse(policy.traffic)
    rules_of.cache_clear()
    best = min(timed(policies) for _ in range(3))
    assert best < seconds, best


def timed(policies: list[Rule]) -> float:
    rules_of.cache_clear()
    started = time.perf_counter()
    compile_tables(policies)
    return time.perf_counter() - started


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
    assert members(sets.both_addresses(one, two)) == members(one) & members(two)
    assert members(sets.any_addresses(one, two)) == members(one) | members(two)
    assert members(sets.not_addresses(one)) == everything - members(one)


def compile_trie(entries: sets.AddressSet):  # type: ignore[no-untyped-def]
    def look_up(address: IPv4Address | IPv6Address) -> bool:
        own = (address.version, int(address), address.max_prefixlen)
        return max((entry for entry in entries if sets.covers(entry[0], own)), key=lambda entry: entry[0][2])[
            1
        ]

    return look_up
