"""Facts about the traffic that no packet carries: its clients' sessions, its origins' names, all regions.

Every other client has a session, and half of the origins have names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal

from bench.rig.generator import FIRST_CLIENT, FIRST_ORIGIN
from enforcer.address import IPAddress, IPNetwork, pack
from enforcer.facts.rows import ANY_CLIENT, COMMAND, LearntName, NewSession
from enforcer.facts.store import Store
from enforcer.policy.facts import NOTHING, Connection, Facts, host_facts, region_facts

COUNTRIES = (
    *("AR", "AT", "AU", "BE", "BR", "CA", "CH", "CL", "CN", "CZ", "DE", "DK", "ES", "FI", "FR", "GB", "GR"),
    *("IE", "IN", "IT", "JP", "KR", "MX", "NL", "NO", "NZ", "PL", "PT", "SE", "SG", "US", "ZA"),
)
CONTINENT = "EU"
CLIENTS = 64
ORIGINS = 256
_FOR_GOOD = 1e11
"""Unix seconds: the expiry of a name that is valid for the whole benchmark."""


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
    """A domain that contains several hosts."""
    return f"site-{number}.example"


def host(number: int) -> str:
    """An origin's name."""
    return f"www-{number}.{site(number % 50)}"


def session(number: int) -> Facts:
    """The session's facts of client ``number``, from 1."""
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


def _has_session(client: int) -> bool:
    return client % 2 == 1


def _names(origin: int) -> Iterator[tuple[int | None, str]]:
    """The names of origin ``origin``, from 1, each with the client that received it; None: any client."""
    if origin % 2:
        yield None, host(origin)
    if origin % 8 == 1:
        yield from ((None, host(origin + shift)) for shift in (300, 600))
        yield from ((client, host(origin + 1)) for client in range(1, 9))


def remember(store: Store) -> None:
    """Puts sessions and names into a gateway's store; the next switch of policies puts them in force."""
    sessions, names = [], []
    for family in (4, 6):
        first_client, first_origin = (
            ip_address(FIRST_CLIENT[family]) - 1,
            ip_address(FIRST_ORIGIN[family]) - 1,
        )
        for number in filter(_has_session, range(1, CLIENTS + 1)):
            sessions.append(NewSession(pack(first_client + number), session(number), None))
        for number in range(1, ORIGINS + 1):
            for client, name in _names(number):
                who = ANY_CLIENT if client is None else pack(first_client + client)
                names.append(LearntName(who, pack(first_origin + number), name, _FOR_GOOD))
    with store.transaction() as transaction:
        transaction.put_sessions(sessions, COMMAND)
        transaction.learn(names)


@cache
def traffic_regions() -> tuple[tuple[IPNetwork, str], ...]:
    """Networks of 8 clients and of 16 origins, each in a country; one in four is in no country."""
    chance = random.Random(1)
    found: list[tuple[IPNetwork, str]] = []
    for first, count, each in ((FIRST_CLIENT, CLIENTS + 1, 3), (FIRST_ORIGIN, ORIGINS + 1, 4)):
        for start in range(0, count, 1 << each):
            if chance.random() < 0.75:
                code = chance.choice(COUNTRIES)
                for family, bits in ((4, 32), (6, 128)):
                    network = ip_network(f"{ip_address(first[family]) - 1 + start}/{bits - each}")
                    found.append((network, code))
    return tuple(found)


def write_regions(path: Path, prefixes: int = 0) -> Path:
    """Writes a database of the traffic's regions and of ``prefixes`` other prefixes that cannot be merged."""
    from mmdb_writer import MMDBWriter, SearchTreeLeaf  # an extra that installed gateways do not have

    leaves = {
        code: SearchTreeLeaf({"country": {"iso_code": code}, "continent": {"code": CONTINENT}})
        for code in COUNTRIES
    }
    writer = MMDBWriter(6, "GeoLite2-Country", ipv4_compatible=True)
    for network, code in traffic_regions():
        _insert(writer.tree, network, leaves[code])
    for network, code in _elsewhere(prefixes):
        _insert(writer.tree, network, leaves[code])
    writer.to_db_file(str(path))
    return path


def _elsewhere(count: int) -> Iterator[tuple[IPNetwork, str]]:
    """Prefixes outside the traffic; seven of ten are IPv4, as in GeoLite2."""
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


def _insert(tree: Any, network: IPNetwork, leaf: Any) -> None:
    """Inserts a prefix that overlaps no other one; MMDBWriter.insert_network takes ten times as long."""
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


def connection(src: IPAddress, dst: IPAddress, port: int, protocol: int) -> Connection:
    """One of the traffic's connections to port 8000 as policies see it, with all its facts."""
    family = src.version
    client = int(src) - int(ip_address(FIRST_CLIENT[family])) + 1
    origin = int(dst) - int(ip_address(FIRST_ORIGIN[family])) + 1
    names = [name for who, name in _names(origin) if who == client] or [
        name for who, name in _names(origin) if who is None
    ]
    return Connection(
        src,
        dst,
        port,
        8000,
        protocol,
        _region("src", src),
        _region("dst", dst),
        session(client) if _has_session(client) else NOTHING,
        tuple(host_facts(name) for name in names),
    )


def _region(side: Literal["src", "dst"], address: IPAddress) -> Facts:
    for network, code in traffic_regions():
        if address in network:
            return region_facts(side, code, CONTINENT)
    return NOTHING
