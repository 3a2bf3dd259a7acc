"""Random policies of every selector, and connections near the edges of their networks and ranges.

``chance`` is a random.Random: a seeded one for millions of comparisons, hypothesis's own for shrinking.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise

from enforcer.policy.facts import NOTHING, Connection, Facts, host_facts, region_facts, saml

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Rule:
    """A policy, with the attributes that the language reads."""

    name: str
    precedence: int
    traffic: str = ""
    enabled: bool = True
    identity: str = ""
    device_posture: str = ""


# Close together, so that random expressions overlap, nest and miss by one. Destinations are routed outside.
SOURCES = [
    *("10.0.0.0/8", "10.1.0.0/24", "10.1.0.128/25", "10.1.0.1", "10.1.1.0/24", "0.0.0.0/0"),
    *("fd00::/8", "fd01::/64", "fd01:0:0:0:8000::/65", "fd01::1", "fd01:0:0:1::/64", "::/0"),
    *("10.1.0.3..10.1.0.9", "223.255.255.255"),
]
DESTINATIONS = [
    *("198.18.0.0/15", "198.18.1.0/24", "198.18.1.128/25", "198.18.1.10", "198.18.2.0/24", "0.0.0.0/0"),
    *("2001:db8::/32", "2001:db8:a1::/64", "2001:db8:a1:0:8000::/65", "2001:db8:a1::10", "2001:db8:a2::/48"),
    *("::/0", "198.18.1.3..198.18.1.9", "2001:db8:a1::3..2001:db8:a1::9", "::/16", "8000::/1"),
]
PRIVATE = ["198.18.1.0/28", "198.18.2.0/23", "2001:db8:a1::/80", "2001:db8:a2:5::/64", "198.18.0.0/16"]
PORTS = ["0", "1", "53", "80", "80..90", "81", "443", "0..79", "91..65535", "65535", "1024..65535"]
PORT_EDGES = [0, 1, 2, 52, 53, 54, 79, 80, 81, 90, 91, 443, 1023, 1024, 65534, 65535]
PROTOCOLS = ["tcp", "udp", "icmp"]
COUNTRIES = ["DE", "FR", "US"]
CONTINENTS = ["EU", "NA"]
EMAILS = ["ann@example.com", "bob@example.com", "eve@example.net"]
NAMES = ["Ann", "Bob"]
GROUPS = ["staff", "admins", "guests"]
CHECKS = ["disk", "firewall"]
NETWORKS = ["vnet-a", "vnet-b"]
ENDPOINTS = ["a.proxy.example", "b.proxy.example"]
DEPARTMENTS = ["sales", "it"]
HOSTS = ["www.example.com", "example.com", "api.example.org", "example.org"]
DOMAINS = ["example.com", "example.org", "com", "www.example.com"]

_SINGLE_TEXTS = [
    ("net.src.geo.country", COUNTRIES),
    ("net.src.geo.continent", CONTINENTS),
    ("net.dst.geo.country", COUNTRIES),
    ("net.dst.geo.continent", CONTINENTS),
    ("net.vnet_id", NETWORKS),
    ("proxy.endpoint", ENDPOINTS),
    ("identity.email", EMAILS),
    ("identity.name", NAMES),
    ('identity.saml_attributes["dept"]', DEPARTMENTS),
    ("net.fqdn.host", HOSTS),
]
_LIST_TEXTS = [
    ("identity.groups[*].id", GROUPS),
    ("identity.groups[*].name", GROUPS),
    ("identity.groups[*].email", GROUPS),
    ("device_posture.checks.passed[*]", CHECKS),
    ("net.fqdn.domains[*]", DOMAINS),
]
_PATTERNS = {
    "identity.email": ["^ann@", r"@example\\.com$", "b|e"],
    "identity.name": ["^A"],
    "identity.groups[*].name": ["^s", "s$"],
    "net.fqdn.host": ["^www", r"example\\.(com|org)$"],
    "net.fqdn.domains[*]": [r"^example\\.c"],
}


def comparison(chance: random.Random) -> str:
    """One comparison of any field."""
    kind = chance.randrange(10)
    if kind < 6:
        return _packet_comparison(chance)
    if kind < 8:
        name, values = chance.choice(_SINGLE_TEXTS)
        return f"{name} {_text_test(chance, name, values)}"
    name, values = chance.choice(_LIST_TEXTS)
    return f"{chance.choice(['any', 'any', 'all'])}({name} {_text_test(chance, name, values)})"


def _text_test(chance: random.Random, name: str, values: list[str]) -> str:
    if name in _PATTERNS and chance.random() < 0.3:
        return f'{chance.choice(["matches", "~"])} "{chance.choice(_PATTERNS[name])}"'
    if chance.random() < 0.4:
        return f'{chance.choice(["==", "!="])} "{chance.choice(values)}"'
    several = " ".join(f'"{value}"' for value in chance.choices(values, k=chance.randrange(1, 4)))
    return f"{chance.choice(['in', 'in', 'not in'])} {{{several}}}"


def _packet_comparison(chance: random.Random) -> str:
    name, values = chance.choice(
        [
            ("net.src.ip", SOURCES),
            ("net.dst.ip", DESTINATIONS),
            ("net.dst.port", PORTS),
            ("net.src.port", PORTS),
            ("net.protocol", [f'"{name}"' for name in PROTOCOLS]),
        ]
    )
    single = [value for value in values if ".." not in value and "/" not in value]
    if name.endswith("port") and chance.random() < 0.3:
        return f"{name} {chance.choice(['<', '<=', '>', '>='])} {chance.choice(single)}"
    if chance.random() < 0.4:
        return f"{name} {chance.choice(['==', '!='])} {chance.choice(single)}"
    several = " ".join(chance.choices(values, k=chance.randrange(1, 5)))
    return f"{name} {chance.choice(['in', 'in', 'not in'])} {{{several}}}"


def expression(chance: random.Random, leaves: int) -> str:
    """An expression of at most ``leaves`` comparisons."""
    if leaves == 1 or chance.random() < 0.2:
        return comparison(chance)
    left = chance.randrange(1, leaves)
    sign = chance.choice(["and", "and", "and", "or", "or", "xor"])
    whole = f" {sign} ".join((expression(chance, left), expression(chance, leaves - left)))
    return f"not ({whole})" if chance.random() < 0.2 else f"({whole})"


def policy(chance: random.Random, index: int, precedence: int) -> Rule:
    """A policy of one to three expressions."""
    texts = [expression(chance, chance.randrange(1, 6))]
    for _ in range(2):
        texts.append(expression(chance, chance.randrange(1, 3)) if chance.random() < 0.2 else "")
    return Rule(f"p{index}", precedence, texts[0], chance.random() < 0.9, texts[1], texts[2])


def edges(texts: list[str], extra: list[str]) -> dict[int, list[Address]]:
    """The first and last addresses of networks and ranges and the addresses beside them, by family."""
    found: dict[int, set[int]] = {4: set(), 6: set()}
    for text in extra:
        found[ip_address(text).version].add(int(ip_address(text)))
    for text in texts:
        for end in text.split(".."):
            network = ip_network(end)
            for address in (network.network_address, network.broadcast_address):
                found[network.version] |= {int(address) - 1, int(address), int(address) + 1}
    return {
        4: [IPv4Address(value) for value in sorted(found[4]) if 1 << 24 <= value < 224 << 24],
        # Neither mapped IPv4 nor, in the last 1/128, link-local or multicast.
        6: [IPv6Address(value) for value in sorted(found[6]) if 1 << 48 <= value < 0xFE << 120],
    }


SOURCE_EDGES = edges(SOURCES, ["172.16.0.1", "fdff::1"])
DESTINATION_EDGES = edges(DESTINATIONS + PRIVATE, ["1.0.0.0", "8.8.8.8", "2000::", "3fff::1"])
DESTINATION_EDGES[6] = [
    address
    for address in DESTINATION_EDGES[6]
    if address in ip_network("2000::/3") or address in ip_network("::/16")
]


def session(chance: random.Random) -> Facts:
    """Random facts of a client with a session."""
    members = [chance.choice(GROUPS) for _ in range(chance.randrange(3))]
    facts: dict[str, tuple[str, ...]] = {
        "identity.groups.id": tuple(members),
        "identity.groups.name": tuple(members[:1]),
        "identity.groups.email": tuple(members[1:]),
        "device_posture.checks.passed": tuple(check for check in CHECKS if chance.random() < 0.5),
    }
    for name, values in (
        ("identity.email", EMAILS),
        ("identity.name", NAMES),
        ("net.vnet_id", NETWORKS),
        ("proxy.endpoint", ENDPOINTS),
    ):
        if chance.random() < 0.7:
            facts[name] = (chance.choice(values),)
    if chance.random() < 0.5:
        facts[saml("dept")] = tuple(chance.sample(DEPARTMENTS, chance.randrange(1, 3)))
    return facts


@dataclass
class World:
    """The facts of addresses: sessions of clients, regions and host names."""

    sessions: dict[Address, Facts] = field(default_factory=dict)
    regions: list[tuple[str | None, str | None]] = field(default_factory=list)
    """Distinct regions."""
    networks: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """By family, disjoint ranges of addresses as numbers: first, past the last, index of the region."""
    names: dict[Address, tuple[str, ...]] = field(default_factory=dict)

    def region(self, address: Address) -> tuple[str | None, str | None]:
        """The region of an address: country and continent."""
        for first, past, index in self.networks.get(address.version, ()):
            if first <= int(address) < past:
                return self.regions[index]
        return None, None

    def connection(self, packet: Connection) -> Connection:
        """The packet with all facts about it."""
        return packet._replace(
            source_region=region_facts("src", *self.region(packet.src)),
            destination_region=region_facts("dst", *self.region(packet.dst)),
            client=self.sessions.get(packet.src, NOTHING),
            hosts=tuple(host_facts(name) for name in self.names.get(packet.dst, ())),
        )


def world(chance: random.Random) -> World:
    """A random world: half of the clients have a session, a third of the destinations one or two names."""
    made = World(regions=[("DE", "EU"), ("FR", "EU"), ("US", "NA"), (None, "EU"), ("US", None)])
    for family in (4, 6):
        for address in SOURCE_EDGES[family]:
            if chance.random() < 0.5:
                made.sessions[address] = session(chance)
        for address in DESTINATION_EDGES[family]:
            if chance.random() < 0.35:
                made.names[address] = tuple(chance.sample(HOSTS, chance.randrange(1, 3)))
        bounds = sorted({int(address) for address in (*SOURCE_EDGES[family], *DESTINATION_EDGES[family])})
        cuts = sorted(chance.sample(bounds, 12))
        made.networks[family] = [
            (first, past, chance.randrange(len(made.regions)))
            for first, past in pairwise(cuts)
            if chance.random() < 0.7
        ]
    return made


def packet(chance: random.Random) -> Connection:
    """A connection near the edges, without facts."""
    family = chance.choice((4, 6))
    protocol = chance.choice((6, 6, 6, 17, 17, 17, 1, 58, 132))
    return Connection(
        chance.choice(SOURCE_EDGES[family]),
        chance.choice(DESTINATION_EDGES[family]),
        chance.choice((40000, *PORT_EDGES)),
        chance.choice(PORT_EDGES),
        protocol,
    )
