"""The loaded program decides as the reference evaluator does: random policies, tuples near their edges."""

from __future__ import annotations

import os
import random
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

import numpy as np
import pytest

from enforcer.datapath import banks
from enforcer.datapath.address import IPAddress, IPNetwork
from enforcer.datapath.banks import NO_SLOT, Action
from enforcer.datapath.reasons import reasons
from enforcer.policy.reference import Tuple5, decide, in_order
from enforcer.policy.rules import MAX_RULES, TooManyRulesError
from enforcer.policy.tables import MatchTables, compile_tables

from .box import MAC, Box

SECONDS = float(os.environ.get("CLASSIFY_SECONDS", "25"))
SEED = int(os.environ.get("CLASSIFY_SEED", "0")) or random.SystemRandom().getrandbits(32)
TUPLES = 2000  # for each set of policies


@dataclass(frozen=True)
class Rule:
    name: str
    precedence: int
    traffic: str
    enabled: bool = True


class Verdict(NamedTuple):
    reason: str
    slot: int
    policy: int


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
PROTOCOLS = ['"tcp"', '"udp"', '"icmp"']


FIELDS = [
    ("net.src.ip", SOURCES),
    ("net.dst.ip", DESTINATIONS),
    ("net.dst.port", PORTS),
    ("net.protocol", PROTOCOLS),
]


def edges(texts: list[str], extra: list[str]) -> dict[int, list[IPAddress]]:
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


def comparison(chance: random.Random) -> str:
    field, values = chance.choice(
        [
            ("net.src.ip", SOURCES),
            ("net.dst.ip", DESTINATIONS),
            ("net.dst.port", PORTS),
            ("net.protocol", PROTOCOLS),
        ]
    )
    if chance.random() < 0.4:
        single = chance.choice([value for value in values if ".." not in value and "/" not in value])
        return f"{field} {chance.choice(['==', '!='])} {single}"
    several = " ".join(chance.choices(values, k=chance.randrange(1, 5)))
    return f"{field} {chance.choice(['in', 'in', 'not in'])} {{{several}}}"


def expression(chance: random.Random, leaves: int) -> str:
    if leaves == 1 or chance.random() < 0.2:
        return comparison(chance)
    left = chance.randrange(1, leaves)
    joined = f" {chance.choice(['and', 'and', 'or'])} ".join(
        (expression(chance, left), expression(chance, leaves - left))
    )
    return f"not ({joined})" if chance.random() < 0.2 else f"({joined})"


class Classifier:
    """Policies in the kernel without a configuration file: banks are written and switched here."""

    def __init__(self, box: Box):
        self.box = box
        self.program = box.program("explain")
        self.heads = {
            4: bytes.fromhex(MAC["in0"].replace(":", "")) + bytes(6) + b"\x08\x00",
            6: bytes.fromhex(MAC["in0"].replace(":", "")) + bytes(6) + b"\x86\xdd",
        }
        self.names = {number: reason.name for number, reason in reasons().items()}

    def write(self, bank: int, tables: MatchTables, actions: list[Action], private: list[IPNetwork]) -> None:
        banks.write(self.box.maps, bank, tables, actions, private)

    def switch(self, bank: int) -> None:
        row = self.box.maps.settings.get(0)
        assert row is not None
        row["bank"] = bank
        self.box.maps.settings.put(0, row)

    def put(self, tables: MatchTables, actions: list[Action], private: list[IPNetwork]) -> None:
        row = self.box.maps.settings.get(0)
        assert row is not None
        bank = 1 - int(row["bank"])
        self.write(bank, tables, actions, private)
        self.switch(bank)

    def ask(self, packet: Tuple5) -> Verdict:
        body = struct.pack(">HHIIBBHHH", packet.src_port, packet.dst_port, 1, 0, 0x50, 2, 100, 0, 0)
        if packet.protocol == 17:
            body = struct.pack(">HHHH", packet.src_port, packet.dst_port, 20, 0) + bytes(12)
        if packet.src.version == 4:
            head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, packet.protocol, 0)
        else:
            head = struct.pack(">IHBB", 6 << 28, 20, packet.protocol, 64)
        frame = self.heads[packet.src.version] + head + packet.src.packed + packet.dst.packed + body
        self.program(frame)
        reason, slot, policy = struct.unpack("=III", self.program.head(12))
        return Verdict(self.names[reason], slot, policy)


@pytest.fixture
def classifier(box: Box) -> Classifier:
    return Classifier(box)


def expected(
    policies: list[Rule],
    actions: dict[str, Action],
    private: list[IPNetwork],
    available: set[int],
    packet: Tuple5,
) -> Verdict | None:
    """What the configuration's description says; None: the nearest egress, whichever it is."""
    family = packet.src.version == 6
    if packet.protocol == (58 if family else 1):
        return Verdict("icmp", 0, 0)
    if packet.protocol not in (6, 17):
        return Verdict("protocol", 0, 0)
    if packet.dst_port == 53:
        return Verdict("dns", 0, 0)
    if any(packet.dst in network for network in private):
        return Verdict("tunnel", 0, 0)
    policy = decide(policies, packet)
    if policy is None:
        return None
    number, primary, fallback = actions[policy.name]
    if primary[family] == 0:
        return Verdict("default", 0, number)
    if primary[family] in available:
        return Verdict("policy", primary[family], number)
    if fallback[family] == 0:
        return Verdict("fallback-shared", 0, number)
    if fallback[family] in available:
        return Verdict("fallback", fallback[family], number)
    return Verdict("unavailable", fallback[family], number)


def random_actions(chance: random.Random, box: Box, policies: list[Rule]) -> dict[str, Action]:
    slots = [box.slot(name) for name in ("lax-1", "lax-2", "nyc-1")]
    actions = {}
    for index, policy in enumerate(in_order(policies)):
        primary = tuple(chance.choice([0, *slots]) for _ in range(2))
        fallback = tuple(chance.choice([0, NO_SLOT, *slots]) if slot else NO_SLOT for slot in primary)
        actions[policy.name] = Action(index + 1, primary, fallback)  # type: ignore[arg-type]
    return actions


def random_tuple(chance: random.Random) -> Tuple5:
    family = chance.choice((4, 6))
    protocol = chance.choice((6, 6, 6, 17, 17, 17, 1, 58, 132))
    return Tuple5(
        chance.choice(SOURCE_EDGES[family]),
        chance.choice(DESTINATION_EDGES[family]),
        40000,
        chance.choice(PORT_EDGES),
        protocol,
    )


@pytest.mark.slow
def test_kernel_and_reference_agree(box: Box, classifier: Classifier) -> None:
    chance = random.Random(SEED)
    available = {box.slot("lax-1"), box.slot("lax-2")}
    nearest: dict[IPAddress, int] = {}
    compared = sets = 0
    by_reason: dict[str, int] = {}
    began = time.monotonic()
    while time.monotonic() < began + SECONDS:
        count = chance.choice((0, 1, 1, 2, 4, 6, 10))
        policies = [
            Rule(f"p{i}", 1000 - i, expression(chance, chance.randrange(1, 7)), chance.random() < 0.9)
            for i in range(count)
        ]
        actions = random_actions(chance, box, policies)
        private = [ip_network(text) for text in chance.sample(PRIVATE, chance.randrange(3))]
        try:
            tables = compile_tables(policies)
        except TooManyRulesError:
            continue
        classifier.put(tables, [actions[policy.name] for policy in in_order(policies)], private)
        sets += 1
        for _ in range(TUPLES):
            packet = random_tuple(chance)
            said = classifier.ask(packet)
            wanted = expected(policies, actions, private, available, packet)
            if wanted is None:
                slot = nearest.setdefault(packet.src, said.slot)
                assert slot in available
                wanted = Verdict("nearest", slot, 0)
            assert said[0] == wanted[0] and said[2] == wanted[2], (
                SEED,
                packet,
                policies,
                private,
                said,
                wanted,
            )
            assert said[1] == wanted[1] or said[0] == "unavailable", (SEED, packet, policies, said, wanted)
            by_reason[said[0]] = by_reason.get(said[0], 0) + 1
            compared += 1
    print(f"\nseed {SEED}: {compared:,} tuples compared under {sets} sets of policies, {by_reason}")
    assert len(by_reason) == 10


def test_no_policies(classifier: Classifier) -> None:
    classifier.put(compile_tables([]), [], [])
    for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
        packet = Tuple5(ip_address(source), ip_address(destination), 1, 443, 6)
        assert classifier.ask(packet)[0] == "nearest"
        assert classifier.ask(packet._replace(dst_port=53))[0] == "dns"


def test_as_many_rules_as_fit(box: Box, classifier: Classifier) -> None:
    """Each of 4,096 rules is found where it is the first that matches, the last word's bits too."""
    policies = [Rule(f"p{i}", i, f"net.dst.port == {1000 + i}") for i in range(MAX_RULES - 1)]
    policies.append(Rule("last", 10**6, 'net.protocol == "udp"'))
    slots = box.slot("lax-1"), box.slot("lax-2")
    actions = [Action(i + 1, (slots[i % 2], slots[i % 2]), (NO_SLOT, NO_SLOT)) for i in range(MAX_RULES)]
    tables = compile_tables(policies)
    assert len(tables.rules) == MAX_RULES
    classifier.put(tables, actions, [])
    for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
        packet = Tuple5(ip_address(source), ip_address(destination), 1, 0, 17)
        for i in range(MAX_RULES - 1):
            said = classifier.ask(packet._replace(dst_port=1000 + i))
            assert said == ("policy", slots[i % 2], i + 1)
        assert classifier.ask(packet._replace(dst_port=80)) == ("policy", slots[1], MAX_RULES)
        assert classifier.ask(packet._replace(dst_port=80, protocol=6))[0] == "nearest"


@pytest.mark.parametrize("only", [0, 1, 62, 63, 64, 65, 127, 128, 2047, 2048, 4031, 4032, 4094, 4095])
def test_the_only_rule_of_many_that_matches(box: Box, classifier: Classifier, only: int) -> None:
    """All others match in three dimensions of four."""
    policies = [
        Rule(
            f"p{i}",
            i,
            f"net.dst.port == {443 if i == only else 444} and net.src.ip in {{10.1.0.0/16 fd01::/16}}",
        )
        for i in range(only + 1)
    ]
    actions = [Action(i + 1, (0, 0), (NO_SLOT, NO_SLOT)) for i in range(len(policies))]
    classifier.put(compile_tables(policies), actions, [])
    for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
        packet = Tuple5(ip_address(source), ip_address(destination), 1, 443, 6)
        assert classifier.ask(packet) == ("default", 0, only + 1)


def test_banks_switch_at_once(box: Box, classifier: Classifier) -> None:
    """While another process switches to and fro, every answer is wholly of one bank."""
    slot = box.slot("lax-2")
    row = box.maps.settings.get(0)
    assert row is not None
    bank = int(row["bank"])
    everything = compile_tables([Rule("all", 1, "")])
    some = compile_tables([Rule("none", 1, "net.dst.port == 1"), Rule("all", 2, 'net.protocol == "tcp"')])
    classifier.write(1 - bank, everything, [Action(1, (slot, slot), (NO_SLOT, NO_SLOT))], [])
    packet = Tuple5(ip_address("fd01::2"), ip_address("2001:db8:a1::10"), 1, 443, 6)
    classifier.switch(1 - bank)
    first = Verdict("policy", slot, 1)
    assert classifier.ask(packet) == first
    # Writing the other bank changes nothing yet.
    none = Action(1, (slot, slot), (NO_SLOT, NO_SLOT))
    classifier.write(bank, some, [none, Action(2, (0, 0), (NO_SLOT, NO_SLOT))], [])
    assert classifier.ask(packet) == first
    child = os.fork()
    if not child:
        for turn in range(20000):
            classifier.switch((bank, 1 - bank)[turn % 2])
        os._exit(0)
    found = set()
    while not os.waitpid(child, os.WNOHANG)[0]:
        found |= {classifier.ask(packet) for _ in range(200)}
    assert found == {first, Verdict("default", 0, 2)}


def test_proxied_protocols(box: Box, classifier: Classifier) -> None:
    classifier.put(compile_tables([Rule("all", 1, "")]), [Action(1, (0, 0), (NO_SLOT, NO_SLOT))], [])
    kept = box.maps.settings.get(0)
    assert kept is not None
    try:
        for field, protocol, reason in (("proxy_tcp", 6, "tcp-off"), ("proxy_udp", 17, "udp-off")):
            row = np.copy(kept)
            row[field] = 0
            box.maps.settings.put(0, row)
            for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
                packet = Tuple5(ip_address(source), ip_address(destination), 1, 443, protocol)
                assert classifier.ask(packet) == (reason, 0, 0)
                assert classifier.ask(packet._replace(protocol=23 - protocol))[0] == "default"
    finally:
        box.maps.settings.put(0, kept)


def test_nothing_is_decided_before_the_tables_are_filled(box: Box, classifier: Classifier) -> None:
    kept = box.maps.settings.get(0)
    assert kept is not None
    row = np.copy(kept)
    row["ready"] = 0
    try:
        box.maps.settings.put(0, row)
        packet = Tuple5(ip_address("10.1.0.2"), ip_address("198.18.1.10"), 1, 443, 6)
        assert classifier.ask(packet)[0] == "not-ready"
    finally:
        box.maps.settings.put(0, kept)
