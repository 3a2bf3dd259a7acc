"""The loaded program against the reference evaluator: random policies, and tuples near their edges."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mixes import PRIVATE, Rule, World, packet, policy, world

from enforcer.address import IPAddress, IPNetwork, mapped, pack
from enforcer.constants.bpf import NO_SLOT
from enforcer.datapath import settings
from enforcer.datapath.banks import Action
from enforcer.facts.kernel_facts import KernelFacts, refill
from enforcer.facts.regions import Region, RegionPrefixes
from enforcer.facts.rows import ANY_CLIENT, COMMAND, LearntName, NewSession
from enforcer.facts.store import Store
from enforcer.gateway.bank_switch import BankContents, BankSwitch
from enforcer.policy.facts import Connection
from enforcer.policy.language import expression_of
from enforcer.policy.reference import in_order, matches
from enforcer.policy.rules import MAX_RULES, TooManyRulesError
from enforcer.policy.tables import MatchTables, compile_tables
from enforcer.reasons import reasons
from lab.configuration import Document

from .box import MAC, Box
from .box import document as plain_document

COMPARED = int(os.environ.get("CLASSIFY_TUPLES", "1000000"))
SEED = int(os.environ.get("CLASSIFY_SEED", "0")) or random.SystemRandom().getrandbits(32)
TUPLES = 8000  # for each set of policies
FOREVER = 2.0**40


@pytest.fixture(scope="module")
def document() -> Document:
    """The source check is off: the clients of a world are on one interface, with any addresses."""
    return plain_document(check_source=False)


class Verdict(NamedTuple):
    reason: str
    slot: int
    policy: int


class Atlas:
    """A stand-in for a database of regions."""

    def __init__(self, world: World):
        self.world = world
        self.digest = f"{id(world)}"

    def prefixes(self, wanted: Callable[[str | None, str | None], bool]) -> RegionPrefixes:
        """As :meth:`enforcer.facts.regions.Database.prefixes`."""
        numbers: dict[Region, int] = {}
        rows: list[tuple[int, bytes, int]] = []
        for family, networks in self.world.networks.items():
            kind = IPv4Address if family == 4 else IPv6Address
            for first, past, index in networks:
                region = self.world.regions[index]
                if wanted(*region):
                    number = numbers.setdefault(region, len(numbers) + 1)
                    for network in summarize_address_range(kind(first), kind(past - 1)):
                        wide = mapped(network)
                        rows.append((wide.prefixlen, wide.network_address.packed, number))
        return RegionPrefixes(
            np.array([row[0] for row in rows], dtype=np.uint32),
            np.frombuffer(b"".join(row[1] for row in rows), dtype=np.uint8).reshape(-1, 16),
            np.array([row[2] for row in rows], dtype=np.uint32),
            list(numbers),
        )


NOBODY = World()


def rows_of(world: World) -> tuple[list[NewSession], list[LearntName]]:
    """The sessions and names of a world, in the form of the store."""
    sessions = [NewSession(pack(client), facts, None) for client, facts in world.sessions.items()]
    names = [
        LearntName(ANY_CLIENT, pack(address), name, FOREVER)
        for address, known in world.names.items()
        for name in known
    ]
    return sessions, names


class Classifier:
    """Policies in the kernel without a configuration file: this class writes and switches the banks."""

    def __init__(self, box: Box, store: Store):
        self.box = box
        self.store = store
        self.program = box.program("explain")
        self.heads = {
            4: bytes.fromhex(MAC["in0"].replace(":", "")) + bytes(6) + b"\x08\x00",
            6: bytes.fromhex(MAC["in0"].replace(":", "")) + bytes(6) + b"\x86\xdd",
        }
        self.names = {number: reason.name for number, reason in reasons().items()}

    def write(
        self, bank: int, tables: MatchTables, actions: list[Action], private: list[IPNetwork], world: World
    ) -> int:
        """Fills a bank; returns the word that puts it in force."""
        contents = BankContents(tables, actions, private, Atlas(world))  # type: ignore[arg-type]
        switch = BankSwitch(self.box.maps, bank, contents, self.store)
        with self.store.transaction() as transaction:
            switch.finish(transaction)
        return switch.word

    def switch(self, word: int) -> None:
        settings.write(self.box.maps, replace(settings.read(self.box.maps), bank=word))

    def put(
        self,
        tables: MatchTables,
        actions: list[Action],
        private: list[IPNetwork],
        world: World = NOBODY,
    ) -> None:
        """Puts policies in force; stores half of the facts before that, and the other half after."""
        bank = settings.read(self.box.maps).bank_number
        sessions, names = rows_of(world)
        with self.store.transaction() as transaction:
            gone = transaction.remove_sessions(row.client for row in list(self.store.sessions()))
            forgotten, _ = transaction.forget_names(FOREVER * 2)
            early = transaction.put_sessions(sessions[::2], COMMAND), transaction.learn(names[::2])
        for client in gone:
            self.box.maps.sessions.delete(np.frombuffer(client, dtype=self.box.maps.sessions.key)[0])
        for host, _ in forgotten.hosts:
            self.box.maps.hosts.delete(np.frombuffer(b"".join(host), dtype=self.box.maps.hosts.key)[0])
        assert len(early[0].clients) == len(sessions[::2])
        self.switch(self.write(1 - bank, tables, actions, private, world))
        refill(self.box.maps, self.store)
        in_force = KernelFacts(self.box.maps, self.store)
        with self.store.transaction() as transaction:
            in_force.put_sessions(transaction.put_sessions(sessions[1::2], COMMAND))
            in_force.update_names(transaction.learn(names[1::2]))

    def ask(self, packet: Connection) -> Verdict:
        body = struct.pack(">HHIIBBHHH", packet.src_port, packet.dst_port, 1, 0, 0x50, 2, 100, 0, 0)
        if packet.protocol == 17:
            body = struct.pack(">HHHH", packet.src_port, packet.dst_port, 20, 0) + bytes(12)
        if packet.src.version == 4:
            head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0, 64, packet.protocol, 0)
        else:
            head = struct.pack(">IHBB", 6 << 28, 20, packet.protocol, 64)
        frame = self.heads[packet.src.version] + head + packet.src.packed + packet.dst.packed + body
        self.program(frame)
        verdict = self.box.maps.explained.get(0)
        assert verdict is not None
        return Verdict(self.names[int(verdict["reason"])], int(verdict["slot"]), int(verdict["policy"]))


@pytest.fixture
def classifier(box: Box, tmp_path: Path) -> Iterator[Classifier]:
    for table in (box.maps.sessions, box.maps.hosts):  # of the previous store
        for key in table.items()[0]:
            table.delete(key)
    with Store(tmp_path / "facts.db") as store:
        yield Classifier(box, store)


class Reference:
    """The verdict according to the configuration's specification, with policies that are parsed once."""

    def __init__(
        self, policies: list[Rule], actions: dict[str, Action], private: list[IPNetwork], world: World
    ):
        self.actions = actions
        self.private = private
        self.world = world
        self.policies = [(one, expression_of(one)) for one in in_order(policies) if one.enabled]

    def verdict(self, packet: Connection, available: set[int]) -> Verdict | None:
        """None: the nearest egress, which is not named."""
        family = packet.src.version == 6
        if packet.protocol == (58 if family else 1):
            return Verdict("icmp", 0, 0)
        if packet.protocol not in (6, 17):
            return Verdict("protocol", 0, 0)
        if packet.dst_port == 53:
            return Verdict("dns", 0, 0)
        if any(packet.dst in network for network in self.private):
            return Verdict("tunnel", 0, 0)
        connection = self.world.connection(packet)
        first = next((one for one, expression in self.policies if matches(expression, connection)), None)
        if first is None:
            return None
        number, primary, fallback = self.actions[first.name]
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
    for index, one in enumerate(in_order(policies)):
        primary = tuple(chance.choice([0, *slots]) for _ in range(2))
        fallback = tuple(chance.choice([0, NO_SLOT, *slots]) if slot else NO_SLOT for slot in primary)
        actions[one.name] = Action(index + 1, primary, fallback)  # type: ignore[arg-type]
    return actions


def compare(
    box: Box, classifier: Classifier, seed: int, nearest: dict[IPAddress, int], by_reason: dict[str, int]
) -> int:
    """Compares one random set of policies in one random world; returns the number of compared tuples."""
    chance = random.Random(seed)
    available = {box.slot("lax-1"), box.slot("lax-2")}
    count = chance.choice((0, 1, 1, 2, 4, 6, 10))
    policies = [policy(chance, i, 1000 - i) for i in range(count)]
    actions = random_actions(chance, box, policies)
    private = [ip_network(text) for text in chance.sample(PRIVATE, chance.randrange(3))]
    known = world(chance)
    try:
        tables = compile_tables(policies)
    except TooManyRulesError:
        return 0
    classifier.put(tables, [actions[one.name] for one in in_order(policies)], private, known)
    reference = Reference(policies, actions, private, known)
    for _ in range(TUPLES):
        asked = packet(chance)
        said = classifier.ask(asked)
        wanted = reference.verdict(asked, available)
        if wanted is None:
            slot = nearest.setdefault(asked.src, said.slot)
            assert slot in available
            wanted = Verdict("nearest", slot, 0)
        context = (seed, known.connection(asked), policies, private, said, wanted)
        assert said[0] == wanted[0] and said[2] == wanted[2], context
        assert said[1] == wanted[1] or said[0] == "unavailable", context
        by_reason[said[0]] = by_reason.get(said[0], 0) + 1
    return TUPLES


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernel_and_reference_agree(box: Box, classifier: Classifier) -> None:
    """A million tuples. A failure names the seed of its set of policies, which belongs in DISAGREED."""
    seeds = random.Random(SEED)
    nearest: dict[IPAddress, int] = {}
    compared = sets = 0
    by_reason: dict[str, int] = {}
    while compared < COMPARED:
        compared += compare(box, classifier, seeds.getrandbits(32), nearest, by_reason)
        sets += 1
    print(f"\nseed {SEED}: {compared:,} tuples compared under {sets} sets of policies, {by_reason}")
    assert len(by_reason) == 10 or compared < 100_000


# Seeds of former disagreements. 3: names of an earlier set were left in the map.
DISAGREED: list[int] = [3]


@pytest.mark.parametrize("seed", DISAGREED)
def test_what_once_disagreed(box: Box, classifier: Classifier, seed: int) -> None:
    assert compare(box, classifier, seed, {}, {})


def test_no_policies(classifier: Classifier) -> None:
    classifier.put(compile_tables([]), [], [])
    for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
        packet = Connection(ip_address(source), ip_address(destination), 1, 443, 6)
        assert classifier.ask(packet)[0] == "nearest"
        assert classifier.ask(packet._replace(dst_port=53))[0] == "dns"


def test_as_many_rules_as_fit(box: Box, classifier: Classifier) -> None:
    """Each of 16,384 rules is found where it is the first match, including those of the last word."""
    policies = [Rule(f"p{i}", i, f"net.dst.port == {1000 + i}") for i in range(MAX_RULES - 1)]
    policies.append(Rule("last", 10**6, 'net.protocol == "udp"'))
    slots = box.slot("lax-1"), box.slot("lax-2")
    actions = [Action(i + 1, (slots[i % 2], slots[i % 2]), (NO_SLOT, NO_SLOT)) for i in range(MAX_RULES)]
    tables = compile_tables(policies)
    assert len(tables.rules) == MAX_RULES
    classifier.put(tables, actions, [])
    for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
        packet = Connection(ip_address(source), ip_address(destination), 1, 0, 17)
        for i in range(MAX_RULES - 1):
            said = classifier.ask(packet._replace(dst_port=1000 + i))
            assert said == ("policy", slots[i % 2], i + 1)
        assert classifier.ask(packet._replace(dst_port=80)) == ("policy", slots[1], MAX_RULES)
        assert classifier.ask(packet._replace(dst_port=80, protocol=6))[0] == "nearest"


@pytest.mark.parametrize("only", [0, 1, 62, 63, 64, 65, 127, 128, 4095, 4096, 8191, 8192, 16320, 16383])
def test_the_only_rule_of_many_that_matches(box: Box, classifier: Classifier, only: int) -> None:
    """All other rules match in three dimensions of four."""
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
        packet = Connection(ip_address(source), ip_address(destination), 1, 443, 6)
        assert classifier.ask(packet) == ("default", 0, only + 1)


def test_banks_switch_at_once(box: Box, classifier: Classifier) -> None:
    """While another process switches between the banks, each verdict is entirely of one bank."""
    slot = box.slot("lax-2")
    bank = settings.read(box.maps).bank_number
    everything = compile_tables([Rule("all", 1, "")])
    some = compile_tables([Rule("none", 1, "net.dst.port == 1"), Rule("all", 2, 'net.protocol == "tcp"')])
    new = classifier.write(1 - bank, everything, [Action(1, (slot, slot), (NO_SLOT, NO_SLOT))], [], NOBODY)
    packet = Connection(ip_address("fd01::2"), ip_address("2001:db8:a1::10"), 1, 443, 6)
    classifier.switch(new)
    first = Verdict("policy", slot, 1)
    assert classifier.ask(packet) == first
    # Writing the other bank has no effect yet.
    none = Action(1, (slot, slot), (NO_SLOT, NO_SLOT))
    old = classifier.write(bank, some, [none, Action(2, (0, 0), (NO_SLOT, NO_SLOT))], [], NOBODY)
    assert classifier.ask(packet) == first
    child = os.fork()
    if not child:
        for turn in range(20000):
            classifier.switch((old, new)[turn % 2])
        os._exit(0)
    found = set()
    while not os.waitpid(child, os.WNOHANG)[0]:
        found |= {classifier.ask(packet) for _ in range(200)}
    assert found == {first, Verdict("default", 0, 2)}


def test_proxied_protocols(box: Box, classifier: Classifier) -> None:
    classifier.put(compile_tables([Rule("all", 1, "")]), [Action(1, (0, 0), (NO_SLOT, NO_SLOT))], [])
    kept = settings.read(box.maps)
    try:
        for field, protocol, reason in (("proxy_tcp", 6, "tcp-off"), ("proxy_udp", 17, "udp-off")):
            settings.write(box.maps, replace(kept, **{field: False}))
            for source, destination in (("10.1.0.2", "198.18.1.10"), ("fd01::2", "2001:db8:a1::10")):
                packet = Connection(ip_address(source), ip_address(destination), 1, 443, protocol)
                assert classifier.ask(packet) == (reason, 0, 0)
                assert classifier.ask(packet._replace(protocol=23 - protocol))[0] == "default"
    finally:
        settings.write(box.maps, kept)


def test_nothing_is_decided_before_the_tables_are_filled(box: Box, classifier: Classifier) -> None:
    kept = settings.read(box.maps)
    try:
        settings.write(box.maps, replace(kept, ready=False))
        packet = Connection(ip_address("10.1.0.2"), ip_address("198.18.1.10"), 1, 443, 6)
        assert classifier.ask(packet)[0] == "not-ready"
    finally:
        settings.write(box.maps, kept)
