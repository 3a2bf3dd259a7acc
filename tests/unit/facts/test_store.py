"""The store of facts: sessions, names, numbers, generations, and two processes at once."""

from __future__ import annotations

import ipaddress
import multiprocessing
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from enforcer.address import pack
from enforcer.errors import (
    BusyError,
    EnforcerError,
    KernelError,
    NotInstalledError,
    PrivilegeError,
)
from enforcer.facts import database, loading, names, numbers
from enforcer.facts import store as stores
from enforcer.facts.names import FIRST, ExpiryCursor, client_prefix, size_of
from enforcer.facts.store import (
    ANY_CLIENT,
    COMMAND,
    FILE,
    ChangedNames,
    ChangedSessions,
    LearntName,
    NewSession,
    Store,
    stored,
)
from enforcer.policy.facts import Facts, saml

A, B, C = (pack(ipaddress.ip_address(text)) for text in ("10.0.0.1", "10.0.0.2", "fd00::3"))
ORIGIN = pack(ipaddress.ip_address("198.51.100.7"))
ORIGIN6 = pack(ipaddress.ip_address("2001:db8::7"))


def person(name: str) -> Facts:
    return {"identity.email": (f"{name}@corp.example",), "identity.groups.id": ("g1", "g2")}


def session(client: bytes, name: str, expires: float | None = None) -> NewSession:
    return NewSession(client, person(name), expires)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "facts.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as opened:
        yield opened


def put(store: Store, *rows: NewSession, origin: str = COMMAND) -> ChangedSessions:
    with store.transaction() as transaction:
        return transaction.put_sessions(rows, origin)


def remove(store: Store, *clients: bytes) -> list[bytes]:
    with store.transaction() as transaction:
        return transaction.remove_sessions(clients)


def learn(store: Store, *answers: LearntName) -> ChangedNames:
    with store.transaction() as transaction:
        return transaction.learn(answers)


# --- sessions and their profiles


def test_a_session_is_put_replaced_and_removed(store: Store) -> None:
    facts = {"identity.name": ('Ümläut "x" \\',), saml("dept"): ("ops", "it"), "identity.groups.id": ()}
    changed = put(store, NewSession(A, facts, 2e9))
    assert changed == ChangedSessions([(A, 1)], [(1, facts)])
    found = store.session(A)
    assert found is not None
    assert found[:4] == (A, 1, facts, 2e9)
    assert found.origin == COMMAND
    assert time.time() - 5 < found.since <= time.time()
    assert list(store.sessions()) == [found]
    changed = put(store, session(A, "bob"))
    assert changed == ChangedSessions([(A, 2)], [(2, person("bob"))])
    assert store.profiles() == [(2, person("bob"))]
    assert remove(store, A, B, A) == [A]
    assert store.session(A) is None
    assert store.profiles() == []


def test_clients_with_the_same_facts_share_a_profile(store: Store) -> None:
    assert put(store, session(A, "bob"), session(B, "bob")).clients == [(A, 1), (B, 1)]
    reordered = dict(reversed(person("bob").items()))
    assert put(store, NewSession(C, reordered, None)) == ChangedSessions([(C, 1)], [])
    assert remove(store, A, C) == [A, C]
    assert [number for number, _ in store.profiles()] == [1]


def test_what_stays_is_not_listed_and_keeps_its_beginning(store: Store) -> None:
    put(store, session(A, "bob"), session(B, "eve"))
    before = store.session(A)
    assert put(store, session(A, "bob")) == ChangedSessions([], [])
    assert store.session(A) == before
    assert put(store, session(A, "bob", 2e9), origin=FILE) == ChangedSessions([], [])
    after = store.session(A)
    assert before is not None and after is not None
    assert (after.expires, after.origin, after.since) == (2e9, FILE, before.since)
    assert put(store, session(A, "eve")).clients == [(A, 2)]
    changed = store.session(A)
    assert changed is not None and changed.since > before.since
    assert (changed.expires, changed.origin) == (None, COMMAND)


def test_of_two_sessions_for_a_client_the_later_holds(store: Store) -> None:
    assert put(store, session(A, "bob"), session(A, "eve")).clients == [(A, 1)]
    assert [row.facts for row in store.sessions()] == [person("eve")]
    assert [facts for _, facts in store.profiles()] == [person("eve")]


def test_expiry(store: Store) -> None:
    assert store.next_session_expiry() is None
    put(store, session(A, "a", 100.0), session(B, "b", 200.5), session(C, "c"))
    assert store.next_session_expiry() == 100.0
    with store.transaction() as transaction:
        assert transaction.expire_sessions(99.9) == []
        assert transaction.expire_sessions(100.0) == [A]
    assert store.next_session_expiry() == 200.5
    with store.transaction() as transaction:
        assert transaction.expire_sessions(1e12) == [B]
    assert store.next_session_expiry() is None
    assert [row.client for row in store.sessions()] == [C]
    assert store.count_sessions() == 1


def test_sessions_of_the_file(store: Store) -> None:
    put(store, session(A, "a"))
    assert _loaded(store, session(B, "b"), session(C, "c", 2e9)) == (2, 2, 0, 0, [])
    assert store.clients_of_file() == {B, C}
    assert store.origins([A, B, bytes(16)]) == {A: COMMAND, B: FILE}
    assert _loaded(store, session(C, "c", 2e9)) == (1, 0, 1, 1, [])
    assert _loaded(store, session(A, "a")) == (1, 0, 1, 1, [A])
    assert store.clients_of_file() == {A}


def _loaded(store: Store, *rows: NewSession) -> loading.Loaded:
    """Loads rows as the reader of the watched session file does."""

    class Tables:
        def put_sessions(self, sessions: ChangedSessions) -> None: ...

        def remove_sessions(self, clients: Iterable[bytes]) -> None: ...

    kept = [(row.client, stored(row.facts), row.expires) for row in rows]
    return loading.load(store, Tables(), kept, FILE, 100)


@pytest.mark.parametrize("many", [3, 5000])
def test_few_and_many_at_once_are_the_same(store: Store, many: int) -> None:
    clients = [index.to_bytes(16, "big") for index in range(many)]
    first = put(store, *(session(client, str(index)) for index, client in enumerate(clients)))
    assert [client for client, _ in first.clients] == clients
    assert sorted(number for _, number in first.clients) == list(range(1, many + 1))
    facts = dict(first.profiles)
    assert [facts[number] for _, number in first.clients] == [person(str(index)) for index in range(many)]
    assert dict(store.profiles()) == facts
    again = put(store, *(session(client, str(index)) for index, client in enumerate(clients)))
    assert again == ChangedSessions([], [])
    other = put(store, *(session(client, f"x{index}") for index, client in enumerate(clients)))
    assert sorted(number for _, number in other.clients) == list(range(many + 1, 2 * many + 1))
    assert dict(store.profiles()) == dict(other.profiles)
    assert {row.client: row.facts for row in store.sessions()} == {
        client: person(f"x{index}") for index, client in enumerate(clients)
    }
    shared = put(store, *(session(client, f"x{index // 2}") for index, client in enumerate(clients)))
    assert len(shared.clients) == many - 1
    assert shared.profiles == []
    assert len(store.profiles()) == (many + 1) // 2
    assert sorted(remove(store, *clients)) == clients
    assert (store.profiles(), store.count_sessions()) == ([], 0)


# --- numbers


def test_a_number_is_given_again_but_not_in_the_change_that_freed_it(store: Store) -> None:
    put(store, session(A, "a"), session(B, "b"))
    before = store.sequence
    assert store.profiles(before) == []
    with store.transaction() as transaction:
        transaction.remove_sessions([A])
        assert transaction.put_sessions([session(A, "c")], COMMAND) == ChangedSessions(
            [(A, 3)], [(3, person("c"))]
        )
    between = store.sequence
    assert between > before
    assert store.profiles(before) == [(3, person("c"))]
    assert put(store, session(C, "d")) == ChangedSessions([(C, 1)], [(1, person("d"))])
    assert store.profiles(between) == [(1, person("d"))]
    assert [number for number, _ in store.profiles()] == [1, 2, 3]


def test_a_profile_that_is_used_again_in_the_same_change_stays(store: Store) -> None:
    put(store, session(A, "a"))
    with store.transaction() as transaction:
        transaction.remove_sessions([A])
        assert transaction.put_sessions([session(B, "a")], COMMAND) == ChangedSessions([(B, 1)], [])
    assert store.profiles() == [(1, person("a"))]


def test_the_last_number_freed_is_not_given_twice(store: Store) -> None:
    put(store, session(A, "a"), session(B, "b"), session(C, "c"))
    remove(store, C)
    remove(store, A)
    assert put(store, session(C, "x")).clients == [(C, 1)]
    assert put(store, session(A, "y")).clients == [(A, 3)]
    assert remove(store, A, B, C) == [A, B, C]
    new = put(store, *(session(index.to_bytes(16, "big"), f"n{index}") for index in range(5)))
    assert [number for _, number in new.clients] == [1, 2, 3, 4, 5]


def test_no_number_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "NUMBERS", 2)
    put(store, session(A, "a"), session(B, "b"))
    with pytest.raises(EnforcerError, match="more than 2 distinct profiles"):
        put(store, session(C, "c"))
    assert store.count_sessions() == 2
    assert put(store, session(C, "b")).clients == [(C, 2)]
    remove(store, A)
    assert put(store, session(A, "d")).clients == [(A, 1)]


# --- names


def test_names_are_learnt_extended_and_forgotten(store: Store) -> None:
    names = learn(store, LearntName(A, ORIGIN, "www.example", 100.0))
    assert names == ChangedNames([((A, ORIGIN), 1)], [(1, ("www.example",))])
    assert store.names_at(A, ORIGIN) == ("www.example",)
    assert store.names_at(ANY_CLIENT, ORIGIN) == store.names_at(A, ORIGIN6) == ()
    assert learn(store, LearntName(A, ORIGIN, "www.example", 150.0)) == ChangedNames([], [])
    assert learn(store, LearntName(A, ORIGIN, "www.example", 120.0)) == ChangedNames([], [])
    assert [tuple(row) for row in store.names()] == [(A, ORIGIN, "www.example", 150.0)]
    assert store.next_name_expiry() == 150.0
    names = learn(
        store, LearntName(A, ORIGIN, "cdn.example", 100.0), LearntName(B, ORIGIN, "www.example", 100.0)
    )
    assert dict(names.hosts)[A, ORIGIN] == 2
    assert dict(names.sets)[2] == ("cdn.example", "www.example")
    assert sorted(store.hosts()) == [((A, ORIGIN), 2), ((B, ORIGIN), 1)]
    with store.transaction() as transaction:
        assert transaction.forget_names(99.0) == (ChangedNames([], []), None)
        assert transaction.forget_names(100.0, (), {A + ORIGIN, B + ORIGIN}) == (ChangedNames([], []), None)
        names, _ = transaction.forget_names(100.0, {ORIGIN}, {A + ORIGIN6})
        assert sorted(names.hosts) == [((A, ORIGIN), 1), ((B, ORIGIN), 0)]
    assert store.name_sets() == [(1, ("www.example",))]
    with store.transaction() as transaction:
        assert transaction.forget_names(1e12)[0].hosts == [((A, ORIGIN), 0)]
    assert (store.name_sets(), store.hosts(), list(store.names())) == ([], [], [])
    assert store.next_name_expiry() is None


def test_one_answer_of_many_addresses_shares_a_set(store: Store) -> None:
    names = learn(store, *(LearntName(A, address, "www.example", 9.0) for address in (ORIGIN, ORIGIN6)))
    assert names == ChangedNames([((A, ORIGIN), 1), ((A, ORIGIN6), 1)], [(1, ("www.example",))])


def test_an_address_of_too_many_names_keeps_the_longest_lived(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "NAMES_PER_HOST", 3)
    found = learn(store, *(LearntName(A, ORIGIN, f"n{index}.example", 100.0 + index) for index in range(5)))
    assert found.sets == [(1, ("n2.example", "n3.example", "n4.example"))]
    assert store.names_at(A, ORIGIN) == ("n2.example", "n3.example", "n4.example")
    # The client of a new name connects soon: the new name stays, also with a short TTL.
    with store.transaction() as transaction:
        transaction.learn([LearntName(A, ORIGIN, "short.example", 1.0)])
        assert transaction.crowded_out == ["n2.example"]
    assert store.names_at(A, ORIGIN) == ("n3.example", "n4.example", "short.example")
    monkeypatch.setattr(names, "NAMES_PER_SHARED_HOST", 4)
    learn(store, *(LearntName(ANY_CLIENT, ORIGIN, f"n{index}.example", 100.0 + index) for index in range(5)))
    assert len(store.names_at(ANY_CLIENT, ORIGIN)) == 4


def address(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_one_clients_names_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "BYTES_OF_CLIENT", 4 * size_of("www.example"))
    learn(store, LearntName(B, ORIGIN, "b.example", 1.0))
    learn(store, *(LearntName(A, address(number), "www.example", 100.0 + number) for number in range(4)))
    changed = learn(store, *(LearntName(A, address(number), "new.example", 2.0) for number in (0, 7)))
    assert set(changed.hosts) >= {((A, address(1)), 0)}
    found = {(row.address, row.name) for row in store.names() if row.client == A}
    assert found == {
        (address(0), "new.example"),
        (address(7), "new.example"),
        (address(2), "www.example"),
        (address(3), "www.example"),
    }
    assert store.names_at(B, ORIGIN) == ("b.example",)
    assert {host for host, _ in store.hosts()} == {(row.client, row.address) for row in store.names()}


def test_a_client_of_ipv6_is_a_64(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "BYTES_OF_CLIENT", 4 * size_of("www.example"))
    hosts = [bytes.fromhex("fd00000100000000") + number.to_bytes(8, "big") for number in range(6)]
    other = bytes.fromhex("fd00000100000001") + bytes(8)
    for number, client in enumerate([*hosts, other]):
        learn(store, LearntName(client, ORIGIN, "www.example", 100.0 + number))
    assert [row.client for row in store.names()] == [*hosts[2:], other]


def caused(payer: bytes, where: bytes, name: str, expires: float) -> list[LearntName]:
    """The two rows of an answer: for the client, and for all clients."""
    return [LearntName(who, where, name, expires, client_prefix(payer)) for who in (payer, ANY_CLIENT)]


def hosts_of(store: Store, client: bytes) -> set[bytes]:
    return {row.address for row in store.names() if row.client == client}


def test_rows_for_anybody_are_charged_to_who_caused_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "BYTES_OF_CLIENT", 6 * size_of("n0.example"))
    learn(store, *caused(B, address(100), "b0.example", 1.0))
    for number in range(20):
        learn(store, *caused(A, address(number), f"n{number % 10}.example", 100.0 + number))
    left = {address(number) for number in (17, 18, 19)}
    assert hosts_of(store, A) == left
    assert hosts_of(store, ANY_CLIENT) == left | {address(100)}
    assert hosts_of(store, B) == {address(100)}
    # The kernel's table has all rows.
    assert {host for host, _ in store.hosts()} == {(row.client, row.address) for row in store.names()}


def test_a_common_name_is_charged_to_the_client_with_the_least(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that exceeds its share evicts no name that other clients have learnt too."""
    monkeypatch.setattr(names, "BYTES_OF_CLIENT", 6 * size_of("n0.example"))
    learn(store, *caused(A, ORIGIN, "common.example", 1.0))
    learn(store, *caused(A, ORIGIN6, "only-a.example", 1.0))
    learn(store, *caused(B, ORIGIN, "common.example", 1.0))
    for number in range(20):
        learn(store, *caused(A, address(number), f"n{number % 10}.example", 100.0))
    assert ORIGIN not in hosts_of(store, A)
    assert store.names_at(ANY_CLIENT, ORIGIN) == store.names_at(B, ORIGIN) == ("common.example",)
    assert store.names_at(ANY_CLIENT, ORIGIN6) == ()
    # Nor if it confirms the name while it has more than the others.
    learn(store, *caused(A, ORIGIN, "common.example", 2.0))
    for number in range(20):
        learn(store, *caused(A, address(number), f"m{number % 10}.example", 100.0))
    assert store.names_at(ANY_CLIENT, ORIGIN) == ("common.example",)


def test_of_all_together_the_largest_makes_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_names_in_all", 20 * size_of("n0.example"))
    learn(store, *caused(B, ORIGIN, "b0.example", 1.0))
    learn(store, *caused(C, ORIGIN6, "c0.example", 1.0))
    for number in range(40):
        learn(store, *caused(A, address(number), f"n{number % 10}.example", 100.0 + number))
    assert len(hosts_of(store, A)) == 8
    assert hosts_of(store, B) == {ORIGIN}
    assert hosts_of(store, C) == {ORIGIN6}
    assert hosts_of(store, ANY_CLIENT) == hosts_of(store, A) | {ORIGIN, ORIGIN6}


def accounts(path: Path) -> tuple[dict[bytes, int], int, dict[str, int]]:
    """Bytes charged to each client, their sum, and the number of rows by name."""
    with closing(sqlite3.connect(path)) as file:
        charges = dict(file.execute("SELECT payer, bytes FROM charges"))
        (total,) = file.execute("SELECT value FROM meta WHERE key = 'charged'").fetchone()
        return charges, total, dict(file.execute("SELECT text, rows FROM texts"))


def test_the_accounts_are_right_after_anything(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "BYTES_OF_CLIENT", 30 * size_of("n0.example"))
    monkeypatch.setattr(names, "NAMES_PER_HOST", 3)
    monkeypatch.setattr(names, "NAMES_PER_SHARED_HOST", 5)
    monkeypatch.setattr(store, "_names_in_all", 70 * size_of("n0.example"))
    chance = random.Random(8)
    for step in range(300):
        rows = []
        for _ in range(chance.randint(1, 8)):
            client = chance.choice([A, A, B, C])
            where, name = address(chance.randrange(20)), f"n{chance.randrange(30)}.example"
            rows += caused(client, where, name, step + chance.random() * 50)
        with store.transaction() as transaction:
            transaction.learn(rows)
            if not step % 10:
                transaction.forget_names(step, {address(3)}, {A + address(4)})
        expected: Counter[bytes] = Counter()
        used: Counter[str] = Counter()
        with closing(sqlite3.connect(path)) as file:
            for payer, name in file.execute(
                "SELECT payer, texts.text FROM names JOIN texts ON number = names.text"
            ):
                expected[payer] += size_of(name)
                used[name] += 1
        assert accounts(path) == (expected, expected.total(), used)
        assert max(expected.values()) <= 30 * size_of("n10.example")
        assert {host for host, _ in store.hosts()} == {(row.client, row.address) for row in store.names()}
        assert dict(store.name_sets()).keys() == {number for _, number in store.hosts()}
    with store.transaction() as transaction:
        transaction.forget_names(1e12)
    assert accounts(path) == ({}, 0, {})
    assert store.name_sets() == []


def test_learning_costs_the_same_however_much_a_client_has(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(rows: int) -> int:
        """Hundreds of instructions of sqlite's virtual machine."""
        monkeypatch.setattr(names, "BYTES_OF_CLIENT", rows * size_of("n00000.example"))
        for start in range(0, rows, 200):
            answers = [
                row
                for number in range(start, start + 200)
                for client, expires in ((B, 1.0 + number), (A, 10_000.0 + number))
                for row in caused(client, address(number), f"n{number:05}.example", expires)
            ]
            learn(store, *answers)
        taken: list[int] = []
        store._database.set_progress_handler(lambda: taken.append(1), 100)
        for number in range(20):
            learn(store, *caused(A, address(90_000 + rows + number), f"n{number:05}.example", 1e6))
        store._database.set_progress_handler(None, 0)
        return len(taken)

    few = steps(400)
    assert steps(6400) < 1.5 * few


@pytest.mark.parametrize(("length", "addresses"), [(10, 1), (250, 1), (10, 64), (250, 64)])
def test_the_file_is_no_larger_than_what_is_charged(
    store: Store, path: Path, length: int, addresses: int
) -> None:
    chance = random.Random(1)
    for number in range(2000 // addresses):
        name = f"{number:08}".ljust(length, "x")
        learn(
            store,
            *(row for _ in range(addresses) for row in caused(A, chance.randbytes(16), name, 100.0 + number)),
        )
    _, total, _ = accounts(path)
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < total + 100_000


def test_a_reader_that_does_not_end_stops_learning(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LARGEST_LOG", 2_000_000)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        for number in range(20):
            learn(store, *caused(A, address(number), "www.example", 100.0))
        store.check_log()
        for number in range(200):
            learn(store, *caused(A, address(number), f"n{number}.example", 100.0))
        with pytest.raises(KernelError, match="reads the facts without end"):
            store.check_log()
    store.check_log()


def test_names_are_forgotten_some_at_a_time(store: Store) -> None:
    learn(store, *(LearntName(A, address(number), "www.example", 9.0) for number in range(10)))
    alive = {A + address(number) for number in range(5)}
    cursor: ExpiryCursor | None = FIRST
    gone = []
    for turn in range(4):
        assert cursor is not None
        with store.transaction() as transaction:
            names, cursor = transaction.forget_names(9.0, (), alive, 3, cursor)
        gone.append(len(names.hosts))
        assert (cursor is None) == (turn == 3)
    assert gone == [0, 1, 3, 1]
    assert len(store.hosts()) == 5


# --- the file, generations, errors


def test_a_switch_is_a_generation(store: Store, path: Path) -> None:
    assert (store.generation, store.document, store.sequence) == (0, None, 0)
    with store.transaction() as transaction:
        transaction.record_bank(b'{"rules": []}', 1)
    with Store(path, create=False) as other:
        assert (other.generation, other.document) == (1, b'{"rules": []}')


def test_what_fails_changes_nothing(store: Store) -> None:
    put(store, session(A, "a"))
    with pytest.raises(ZeroDivisionError), store.transaction() as transaction:
        transaction.put_sessions([session(B, "b")], COMMAND)
        transaction.learn([LearntName(A, ORIGIN, "www.example", 1.0)])
        transaction.record_bank(b"x", 0)
        _ = 1 / 0
    assert [row.client for row in store.sessions()] == [A]
    assert (store.generation, store.sequence, list(store.names())) == (0, 1, [])
    assert put(store, session(B, "b")).clients == [(B, 2)]


def test_facts_outlive_the_process(store: Store, path: Path) -> None:
    put(store, session(A, "a", 2e9))
    rows = list(store.sessions())
    with Store(path) as again:
        assert list(again.sessions()) == rows


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match="no facts are kept"):
        Store(tmp_path / "facts.db", create=False)
    with pytest.raises(PrivilegeError, match="cannot open"):
        Store(tmp_path / "nowhere" / "facts.db")


def test_a_file_that_is_no_database_is_begun_anew(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(KernelError, match="not a database"):
        Store(path, create=False)
    with Store(path) as store:
        assert store.count_sessions() == 0


def test_a_file_of_another_format_is_begun_anew(store: Store, path: Path) -> None:
    put(store, session(A, "a"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("CREATE TABLE later (x)")
    connection.close()
    with pytest.raises(NotInstalledError, match="of another version"):
        Store(path, create=False)
    with Store(path) as store:
        assert (store.count_sessions(), store.generation) == (0, 0)
        put(store, session(A, "a"))


# The tables of names in format 2.
FORMAT_2 = """
DROP TABLE texts; DROP TABLE charges; DROP TABLE names; DELETE FROM meta WHERE key = 'charged';
CREATE TABLE names (
    client BLOB, address BLOB, name TEXT, expires REAL NOT NULL, PRIMARY KEY (client, address, name)
) WITHOUT ROWID;
CREATE INDEX names_by_expiry ON names (expires);
PRAGMA user_version = 2;
"""


def test_the_format_before_is_brought_into_this_one(store: Store, path: Path) -> None:
    put(store, session(A, "a"))
    rows = [
        LearntName(who, where, name, 100.0 + number)
        for number, where in enumerate((ORIGIN, ORIGIN6))
        for who in (A, C, ANY_CLIENT)
        for name in ("www.example", "a.longer.name.example")
    ]
    learn(store, *rows)
    before = (list(store.sessions()), set(store.names()), store.hosts(), store.name_sets(), accounts(path))
    with closing(sqlite3.connect(path)) as file:
        file.executescript(FORMAT_2)
        old = "INSERT INTO names VALUES (?, ?, ?, ?)"
        file.executemany(old, [(row.client, row.address, row.name, row.expires) for row in rows])
        file.commit()
    with Store(path) as again:
        after = (list(again.sessions()), set(again.names()), again.hosts(), again.name_sets(), accounts(path))
        assert after == before
        learn(again, LearntName(B, ORIGIN, "www.example", 200.0))
        with again.transaction() as transaction:
            transaction.forget_names(1e12)
        assert accounts(path) == ({}, 0, {})


def test_a_change_waits_for_another_and_not_for_ever(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    with Store(path) as other, store.transaction():
        with pytest.raises(BusyError, match="another change does not end"), other.transaction():
            raise AssertionError
        assert other.count_sessions() == 0  # readers do not wait


ROUNDS = 100


def _contend(path: Path, which: int) -> None:
    with Store(path) as store:
        for index in range(ROUNDS):
            client = (which * ROUNDS + index).to_bytes(16, "big")
            with store.transaction() as transaction:
                transaction.put_sessions([session(client, f"{which}-{index}")], COMMAND)
                if index % 2:
                    transaction.remove_sessions([client])
                transaction.record_bank(str(int(transaction.document or b"0") + 1).encode(), 0)


def test_processes_contend(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_contend, args=(path, which)) for which in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with Store(path, create=False) as store:
        # Each change saw the result of the one before it: none is lost.
        assert (store.generation, store.document) == (3 * ROUNDS, str(3 * ROUNDS).encode())
        rows = list(store.sessions())
        assert len(rows) == 3 * ROUNDS / 2
        assert {row.profile: row.facts for row in rows} == dict(store.profiles())
        assert len({row.profile for row in rows}) == len(rows)


def test_a_hundred_thousand_sessions(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        NewSession(
            (0xFFFF0A000000 + index * 2654435761 % (1 << 24)).to_bytes(16, "big"),
            {
                "identity.email": (f"user{index}@corp.example",),
                "identity.name": (f"User {index}",),
                "identity.groups.id": ("g-1", f"g-{index % 50}"),
                "identity.groups.name": ("staff", f"team {index % 50}"),
                "identity.groups.email": (),
                "device_posture.checks.passed": ("c1", "c2"),
            },
            2e9 + index,
        )
        for index in range(100_000)
    ]
    measured = {}

    def timed(name: str, start: float) -> None:
        measured[name] = time.perf_counter() - start

    start = time.perf_counter()
    assert len(put(store, *rows).clients) == 100_000
    timed("put", start)
    start = time.perf_counter()
    assert put(store, *rows) == ChangedSessions([], [])
    timed("put again", start)
    start = time.perf_counter()
    assert len(put(store, session(A, "one")).clients) == 1
    timed("put one more", start)
    start = time.perf_counter()
    assert len(store.profiles()) == 100_001
    timed("read profiles", start)
    start = time.perf_counter()
    assert sum(1 for _ in store.sessions()) == 100_001
    timed("read sessions", start)
    start = time.perf_counter()
    assert len(remove(store, *(row.client for row in rows))) == 100_000
    timed("remove", start)
    with capsys.disabled():
        said = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in measured.items())
        print(f"\n100,000 sessions: {said}")


# --- a file that is lost


def test_nothing_to_restore(store: Store) -> None:
    put(store, session(A, "ann"))
    assert store.restore() is False


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_is_written_again(path: Path, store: Store, replaced: bool) -> None:
    put(store, session(A, "ann"))
    for file in path.parent.glob("facts.db*"):
        file.unlink()
    if replaced:  # by a process without facts
        with Store(path) as other:
            put(other, session(B, "bob"))
    put(store, session(C, "cid"))
    assert store.restore() is True
    assert store.restore() is False
    put(store, session(B, "ben"))
    with Store(path, create=False) as other:
        assert [row.facts["identity.email"][0].partition("@")[0] for row in other.sessions()] == [
            "ann",
            "ben",
            "cid",
        ]
        version = other.version
        put(store, session(A, "amy"))
        assert other.version != version
