"""Names that the learner takes from packets, and the counters of the other packets."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from enforcer.address import pack
from enforcer.dns import learner
from enforcer.dns.counters import COUNTS
from enforcer.dns.fair_queue import BURST, SHARE
from enforcer.dns.learner import Learner
from enforcer.dns.live_flows import LiveDestinations, live_destinations
from enforcer.dns.reader import Answer, Reader, learning_config
from enforcer.dns.recent import RecentAnswers
from enforcer.errors import BusyError, KernelError
from enforcer.facts import names as learnt_names
from enforcer.facts.store import ANY_CLIENT, ChangedNames, Store
from enforcer.kernel import nfqueue

CLIENT, SERVER, OTHER = "10.0.1.2", "198.18.53.53", "198.18.53.54"
CLIENT6, SERVER6 = "fd00:1::2", "2001:db8:53::53"
CONFIG: dict[str, Any] = {
    "location": "lax",
    "shared": {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"},
    "egress_ips": [
        {"name": "lax-1", "location": "lax", "ipv4": "203.0.113.10", "ipv6": "2001:db8:1::/64"},
        {"name": "nyc-1", "location": "nyc", "ipv4": "203.0.113.20", "ipv6": "2001:db8:3::/64"},
    ],
    "private_networks": ["10.20.0.0/16", "fd20::/48"],
    "dns": {"resolvers": [], "when_down": "pass", "grace": 30},
}
NOW, DAY = 100.0, 1_700_000_000.0


def packed(text: str) -> bytes:
    import ipaddress

    return pack(ipaddress.ip_address(text))


def ip(source: str, destination: str) -> Packet:
    return (IPv6 if ":" in source else IP)(src=source, dst=destination)


def query(name: str = "www.example.lab.", kind: str = "A", number: int = 7) -> dns.message.Message:
    return dns.message.make_query(name, kind, id=number)


def answer(to: dns.message.Message, *addresses: str, ttl: int = 60) -> dns.message.Message:
    made = dns.message.make_response(to)
    owner = to.question[0].name
    for one in addresses:
        made.answer.append(dns.rrset.from_text(owner, ttl, "IN", "AAAA" if ":" in one else "A", one))
    return made


class Wire:
    """Passes questions of a client and answers of a resolver to a reader."""

    def __init__(self, **dns: Any) -> None:
        self.reader = Reader(learning_config({**CONFIG, "dns": {**CONFIG["dns"], **dns}}))

    @property
    def counts(self) -> dict[str, int]:
        assert self.reader.counts.keys() <= COUNTS.keys()
        return {name: count for name, count in self.reader.counts.items() if count and name != "question"}

    def ask(
        self,
        message: dns.message.Message | bytes,
        client: str = CLIENT,
        server: str = SERVER,
        port: int = 4000,
    ) -> None:
        data = message if isinstance(message, bytes) else message.to_wire()
        self.reader.question(bytes(ip(client, server) / UDP(sport=port, dport=53) / data), NOW)

    def answer(
        self,
        message: dns.message.Message | bytes,
        client: str = CLIENT,
        server: str = SERVER,
        port: int = 4000,
        now: float = NOW,
    ) -> list[Answer]:
        data = message if isinstance(message, bytes) else message.to_wire()
        held = bytes(ip(server, client) / UDP(sport=53, dport=port) / data)
        return self.reader.answers(held, now, DAY)


@pytest.mark.parametrize(
    ("client", "server", "kind", "address"),
    [
        (CLIENT, SERVER, "A", "198.18.1.10"),
        (CLIENT6, SERVER6, "A", "198.18.1.10"),
        (CLIENT, SERVER, "AAAA", "2001:db8:a1::10"),
        (CLIENT6, SERVER6, "AAAA", "2001:db8:a1::10"),
    ],
)
def test_an_answer_is_learnt(client: str, server: str, kind: str, address: str) -> None:
    wire = Wire()
    wire.ask(query("wWw.ExAmple.lab.", kind), client, server)
    (found,) = wire.answer(answer(query("WWW.example.lab.", kind), address), client, server)
    assert found == Answer(packed(client), "www.example.lab", (packed(address),), DAY + 60 + 30)
    assert [(row.client, row.address, row.name) for row in found.rows()] == [
        (who, packed(address), "www.example.lab") for who in (packed(client), ANY_CLIENT)
    ]
    assert wire.counts == {}


def test_a_ttl_of_zero_lives_for_the_grace() -> None:
    wire = Wire(grace=7)
    wire.ask(query())
    (found,) = wire.answer(answer(query(), "198.18.1.10", ttl=0))
    assert found.expires == DAY + 7


def test_an_answers_addresses_are_bounded() -> None:
    wire = Wire()
    wire.ask(query())
    addresses = [f"198.18.1.{number}" for number in range(70, 0, -1)]
    (found,) = wire.answer(answer(query(), *addresses))
    assert set(found.addresses) == {packed(one) for one in addresses[:64]}
    assert wire.counts == {"addresses-over": 6}


def changed(change: Callable[[dns.message.Message], object]) -> dns.message.Message:
    made = answer(query(), "198.18.1.10")
    change(made)
    return made


def truncate(message: dns.message.Message) -> None:
    message.flags |= dns.flags.TC


UNLEARNT: dict[str, tuple[str, dict[str, Any]]] = {
    "another number": ("unasked", {"message": answer(query(number=8), "198.18.1.10")}),
    "another name": ("mismatched", {"message": answer(query("evil.lab."), "198.18.1.10")}),
    "another type": ("mismatched", {"message": answer(query(kind="AAAA"), "2001:db8::1")}),
    "another server": ("unasked", {"server": OTHER}),
    "another port": ("unasked", {"port": 4001}),
    "another client": ("unasked", {"client": "10.0.1.3"}),
    "too late": ("unasked", {"now": NOW + 10}),
    "truncated": ("truncated", {"message": changed(truncate)}),
    "nxdomain": ("nxdomain", {"message": changed(lambda made: made.set_rcode(dns.rcode.NXDOMAIN))}),
    "servfail": ("error", {"message": changed(lambda made: made.set_rcode(dns.rcode.SERVFAIL))}),
    "no address": ("empty", {"message": answer(query())}),
    "a question": ("malformed", {"message": query()}),
    "an update": ("malformed", {"message": changed(lambda made: made.set_opcode(5))}),
    "no message": ("malformed", {"message": b"what is this?"}),
    "cut": ("malformed", {"message": answer(query(), "198.18.1.10").to_wire()[:-2]}),
    "loopback": ("unusable", {"message": answer(query(), "127.0.0.1")}),
    "nowhere": ("unusable", {"message": answer(query(), "0.0.0.0")}),
    "this network": ("unusable", {"message": answer(query(), "0.1.2.3")}),
    "multicast": ("unusable", {"message": answer(query(), "224.0.0.251")}),
    "broadcast": ("unusable", {"message": answer(query(), "255.255.255.255")}),
    "link-local": ("unusable", {"message": answer(query(), "169.254.169.254")}),
    "private": ("private", {"message": answer(query(), "10.20.3.4")}),
    "shared": ("own", {"message": answer(query(), "198.51.100.1")}),
    "dedicated": ("own", {"message": answer(query(), "203.0.113.10")}),
}


@pytest.mark.parametrize(("word", "how"), UNLEARNT.values(), ids=UNLEARNT)
def test_what_is_not_learnt(word: str, how: dict[str, Any]) -> None:
    wire = Wire()
    wire.ask(query())
    assert wire.answer(**{"message": answer(query(), "198.18.1.10"), **how}) == []
    assert wire.counts == {word: 1}
    # A possible forgery leaves the question open for the true answer.
    true = wire.answer(answer(query(), "198.18.1.10"))
    assert bool(true) == (word in ("unasked", "mismatched", "malformed"))


@pytest.mark.parametrize(
    ("address", "word"),
    [("::1", "unusable"), ("fe80::1", "unusable"), ("ff02::1", "unusable"),
     ("::ffff:198.18.1.10", "unusable"), ("fd20::5", "private"),
     ("2001:db8:1::77", "own"), ("2001:db8:ffff::1", "own")],
)  # fmt: skip
def test_addresses_not_learnt_of_ipv6(address: str, word: str) -> None:
    wire = Wire()
    asked = query(kind="AAAA")
    wire.ask(asked)
    (found,) = wire.answer(answer(asked, address, "2001:db8:a1::10"))
    assert found.addresses == (packed("2001:db8:a1::10"),)
    assert wire.counts == {word: 1}


def test_another_locations_addresses_are_like_any() -> None:
    wire = Wire()
    wire.ask(query())
    assert wire.answer(answer(query(), "203.0.113.20"))


def test_other_types_and_classes() -> None:
    wire = Wire()
    for asked in (query(kind="MX"), dns.message.make_query("version.bind.", "TXT", "CH", id=7)):
        wire.ask(asked)
        assert wire.answer(answer(asked)) == []
    assert wire.counts == {"other-type": 1, "other-class": 1}


def test_only_listed_resolvers_count() -> None:
    wire = Wire(resolvers=[SERVER, SERVER6])
    for client, server in ((CLIENT, SERVER), (CLIENT, OTHER), (CLIENT6, SERVER6)):
        wire.ask(query(), client, server)
    assert wire.answer(answer(query(), "198.18.1.10"), server=OTHER) == []
    assert wire.counts == {"unlisted": 1}
    assert wire.answer(answer(query(), "198.18.1.10"))
    assert wire.answer(answer(query(), "198.18.1.10"), CLIENT6, SERVER6)


def test_an_answer_counts_once() -> None:
    wire = Wire()
    wire.ask(query())
    assert wire.answer(answer(query(), "198.18.1.10"))
    assert wire.answer(answer(query(), "198.18.1.11")) == []
    assert wire.counts == {"unasked": 1}


def test_strange_questions() -> None:
    wire = Wire()
    two = query().to_wire()
    for strange in (b"", b"hello", answer(query(), "198.18.1.10"), two[:4] + b"\0\2" + two[6:]):
        wire.ask(strange)
    wire.reader.question(b"no packet", NOW)
    assert wire.counts == {"question-strange": 5}


def test_tcp_pipelined_answered_out_of_order_and_in_pieces() -> None:
    reader = Reader(learning_config(CONFIG))

    def framed(*messages: dns.message.Message) -> bytes:
        wires = [message.to_wire() for message in messages]
        return b"".join(struct.pack(">H", len(wire)) + wire for wire in wires)

    def asking(flags: str, sequence: int, data: bytes = b"") -> None:
        segment = TCP(sport=4000, dport=53, seq=sequence, flags=flags)
        reader.question(bytes(ip(CLIENT, SERVER) / segment / data), NOW)

    def answering(flags: str, sequence: int, data: bytes = b"") -> list[Answer]:
        segment = TCP(sport=53, dport=4000, seq=sequence, flags=flags)
        return reader.answers(bytes(ip(SERVER, CLIENT) / segment / data), NOW, DAY)

    queries = [query(f"n{number}.lab.", number=number) for number in range(3)]
    asking("S", 10)
    answering("SA", 20)
    data = framed(*queries)
    asking("PA", 11, data[:30])
    asking("PA", 41, data[30:])
    data = framed(*(answer(queries[n], f"198.18.1.{n}") for n in (2, 0, 1)))
    assert [one.name for one in answering("A", 21, data[:60])] == ["n2.lab"]
    assert answering("A", 90, data[69:]) == []  # the segment before it is missing
    assert [one.name for one in answering("A", 81, data[60:69])] == ["n0.lab", "n1.lab"]
    assert reader.streams == 2
    answering("FA", 21 + len(data))
    asking("FA", 11 + len(framed(*queries)))
    assert reader.streams == 0


@given(st.binary(max_size=120))
def test_nothing_raises(data: bytes) -> None:
    wire = Wire()
    wire.ask(data)
    wire.answer(data)
    wire.reader.question(data, NOW)
    wire.reader.answers(data, NOW, DAY)


class Held:
    """Stands in for the kernel's queue and log."""

    def __init__(self, *_: Any, fail_open: bool = True) -> None:
        self.packets: list[Any] = []
        self.accepted: list[int] = []
        self.dropped_ones: list[int] = []
        self.overflows = self.late = 0

    def receive(self, limit: int) -> list[Any]:
        taken, self.packets = self.packets[:limit], self.packets[limit:]
        return taken

    def accept(self, numbers: list[int]) -> None:
        self.accepted += numbers

    def drop(self, numbers: list[int]) -> None:
        self.dropped_ones += numbers

    def fail_open(self, _: bool) -> None:
        pass

    def dropped(self) -> int:
        return 0

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Watched:
    """Stands in for the watchdog process, which releases packets that are held for too long."""

    def __init__(self) -> None:
        self.passes: list[bool] = []

    def fail_open(self, passes: bool) -> None:
        self.passes.append(passes)

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class Tables:
    def __init__(self, held: Held) -> None:
        self.held = held
        self.hosts: dict[tuple[bytes, bytes], int] = {}
        self.fails: Callable[[ChangedNames], None] = lambda _: None

    def update_names(self, names: ChangedNames) -> None:
        self.fails(names)
        assert not self.held.accepted  # an answer is released after it is learnt
        self.hosts.update(names.hosts)


class Scene:
    def __init__(self, learner: Learner, store: Store, tables: Tables, held: Held, said: list[str]) -> None:
        self.learner, self.store, self.tables, self.held, self.said = learner, store, tables, held, said
        self.alive = LiveDestinations(set(), set())

    def bring(self, *names: str, ttl: int = 60) -> None:
        """Delivers a question and an answer for each name; the number in the name is part of the address."""
        self.held.accepted.clear()
        for number, name in enumerate(names):
            self.come(name, number, CLIENT, ttl)
        self.learner.drain()

    def come(self, name: str, number: int, client: str, ttl: int = 60) -> None:
        """Queues a copied question and its held answer."""
        log = self.learner._log
        assert isinstance(log, Held)
        server = SERVER6 if ":" in client else SERVER
        asked = query(name, number=number)
        log.packets.append(bytes(ip(client, server) / UDP(sport=4000, dport=53) / asked.to_wire()))
        data = answer(asked, f"198.18.1.{name.split('.')[0][1:]}", ttl=ttl).to_wire()
        held = bytes(ip(server, client) / UDP(sport=53, dport=4000) / data)
        self.held.packets.append(nfqueue.Packet(number, held))

    def names(self) -> set[str]:
        return {row.name for row in self.store.names()}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    held, log = Held(), Held()
    monkeypatch.setattr(learner, "Queue", lambda *_, **__: held)
    monkeypatch.setattr(learner, "Log", lambda *_: log)
    monkeypatch.setattr(learner, "Watchdog", lambda *_, **__: Watched())
    monkeypatch.setattr(
        learner.select, "epoll", type("", (), {"register": lambda *_: None, "close": lambda _: None})
    )
    said: list[str] = []
    tables = Tables(held)
    with Store(tmp_path / "facts.db") as store:
        made = Learner(store, tables, CONFIG, say=said.append, alive=lambda: scene.alive)
        scene = Scene(made, store, tables, held, said)
        yield scene


def test_learnt_in_one_change_before_it_is_let_go(scene: Scene) -> None:
    scene.bring("n1.lab.", "n2.lab.", "n3.lab.")
    assert scene.names() == {"n1.lab", "n2.lab", "n3.lab"}
    assert scene.held.accepted == [0, 1, 2]
    assert len(scene.tables.hosts) == 6
    assert scene.store.names_at(ANY_CLIENT, packed("198.18.1.2")) == ("n2.lab",)
    assert scene.store.names_at(packed(CLIENT), packed("198.18.1.2")) == ("n2.lab",)
    report = scene.learner.report()
    assert report["counts"] == {"learnt": 3, "addresses": 3, "question": 3}
    assert (report["questions"], report["streams"]) == (0, 0)


def test_a_bounded_number_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "AT_ONCE", 2)
    scene.bring("n1.lab.", "n2.lab.", "n3.lab.")
    assert scene.held.accepted == [0, 1]
    scene.held.accepted.clear()
    scene.learner.drain()
    assert scene.held.accepted == [2]
    assert scene.names() == {"n1.lab", "n2.lab", "n3.lab"}


def test_what_is_known_is_not_stored_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    begin = scene.store.transaction
    monkeypatch.setattr(scene.store, "transaction", lambda patience: changes.append(1) or begin(patience))

    def expiry() -> float:
        return max(row.expires for row in scene.store.names())

    scene.bring("n1.lab.", ttl=600)
    first = expiry()
    scene.bring("n1.lab.", ttl=602)
    scene.bring("n1.lab.", ttl=60)
    assert (len(changes), expiry()) == (1, first)
    scene.bring("n1.lab.", ttl=620)
    assert len(changes) == 2
    assert expiry() > first + 19
    assert scene.learner.report()["counts"]["learnt"] == 4
    scene.learner.use(scene.store, scene.tables, CONFIG)
    scene.bring("n1.lab.", ttl=600)
    assert len(changes) == 3


def test_known_answers_are_bounded() -> None:
    known = RecentAnswers(limit=2)
    answers = [Answer(bytes(16), f"n{number}", (b"a",), 100.0) for number in range(3)]
    known.add(answers)
    assert known.new(answers, 0.0) == answers[:1]
    later = [one._replace(expires=104.0) for one in answers[1:]]
    assert known.new(later, 5.0) == []
    assert known.new(later, 3.0) == later


def test_a_full_table_refuses_what_is_new_only(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    full = packed("198.18.1.2")

    def refuse(names: ChangedNames) -> None:
        if any(address == full for (_, address), _ in names.hosts):
            raise KernelError("the table hosts is full")

    scene.tables.fails = refuse
    tries: list[int] = []
    begin = scene.store.transaction
    monkeypatch.setattr(scene.store, "transaction", lambda patience: tries.append(1) or begin(patience))
    names = [f"n{number}.lab." for number in (1, 3, 4, 5, 6, 7, 2, 8)]
    scene.bring(*names)
    # Tries: all, the first half, [6 7 2 8], [6 7], [2 8], [2]; after that none for a second.
    assert scene.names() == {f"n{number}.lab" for number in (1, 3, 4, 5, 6, 7)}
    assert len(tries) == 6
    assert scene.held.accepted == [*range(8)]
    assert scene.learner.counts["unlearnt"] == 2
    assert scene.said == ["names not learnt (1 answers so far): the table hosts is full"]
    scene.bring("n8.lab.")
    assert len(tries) == 6
    assert scene.learner.counts["unlearnt"] == 3
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1)
    scene.bring("n8.lab.")
    assert "n8.lab" in scene.names()
    scene.bring("n2.lab.")
    assert len(scene.said) == 1  # logged once a minute


def test_another_change_that_does_not_end(scene: Scene) -> None:
    def refuse(_: ChangedNames) -> None:
        raise BusyError("another change does not end")

    scene.tables.fails = refuse
    scene.bring("n1.lab.", "n2.lab.")
    assert scene.names() == set()
    assert scene.learner.counts["unlearnt"] == 2
    assert scene.held.accepted == [0, 1]


def test_a_bug_holds_nothing_back(scene: Scene) -> None:
    def fail(_: ChangedNames) -> None:
        raise RuntimeError

    scene.tables.fails = fail
    with pytest.raises(RuntimeError):
        scene.bring("n1.lab.")
    assert scene.held.accepted == [0]


def test_a_bug_in_noting_questions_holds_nothing_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(scene.learner._reader, "question", fail)
    with pytest.raises(RuntimeError):
        scene.bring("n1.lab.")
    assert scene.held.accepted == [0]


def test_all_questions_are_read_before_an_answer_is_judged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = scene.learner._log
    assert isinstance(log, Held)
    monkeypatch.setattr(learner, "_COPIES_TIME", 60.0)
    junk = [b""] * 20_000
    log.packets += junk
    scene.bring("n1.lab.")
    assert scene.names() == {"n1.lab"}
    log.packets += junk * 2
    scene.bring("n2.lab.")
    assert len(log.packets) == 40_001 - 32_768
    assert scene.learner.counts["unasked"] == 1
    monkeypatch.setattr(learner, "_COPIES_TIME", -1.0)
    log.packets = list(junk)
    scene.bring()
    scene.held.packets.append(nfqueue.Packet(5, b""))
    scene.learner.drain()
    assert len(log.packets) == 20_000 - 2 * 1024
    assert scene.held.accepted == [5]


def test_fail_open_is_set_only_if_it_changes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(scene.held, "fail_open", calls.append)
    scene.learner.use(scene.store, scene.tables, CONFIG)
    drop = {**CONFIG, "dns": {**CONFIG["dns"], "when_down": "drop"}}
    scene.learner.use(scene.store, scene.tables, drop)
    scene.learner.use(scene.store, scene.tables, drop)
    assert calls == [False]
    watched: Any = scene.learner._watchdog
    assert watched.passes == [False]


def test_what_was_crowded_out_is_learnt_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learnt_names, "NAMES_PER_HOST", 2)
    scene.bring("n1.a.lab.")
    scene.bring("n1.b.lab.", ttl=70)
    scene.bring("n1.c.lab.", ttl=20)
    host = packed(CLIENT), packed("198.18.1.1")
    assert scene.store.names_at(*host) == ("n1.b.lab", "n1.c.lab")
    assert scene.learner.counts["crowded-out"] == 1
    scene.bring("n1.a.lab.")
    assert scene.store.names_at(*host) == ("n1.a.lab", "n1.b.lab")


FLOODING = pytest.mark.parametrize(
    ("flooding", "other"), [(CLIENT, "10.0.1.3"), (CLIENT6, "fd00:1:0:1::2")], ids=["ipv4", "ipv6"]
)


@FLOODING
@pytest.mark.parametrize("when_down", ["pass", "drop"])
def test_what_is_above_a_clients_share_is_not_learnt(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, flooding: str, other: str, when_down: str
) -> None:
    """Another client's answer, the last in the queue, is learnt in the same turn."""
    scene.learner.use(scene.store, scene.tables, {**CONFIG, "dns": {**CONFIG["dns"], "when_down": when_down}})
    for number in range(400):
        scene.come(f"n{number % 200}.lab.", number, flooding)
    scene.come("n201.lab.", 400, other)
    scene.tables.held = Held()  # excess answers are released before learning
    assert scene.learner.drain() == 0.0
    assert "n201.lab" in scene.names()
    over = scene.learner.counts["answer-backlog"]
    assert over > 100
    at_once = scene.held.accepted if when_down == "pass" else scene.held.dropped_ones
    assert at_once[:over] == list(range(400 - over, 400))
    while scene.learner.drain() is not None:
        pass
    assert sorted(scene.held.accepted + scene.held.dropped_ones) == list(range(401))
    assert scene.learner.counts["learnt"] == 401 - over


@FLOODING
def test_a_flood_of_questions_is_not_looked_at_as_a_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, flooding: str, other: str
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(scene.learner._reader, "question", lambda copy, _: read.append(copy))
    log: Any = scene.learner._log
    server = SERVER6 if ":" in other else SERVER
    flood, question = (bytes(ip(client, server) / UDP(dport=53) / b"x") for client in (flooding, other))
    log.packets = [flood] * 3000 + [question]
    scene.held.packets.append(nfqueue.Packet(1, b""))
    scene.learner.drain()
    assert read.count(flood) == learner.COPIES_OF_CLIENT
    assert read.count(question) == 1
    assert scene.learner.counts["question-backlog"] == 3000 - learner.COPIES_OF_CLIENT
    log.packets = [flood]
    scene.learner.drain()
    assert read.count(flood) == learner.COPIES_OF_CLIENT + 1


@FLOODING
def test_a_client_without_time_waits_and_others_do_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, flooding: str, other: str
) -> None:
    clock, used = [1000.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "thread_time", lambda: used[0])
    scene.tables.fails = lambda _: used.__setitem__(0, used[0] + BURST)
    scene.come("n1.lab.", 1, flooding)
    assert scene.learner.drain() is None
    scene.come("n2.lab.", 2, flooding)
    scene.come("n3.lab.", 3, other)
    scene.held.accepted.clear()
    scene.tables.held = Held()
    assert scene.learner.drain() == 0.0
    assert scene.held.accepted == [3]
    pause = scene.learner.drain()
    assert pause is not None
    assert 0 < pause < 0.1
    clock[0] += 0.1 / SHARE
    assert scene.learner.drain() is None
    assert scene.held.accepted == [3, 2]
    assert scene.names() == {"n1.lab", "n2.lab", "n3.lab"}


def test_nothing_is_learnt_while_the_log_of_facts_is_too_large(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grown() -> None:
        raise KernelError("the log is too large")

    monkeypatch.setattr(scene.store, "check_log", grown)
    scene.learner.tick()
    scene.bring("n1.lab.")
    assert scene.names() == set()
    assert scene.held.accepted == [0]
    assert scene.said == ["names not learnt (1 answers so far): the log is too large"]


def test_another_change_is_not_waited_for_long(scene: Scene) -> None:
    with Store(scene.store.path) as other, other.transaction():
        began = time.monotonic()
        scene.bring("n1.lab.")
        assert time.monotonic() - began < 5
        assert scene.held.accepted == [0]
        assert scene.learner.counts["unlearnt"] == 1


def test_forgetting_goes_on_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "_NAMES_AT_ONCE", 3)
    scene.bring("n1.lab.", "n2.lab.", "n3.lab.", ttl=0)
    scene.held.accepted.clear()
    assert scene.learner.tick() == 1.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 31)
    origin = packed("198.18.1.2")
    scene.alive = LiveDestinations({origin}, set())
    assert scene.learner.tick() == 0.0
    assert 3 <= len(list(scene.store.names())) <= 4
    assert scene.learner.tick() == 0.0
    assert scene.learner.tick() == 1.0
    assert [(row.client, row.name) for row in scene.store.names()] == [(ANY_CLIENT, "n2.lab")]


def test_names_are_forgotten_but_those_of_live_flows(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.bring("n1.lab.", "n2.lab.", ttl=0)
    scene.bring("n3.lab.", ttl=3600)
    scene.held.accepted.clear()
    scene.learner.tick()
    assert len(scene.names()) == 3
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 31)
    origin = packed("198.18.1.2")
    scene.alive = LiveDestinations({origin}, {packed("10.0.1.9") + origin})
    scene.learner.tick()
    assert scene.names() == {"n2.lab", "n3.lab"}
    assert scene.tables.hosts[ANY_CLIENT, packed("198.18.1.1")] == 0
    assert scene.tables.hosts[packed(CLIENT), origin] == 0  # the flow is another client's
    assert scene.tables.hosts[ANY_CLIENT, origin] != 0
    scene.alive = LiveDestinations(set(), set())
    scene.learner.tick()
    assert scene.names() == {"n2.lab", "n3.lab"}  # the next pass is in ten seconds
    monkeypatch.setattr(learner, "_PASS_INTERVAL", 0.0)
    scene.learner._next_pass = 0.0
    scene.learner.tick()
    assert scene.names() == {"n3.lab"}


def test_destinations_of_flows() -> None:
    keys = np.zeros(1000, dtype=[("client", "<u4", 4), ("origin", "<u4", 4), ("port", "<u2")])
    keys["origin"][:, 3] = np.arange(1000) % 300
    keys["origin"][:, 0] = np.arange(1000) % 2
    keys["client"][:, 3] = np.arange(1000) % 900 % 2
    values = np.ones(1000, dtype=[("counted", "u1")])
    values["counted"][np.arange(1000) % 300 == 7] = 0  # ended flows, kept for late segments

    class Flows:
        def chunks(self) -> Iterator[Any]:
            yield keys[:500], values[:500]
            yield keys[500:], values[500:]

    found = live_destinations(Flows())  # type: ignore[arg-type]
    going = [key for key, value in zip(keys, values, strict=True) if value["counted"]]
    origins = {key["origin"].tobytes() for key in going}
    pairs = {key["client"].tobytes() + key["origin"].tobytes() for key in going}
    assert len(origins) == 299
    assert all(one in found.origins for one in origins)
    assert all(one in found.pairs for one in pairs)
    clients = {key["client"].tobytes() for key in keys}
    others = {client + key["origin"].tobytes() for key in keys for client in clients} - pairs
    assert others
    assert not any(one in found.pairs for one in others)
    assert not any(key["origin"].tobytes() in found.origins for key in keys[7::300])
    nothing = live_destinations(type("None", (), {"chunks": lambda _: iter(())})())
    assert bytes(16) not in nothing.origins
