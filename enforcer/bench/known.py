"""What no packet carries: sessions of the traffic's clients, names of its origins, and where they all lie.

Every other client has a session, and half of the origins have names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from enforcer.bench.generator import FIRST_CLIENT, FIRST_ORIGIN
from enforcer.datapath.address import pack
from enforcer.facts.rows import ANYBODY, COMMAND, Learnt, NewSession
from enforcer.facts.store import Store
from enforcer.policy.facts import Facts

COUNTRIES = (
    *("AR", "AT", "AU", "BE", "BR", "CA", "CH", "CL", "CN", "CZ", "DE", "DK", "ES", "FI", "FR", "GB", "GR"),
    *("IE", "IN", "IT", "JP", "KR", "MX", "NL", "NO", "NZ", "PL", "PT", "SE", "SG", "US", "ZA"),
)
CLIENTS = 64
ORIGINS = 256
_FOR_GOOD = 1e11
"""Unix seconds: a name that does not expire while a benchmark runs."""


def user(number: int) -> str:
    """A client's e-mail address."""
    return f"user-{number}@example.com"


def team(number: int) -> str:
    """A group's name."""
    return f"team-{number}"


def check(number: int) -> str:
    """A posture check."""
    return f"check-{number}"


def vnet(number: int) -> str:
    """A virtual network."""
    return f"vnet-{number}"


def endpoint(number: int) -> str:
    """A proxy endpoint."""
    return f"{number}.proxy.example.com"


def site(number: int) -> str:
    """A domain that several hosts lie in."""
    return f"site-{number}.example"


def host(number: int) -> str:
    """An origin's name."""
    return f"www-{number}.{site(number % 50)}"


def session(number: int) -> Facts:
    """The facts of client ``number``, from 1."""
    return {
        "identity.email": (user(number),),
        "identity.name": (f"User {number}",),
        "identity.groups.id": (),
        "identity.groups.name": (team(0), team(number % 40), team(100 + number % 10)),
        "identity.groups.email": (),
        "device_posture.checks.passed": (check(number % 20), check(number % 7)),
        "net.vnet_id": (vnet(number % 10),),
        "proxy.endpoint": (endpoint(number % 10),),
    }


def _numbered(first: str, count: int) -> Iterator[tuple[int, bytes]]:
    start = ip_address(first)
    return ((number + 1, pack(start + number)) for number in range(count))


def remember(store: Store) -> None:
    """Puts sessions and names into a gateway's store; they are in force with the next switch of policies."""
    sessions, names = [], []
    for family in (4, 6):
        clients = list(_numbered(FIRST_CLIENT[family], CLIENTS))
        sessions += [NewSession(client, session(number), None) for number, client in clients if number % 2]
        for number, origin in _numbered(FIRST_ORIGIN[family], ORIGINS):
            if number % 2:
                names.append(Learnt(ANYBODY, origin, host(number), _FOR_GOOD))
            if number % 8 == 1:
                names += [Learnt(ANYBODY, origin, host(number + shift), _FOR_GOOD) for shift in (300, 600)]
                names += [Learnt(client, origin, host(number + 1), _FOR_GOOD) for _, client in clients[:8]]
    with store.change() as change:
        change.put_sessions(sessions, COMMAND)
        change.learn(names)


def traffic_places() -> Iterator[tuple[IPv4Network | IPv6Network, str]]:
    """Networks of 8 clients and of 16 origins, each in a country; every fourth is in none."""
    chance = random.Random(1)
    for first, count, each in ((FIRST_CLIENT, CLIENTS + 1, 3), (FIRST_ORIGIN, ORIGINS + 1, 4)):
        for start in range(0, count, 1 << each):
            if chance.random() < 0.75:
                code = chance.choice(COUNTRIES)
                for family, bits in ((4, 32), (6, 128)):
                    network = ip_network(f"{ip_address(first[family]) - 1 + start}/{bits - each}")
                    yield network, code


def write_places(path: Path, prefixes: int = 0) -> Path:
    """A database of the traffic's places, and of so many other prefixes, no two of which can be joined."""
    from mmdb_writer import MMDBWriter, SearchTreeLeaf  # an extra that installed gateways do without

    leaves = {
        code: SearchTreeLeaf({"country": {"iso_code": code}, "continent": {"code": "EU"}})
        for code in COUNTRIES
    }
    writer = MMDBWriter(6, "GeoLite2-Country", ipv4_compatible=True)
    for network, code in traffic_places():
        _insert(writer.tree, network, leaves[code])
    for network, code in _elsewhere(prefixes):
        _insert(writer.tree, network, leaves[code])
    writer.to_db_file(str(path))
    return path


def _elsewhere(count: int) -> Iterator[tuple[IPv4Network | IPv6Network, str]]:
    """Seven of ten are IPv4, as they are in GeoLite2."""
    chance = random.Random(2)
    four = count * 7 // 10
    codes = _no_neighbours(chance, COUNTRIES)
    for index in range(four):
        yield IPv4Network(((32 << 24) + (index << 12), 20)), next(codes)
    for index in range(count - four):
        yield IPv6Network(((0x2A000000 << 96) + (index << 88), 40)), next(codes)


def _no_neighbours(chance: random.Random, values: Sequence[str]) -> Iterator[str]:
    last = ""
    while True:
        last = chance.choice([value for value in values if value != last])
        yield last


def _insert(tree: Any, network: IPv4Network | IPv6Network, leaf: Any) -> None:
    """One prefix of those that don't overlap; MMDBWriter.insert_network takes ten times as long."""
    from mmdb_writer import SearchTreeNode

    value, length = int(network.network_address), network.prefixlen + (96 if network.version == 4 else 0)
    node = tree
    for depth in range(length - 1):
        side = value >> (127 - depth) & 1
        child = node[side]
        if not isinstance(child, SearchTreeNode):
            child = node[side] = SearchTreeNode(child, child)
        node = child
    node[value >> (128 - length) & 1] = leaf
