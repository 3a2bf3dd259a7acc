"""The contents of policy banks, compared with brute-force searches."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_network

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from enforcer.address import mapped
from enforcer.datapath.banks import RULES, rule_sets, with_private

WORDS = RULES // 64
SET = np.dtype([("summary", "<u8", WORDS // 64), ("words", "<u8", WORDS)])

# Few bits, so that prefixes nest.
SMALL = st.builds(
    lambda value, length: IPv6Network((value << 120, length), strict=False),
    st.integers(0, 255),
    st.integers(0, 8),
)


def longest(entries: list[tuple[IPv6Network, int]], where: IPv6Address) -> int | None:
    covering = [(network.prefixlen, number) for network, number in entries if where in network]
    return max(covering)[1] if covering else None


@given(st.dictionaries(SMALL, st.integers(1, 9), max_size=12), st.lists(SMALL, max_size=8))
def test_one_look_up_finds_both(sets: dict[IPv6Network, int], private: list[IPv6Network]) -> None:
    root = IPv6Network("::/0")
    destination = [(root, 0), *((network, number) for network, number in sets.items() if network != root)]
    merged = with_private(destination, private)
    assert len({network for network, _, _ in merged}) == len(merged)
    numbers = [(network, number) for network, number, _ in merged]
    flags = [(network, flag) for network, _, flag in merged]
    for value in range(256):
        where = IPv6Address(value << 120)
        assert longest(numbers, where) == longest(destination, where)
        assert longest(flags, where) == int(any(where in network for network in private))


def test_private_ipv4_networks_lie_among_mapped_prefixes() -> None:
    destination = [(IPv6Network("::/0"), 1), (IPv6Network("::ffff:0:0/96"), 2)]
    merged = with_private(destination, [ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    assert merged == [
        (IPv6Network("::/0"), 1, 0),
        (IPv6Network("::ffff:0:0/96"), 2, 0),
        (mapped(ip_network("10.0.0.0/8")), 2, 1),
        (IPv6Network("fd00::/8"), 1, 1),
    ]


def test_a_private_network_of_ipv6_holds_no_ipv4() -> None:
    """Also if its prefix covers ::ffff:0:0/96, the mapped IPv4 addresses."""
    destination = [(IPv6Network("::/0"), 1), (IPv6Network("::ffff:0:0/96"), 2)]
    for network in ("::/0", "::/16"):
        merged = {prefix: flag for prefix, _, flag in with_private(destination, [ip_network(network)])}
        assert merged == {IPv6Network("::ffff:0:0/96"): 0, IPv6Network("::/0"): int(network == "::/0")} | {
            IPv6Network(network): 1
        }
    everything = [ip_network("::/0"), ip_network("0.0.0.0/0")]
    assert {flag for _, _, flag in with_private(destination, everything)} == {1}


def test_a_prefix_within_a_private_network_keeps_its_set() -> None:
    destination = [(IPv6Network("::/0"), 1), (IPv6Network("fd00::/16"), 2)]
    merged = {network: rest for network, *rest in with_private(destination, [IPv6Network("fd00::/8")])}
    assert merged[IPv6Network("fd00::/16")] == [2, 1]
    assert merged[IPv6Network("fd00::/8")] == [1, 1]


@given(st.lists(st.sets(st.integers(0, RULES - 1), max_size=20), max_size=6))
def test_bit_sets(sets: list[set[int]]) -> None:
    rows = rule_sets([sum(1 << rule for rule in one) for one in sets], SET)
    assert len(rows) == len(sets)
    for row, one in zip(rows, sets, strict=True):
        bits = np.unpackbits(row["words"].view("u1"), bitorder="little")
        assert set(np.flatnonzero(bits).tolist()) == one
        used = {rule // 64 for rule in one}
        summary = int.from_bytes(row["summary"].tobytes(), "little")
        assert summary == sum(1 << word for word in used)


def test_the_full_set() -> None:
    (row,) = rule_sets([(1 << RULES) - 1], SET)
    assert (row["summary"] == 2**64 - 1).all() and (row["words"] == 2**64 - 1).all()
