"""Sessions in JSON and files of sessions: their meaning and every kind of fault."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from enforcer.address import pack
from enforcer.errors import ConfigError, EnforcerError, KernelError
from enforcer.facts import loading, session
from enforcer.facts.rows import COMMAND, FILE, ChangedSessions, NewSession
from enforcer.facts.session import read_file, shown
from enforcer.facts.store import Store, stored
from enforcer.policy.facts import saml
from enforcer.workers import load_sessions

NOTHING: dict[str, tuple[str, ...]] = {
    "identity.groups.id": (),
    "identity.groups.name": (),
    "identity.groups.email": (),
    "device_posture.checks.passed": (),
}
FULL = {
    "client": "10.0.1.2",
    "email": "ann@corp.example",
    "name": "Änn \u200d 😀 O\u00a0B",
    "groups": [{"id": "g1", "name": "staff", "email": "s@x"}, {"id": "g2", "name": "ops", "email": "o@x"}],
    "saml_attributes": {"department": "ops", 'a "b" \\': ["x", "y"]},
    "device_posture": ["c1", "c2"],
    "vnet_id": "v1",
    "proxy_endpoint": "e1",
}


def address(text: str) -> bytes:
    return pack(ipaddress.ip_address(text))


def write(path: Path, *entries: Any) -> Path:
    texts = (entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def faults(path: Path, *entries: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_file(write(path, *entries))
    return [str(fault).removeprefix(str(path)) for fault in caught.value.faults]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions.jsonl"


# --- valid sessions


def test_a_session_with_everything(file: Path) -> None:
    facts = NOTHING | {
        "identity.email": ("ann@corp.example",),
        "identity.name": ("Änn \u200d 😀 O\u00a0B",),
        "identity.groups.id": ("g1", "g2"),
        "identity.groups.name": ("staff", "ops"),
        "identity.groups.email": ("s@x", "o@x"),
        saml("department"): ("ops",),
        saml('a "b" \\'): ("x", "y"),
        "device_posture.checks.passed": ("c1", "c2"),
        "net.vnet_id": ("v1",),
        "proxy.endpoint": ("e1",),
    }
    assert read_file(write(file, FULL)) == [NewSession(address("10.0.1.2"), facts, None)]
    assert shown(facts) == {key: value for key, value in FULL.items() if key != "client"}


def test_a_session_with_nothing_is_known_to_be_in_no_group(file: Path) -> None:
    assert read_file(write(file, {"client": "fd00:0::0002"})) == [
        NewSession(address("fd00::2"), NOTHING, None)
    ]


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [{"name": "a"}, {"name": "b"}],
        [{"id": "1", "email": "a@x"}, {"id": "2", "email": "b@x"}],
        [{"id": "1"}, {"name": "b"}, {"name": "c"}],
    ],
)
def test_shown_groups_are_read_as_the_same_facts(groups: list[dict[str, str]]) -> None:
    found, _ = session.read({"client": "10.0.0.1", "groups": groups}, 0)
    assert found is not None
    again, _ = session.read({"client": "10.0.0.1", "groups": shown(found.facts)["groups"]}, 0)
    assert again == found


def test_ends(file: Path) -> None:
    now = time.time()
    write(
        file,
        {"client": "10.0.0.1", "ttl": 60},
        {"client": "10.0.0.2", "ttl": 0.5},
        {"client": "10.0.0.3", "expires": "2100-01-02T03:04:05.5+01:00"},
        {"client": "10.0.0.4", "expires": "2100-01-02t03:04:05z"},
        {"client": "10.0.0.5", "expires": "2001-01-01T00:00:00Z"},
    )
    os.utime(file, (now - 10, now - 10))
    ends = {str(session.unpack_client(row.client)): row.expires for row in read_file(file)}
    # ttl counts from the file's last change: reading the file again extends no session.
    assert ends == {
        "10.0.0.1": pytest.approx(now + 50, abs=0.01),
        "10.0.0.3": 4102538645.5,
        "10.0.0.4": 4102542245,
    }
    assert [row.expires for row in read_file(file, now + 5)][:2] == [now + 65, now + 5.5]


def test_blank_lines_line_ends_and_a_byte_order_mark(file: Path) -> None:
    text = '\ufeff{"client": "10.0.0.1"}\r\n\r\n  \n\t{"client": "10.0.0.2"}  \n\n{"client": "10.0.0.3"}'
    file.write_text(text, encoding="utf-8", newline="")
    assert len(read_file(file)) == 3
    file.write_text("")
    assert read_file(file) == []


@pytest.mark.parametrize("text", ["\u2028", "a\u0085b"[0] + "\u00ad", "\u200f", "a" * 1024, "x\\u00e9"])
def test_texts_that_are_fine(file: Path, text: str) -> None:
    assert read_file(write(file, f'{{"client": "10.0.0.1", "name": "{text}"}}'))


# --- faults


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (
            "10.0.0.0/24",
            "10.0.0.0/24: `client` is no address; expected one IPv4 or IPv6 address, such as 10.0.1.2",
        ),
        ("10.0.0.01", "10.0.0.01: `client` is no address"),
        ("10.0.0", "10.0.0: `client` is no address"),
        ("10.0.0.1 ", "10.0.0.1 : `client` is no address"),
        ("fe80::1%eth0", "fe80::1%eth0: `client` is no address"),
        ("host.example", "host.example: `client` is no address"),
        ("\u0661\u0660.0.0.1", "\u0661\u0660.0.0.1: `client` is no address"),
        ("", ": `client` is no address"),
        (167772161, "167772161: `client` is no address"),
        (None, "null: `client` is no address"),
        (["10.0.0.1"], '["10.0.0.1"]: `client` is no address'),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1: an IPv4 address in IPv6 form; expected 10.0.0.1"),
        ("::ffff:a00:1", "::ffff:a00:1: an IPv4 address in IPv6 form; expected 10.0.0.1"),
        ("0.0.0.0", "0.0.0.0: not an address that a client can have; expected a unicast address"),
        ("127.0.0.1", "127.0.0.1: not an address that a client can have"),
        ("224.0.0.1", "224.0.0.1: not an address that a client can have"),
        ("255.255.255.255", "255.255.255.255: not an address that a client can have"),
        ("::", "::: not an address that a client can have"),
        ("::1", "::1: not an address that a client can have"),
        ("ff02::1", "ff02::1: not an address that a client can have"),
    ],
)
def test_no_client(file: Path, client: Any, message: str) -> None:
    (fault,) = faults(file, {"client": client})
    assert fault.startswith(f":1: {message}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"emial": "x"},
            "emial: an unknown key; expected one of client, email, name, groups, saml_attributes, ",
        ),
        ({"email": 5}, "5: `email` is not text; expected text in double quotes"),
        ({"email": None}, "null: `email` is not text"),
        ({"email": ["a"]}, '["a"]: `email` is not text'),
        ({"name": ""}, '"": `name` is empty; expected text, or no such key'),
        ({"name": "x" * 1025}, f"{'x' * 59}…: `name` has 1025 characters; expected at most 1024"),
        (
            {"name": "a\nb"},
            "a\N{REPLACEMENT CHARACTER}b: a control character in `name`; expected text without any",
        ),
        ({"name": "a\x7f"}, "a\N{REPLACEMENT CHARACTER}: a control character in `name`"),
        ({"name": "a\x85"}, "a\N{REPLACEMENT CHARACTER}: a control character in `name`"),
        ({"groups": "staff"}, "staff: `groups` is not a list; expected a list such as [{"),
        (
            {"groups": ["staff"]},
            'staff: not a group; expected an object with one or more of "id", "name" and "email"',
        ),
        ({"groups": [{}]}, "{}: not a group"),
        ({"groups": [{"title": "x"}]}, 'title: an unknown key of a group; expected "id", "name" or "email"'),
        ({"groups": [{"name": 1}]}, "1: `name` is not text"),
        ({"saml_attributes": [1]}, "[1]: `saml_attributes` is not an object; expected an object such as {"),
        ({"saml_attributes": {"": "x"}}, '"": `the attribute\'s name` is empty'),
        ({"saml_attributes": {"a": 1}}, "1: `a` is not a list; expected a list of texts"),
        ({"saml_attributes": {"a": ["x", 1]}}, "1: `a` is not text"),
        ({"saml_attributes": {"a": ["x", ""]}}, '"": `a` is empty'),
        ({"device_posture": "c1"}, "c1: `device_posture` is not a list; expected a list of texts"),
        ({"device_posture": [["c1"]]}, '["c1"]: `device_posture` is not text'),
        ({"vnet_id": True}, "true: `vnet_id` is not text"),
        ({"ttl": "60"}, "60: `ttl` is no number; expected seconds, such as 3600"),
        ({"ttl": True}, "true: `ttl` is no number"),
        ({"ttl": 0}, "0: `ttl` is out of range; expected more than 0 and at most 3162240000 seconds"),
        ({"ttl": -1.5}, "-1.5: `ttl` is out of range"),
        ({"ttl": float("nan")}, "NaN: `ttl` is out of range"),
        ({"ttl": float("inf")}, "Infinity: `ttl` is out of range"),
        ({"ttl": 10**400}, "1000000000"),
        (
            {"ttl": 60, "expires": "2100-01-01T00:00:00Z"},
            "2100-01-01T00:00:00Z: `expires` and `ttl` together; expected one of them",
        ),
        (
            {"expires": 5},
            "5: `expires` is no time with a zone; expected a time as in RFC 3339",
        ),
        ({"expires": "2030-12-31"}, "2030-12-31: `expires` is no time with a zone"),
        ({"expires": "2030-12-31T23:59:59"}, "2030-12-31T23:59:59: `expires` is no time with a zone"),
        ({"expires": "20301231T235959Z"}, "20301231T235959Z: `expires` is no time with a zone"),
        ({"expires": "2030-02-30T00:00:00Z"}, "2030-02-30T00:00:00Z: `expires` is not in the calendar"),
        ({"expires": "2030-02-01T25:00:00Z"}, "2030-02-01T25:00:00Z: `expires` is not in the calendar"),
    ],
)
def test_wrong_values(file: Path, more: dict[str, Any], message: str) -> None:
    (fault,) = faults(file, {"client": "10.0.0.1"} | more)
    assert fault.startswith(f":1: {message}"), fault


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{",
            "not JSON: Expecting property name enclosed in double quotes in column 2; expected one JSON",
        ),
        ("client: 10.0.0.1", "not JSON: Expecting value in column 1"),
        ("{'client': 1}", "not JSON: "),
        (
            '{"client": "10.0.0.1"} {}',
            "more than one value in a line, in column 23; expected one JSON object a line",
        ),
        ("[]", 'not a session; expected an object such as {"client": "10.0.1.2", "email": "…"}'),
        ("null", "not a session"),
        ("{}", "`client` is missing; expected the client's address, such as "),
        ("[" * 100_000, "JSON that cannot be read; expected one JSON object a line"),
        ('{"client": "10.0.0.1", "ttl": ' + "9" * 5000 + "}", "JSON that cannot be read"),
        (
            '{"client": "10.0.0.1", "name": "\\ud800"}',
            "\N{REPLACEMENT CHARACTER}: a control character in `name`",
        ),
        (
            '{"client": "10.0.0.1", "name": "\\u0000"}',
            "\N{REPLACEMENT CHARACTER}: a control character in `name`",
        ),
        (
            " " * 5 + '{"client": "10.0.0.1", "name": "' + "x" * 300_000 + '"}',
            "a line of 300034 characters; expected at most",
        ),
    ],
)
def test_wrong_lines(file: Path, line: str, message: str) -> None:
    (fault,) = faults(file, {"client": "10.9.9.9"}, line)
    assert fault.startswith(f":2: {message}"), fault[:300]
    assert len(fault) < 300


def test_all_faults_at_once_by_line(file: Path) -> None:
    found = faults(
        file,
        {"client": "10.0.0.1", "ttl": 0, "email": 1, "colour": "red"},
        {"client": "10.0.0.2"},
        {"client": "10.0.0.2", "email": "other@corp.example"},
        "nonsense",
        {"client": "fd00::1"},
        {"client": "FD00:0::1", "expires": "2001-01-01T00:00:00Z"},
    )
    assert [fault.split(";")[0] for fault in found] == [
        ":1: 1: `email` is not text",
        ":1: colour: an unknown key",
        ":1: 0: `ttl` is out of range",
        ":3: 10.0.0.2: twice in this file, in line 2 also",
        ":4: not JSON: Expecting value in column 1",
        ":6: fd00::1: twice in this file, in line 5 also",
    ]


@pytest.mark.parametrize("entry", [{"client": "x"}, {"client": "10.0.0.1"}])
def test_no_more_than_twenty_faults_are_listed(file: Path, entry: dict[str, str]) -> None:
    found = faults(file, *[entry] * 500)
    assert len(found) == 21
    assert found[-1].endswith("and more: only the first 20 faults are listed")


def test_a_line_that_is_not_text(file: Path) -> None:
    file.write_bytes(b'{"client": "10.0.0.1"}\n{"client": "10.0.0.2", "name": "\xff"}\n{"client": "x"}\n')
    with pytest.raises(ConfigError) as caught:
        read_file(file, name="standard input")
    assert str(caught.value).splitlines() == [
        "standard input:2: not UTF-8; expected JSON Lines in UTF-8",
        "standard input:3: x: `client` is no address; expected one IPv4 or IPv6 address, such as 10.0.1.2",
    ]


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("nowhere", "cannot be read: No such file or directory"),
        ("pipe", "not a regular file; expected a file of JSON Lines"),
        (".", "not a regular file; expected a file of JSON Lines"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_file(tmp_path / name)
    monkeypatch.setattr(session, "LARGEST_FILE", 10)
    with pytest.raises(ConfigError, match="23 bytes; at most 10 are read"):
        read_file(write(tmp_path / "large", {"client": "10.0.0.1"}))


# --- in bulk


class Tables:
    """Stands in for the kernel's tables."""

    def __init__(self) -> None:
        self.clients: dict[bytes, int] = {}

    def put_sessions(self, sessions: ChangedSessions) -> None:
        self.clients.update(sessions.clients)

    def remove_sessions(self, clients: Any) -> None:
        for client in clients:
            del self.clients[client]


def rows(*sessions: NewSession) -> list[loading.Row]:
    return [(one.client, stored(one.facts), one.expires) for one in sessions]


def many(count: int, email: str = "u{}@x") -> list[dict[str, Any]]:
    return [
        {"client": f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", "email": email.format(index)}
        for index in range(1, count + 1)
    ]


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_large_file_is_read_in_parts(file: Path, monkeypatch: pytest.MonkeyPatch, readers: int) -> None:
    monkeypatch.setattr(load_sessions, "_AT_LEAST", 1)
    monkeypatch.setattr(load_sessions.os, "sched_getaffinity", lambda _: range(readers))
    write(file, *many(1000))
    found = load_sessions.read(file, str(file), None)
    assert [row[:3] for row in found] == rows(*read_file(file))
    assert [row[3] for row in found] == list(range(1, 1001))
    with file.open("a") as more:
        more.write('{"client": "10.0.0.7"}\n{"client": "x"}')
    with pytest.raises(ConfigError) as caught:
        load_sessions.read(file, "f", None)
    assert str(caught.value).splitlines() == [
        "f:1001: 10.0.0.7: twice in this file, in line 7 also; expected one session for an address",
        "f:1002: x: `client` is no address; expected one IPv4 or IPv6 address, such as 10.0.1.2",
    ]


def test_a_part_that_fails_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bytes:
        raise MemoryError

    with pytest.raises(EnforcerError, match="a process that parsed a part of the file failed"):
        load_sessions._in_parallel([fail, lambda: b""])


def test_bulk_loading(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "AT_ONCE", 7)
    tables = Tables()

    def load(origin: str, entries: list[dict[str, Any]], room: int = 1000) -> loading.Loaded:
        return loading.load(store, tables, rows(*read_file(write(file, *entries))), origin, room)

    def agree() -> None:
        assert tables.clients == dict(store.session_profiles())

    with Store(tmp_path / "facts.db") as store:
        assert load(COMMAND, many(20)) == (20, 20, 0, 0, [])
        agree()
        assert load(COMMAND, many(30)) == (30, 10, 20, 0, [])
        assert load(FILE, many(10, "f{}@x")) == (
            10,
            10,
            10,
            0,
            [address(f"10.0.0.{n}") for n in sorted(range(1, 11))],
        )
        agree()
        with pytest.raises(
            EnforcerError, match=r"the sessions of 10\.0\.0\.1, .* came from the watched file"
        ):
            load(COMMAND, many(12))
        with pytest.raises(EnforcerError, match="33 sessions are more than the 32 that have room"):
            load(FILE, many(33), room=32)
        assert store.count_sessions() == 30
        assert load(FILE, many(5, "f{}@x")) == (5, 0, 5, 5, [])
        assert store.count_sessions() == 25
        agree()
        assert {row.profile: row.facts for row in store.sessions()} == dict(store.profiles())
        loading.remove(store, tables, store.clients_of_file())
        assert store.count_sessions() == 20
        agree()


class Meddling(Tables):
    """Tables; during a load another process adds a session, or the tables are full."""

    def __init__(self, store: Store, other: NewSession):
        super().__init__()
        self.store = store
        self.other = other
        self.calls = 0

    def put_sessions(self, sessions: ChangedSessions) -> None:
        super().put_sessions(sessions)
        self.calls += 1
        if self.calls == 2:
            raise KernelError("the tables are full", "Make room.")

    def meddle(self) -> None:
        with self.store.transaction() as transaction:
            super().put_sessions(transaction.put_sessions([self.other], COMMAND))


def test_somebody_else_changes_sessions_meanwhile(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "AT_ONCE", 10)
    sessions = read_file(write(file, *many(30, "same@x")))
    with Store(tmp_path / "facts.db") as store, Store(tmp_path / "facts.db") as others:
        tables = Meddling(others, sessions[25]._replace(facts=NOTHING))
        tables.calls = 2
        monkeypatch.setattr(loading.time, "sleep", lambda _: tables.meddle() if tables.calls < 4 else None)
        assert loading.load(store, tables, rows(*sessions), COMMAND, 1000).changed == 30
        assert tables.clients == dict(store.session_profiles())
        assert {row.profile: row.facts for row in store.sessions()} == dict(store.profiles())
        assert len(store.profiles()) == 1


def test_no_room_in_the_kernel_half_way(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "AT_ONCE", 10)
    with Store(tmp_path / "facts.db") as store:
        tables = Meddling(store, NewSession(address("10.1.1.1"), NOTHING, None))
        with pytest.raises(
            EnforcerError, match="10 of 30 sessions are in force, and then: the tables are full"
        ):
            loading.load(store, tables, rows(*read_file(write(file, *many(30)))), COMMAND, 1000)
        assert store.count_sessions() == 10
