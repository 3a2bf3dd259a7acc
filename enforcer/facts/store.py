"""The store of facts: the single truth of who has a session and which names were learnt.

Whoever changes what the kernel holds of facts, or switches the policy bank, does it within a
:meth:`Store.change`; so no session and no name falls between two generations.
"""

from __future__ import annotations

import marshal
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from enforcer.facts import database
from enforcer.facts.database import among, explained
from enforcer.facts.numbers import NUMBERS, Numbers, digest
from enforcer.facts.rows import (
    ANYBODY,
    COMMAND,
    FILE,
    Learnt,
    NameRow,
    Names,
    NewSession,
    SessionRow,
    Sessions,
)
from enforcer.policy.facts import Facts

__all__ = [
    "ANYBODY",
    "COMMAND",
    "FILE",
    "NUMBERS",
    "Change",
    "Learnt",
    "NameRow",
    "Names",
    "NewSession",
    "SessionRow",
    "Sessions",
    "Store",
    "Stored",
    "household",
    "stored",
]

NAMES_PER_HOST = 64
"""Names that one address may have for one client; of those known before the first to expire makes room."""
NAMES_PER_SHARED_HOST = 256
"""The same for ANYBODY."""
NAMES_PER_CLIENT = 16_384
"""Names of all addresses that one client may have (:func:`household`); the first to expire make room."""
FIRST = (-1.0, b"", b"", "")
"""Before every name, where :meth:`Change.forget_names` begins."""
Place = tuple[float, bytes, bytes, str]
"""Of a name among all, by expiry: expires, client, address, name."""
_MAPPED = bytes(10) + b"\xff\xff"
# From so many on reading all rows is quicker than looking for each.
_MANY = 10_000
_SESSION = (
    "SELECT client, profile, value, expires, since, origin FROM sessions JOIN profiles ON number = profile"
)


Stored = tuple[bytes, bytes]
"""Facts as they are stored, behind the digest that they are found by."""


def household(client: bytes) -> bytes:
    """What a client's bounds are for: its IPv4 address, or its IPv6 /64, all of which one host may use."""
    return client if client.startswith(_MAPPED) else client[:8]


def stored(facts: Facts) -> Stored:
    """Equal for equal facts.

    marshal takes a fifth of JSON's time, which counts with 100,000 sessions; its version 2 has no references,
    so equal values are equal bytes, and every later Python reads it.
    """
    value = marshal.dumps(dict(sorted(facts.items())), 2)
    return digest(value), value


class Store:
    """The facts of one gateway.

    Without ``create`` (commands that look) a file that isn't there is NotInstalledError. All methods raise
    BusyError, KernelError.
    """

    def __init__(self, path: Path, *, create: bool = True):
        self.path = path
        self._database = database.connect(path, create=create)
        self._file = path.stat().st_ino
        self.undone = 0
        """How many changes were taken back: what they had written elsewhere is still there."""
        self.begun = 0
        """How many changes were begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._database.close()

    def restore(self) -> bool:
        """Writes the file again if it is not the one that was opened; True if so.

        What another process wrote into a file in its place is lost: it knew nothing of what is here.
        """
        if self.path.exists() and self.path.stat().st_ino == self._file:
            return False
        self._database = database.replace(self._database, self.path)
        self._file = self.path.stat().st_ino
        return True

    @property
    def version(self) -> int:
        """Another one after every change by another connection."""
        return int(self._one("PRAGMA data_version"))

    def expect_much(self) -> None:
        """For a process that writes much and ends: more memory, and the log is not tidied up meanwhile."""
        with explained("opening the facts"):
            self._database.execute("PRAGMA cache_size = -65536")
            self._database.execute("PRAGMA wal_autocheckpoint = 50000")

    @property
    def generation(self) -> int:
        """Rises with each switch of the policy bank."""
        return int(self._meta("generation"))

    @property
    def document(self) -> bytes | None:
        """The resolvers' document of the bank in force."""
        found = self._meta("document")
        return None if found is None else bytes(found)

    @property
    def bank(self) -> int | None:
        """The bank that the document is about."""
        found = self._meta("bank")
        return None if found is None else int(found)

    @property
    def sequence(self) -> int:
        """Rises with every profile and name set that is new, or whose number is given again."""
        return int(self._meta("sequence"))

    def _meta(self, key: str) -> Any:
        return self._one("SELECT value FROM meta WHERE key = ?", key)

    def _one(self, query: str, *values: Any) -> Any:
        with explained("reading the facts"):
            row = self._database.execute(query, values).fetchone()
        return None if row is None else row[0]

    def _rows(self, query: str, *values: Any) -> Iterator[Any]:
        with explained("reading the facts"):
            yield from self._database.execute(query, values)

    def profiles(self, after: int = 0) -> list[tuple[int, Facts]]:
        """Distinct facts of sessions, by number; those with a sequence above ``after``."""
        with explained("reading the facts"):
            found = Numbers(self._database, "profiles").after(after)
            return [(number, marshal.loads(facts)) for number, facts in found]

    def profile_numbers(self) -> dict[bytes, int]:
        """Every profile's number, by the digest of its facts."""
        return dict(self._rows("SELECT digest, number FROM profiles"))

    def name_sets(self, after: int = 0) -> list[tuple[int, tuple[str, ...]]]:
        """Distinct sets of names, by number; those with a sequence above ``after``."""
        with explained("reading the facts"):
            found = Numbers(self._database, "name_sets").after(after)
            return [(number, marshal.loads(facts)) for number, facts in found]

    def sessions(self) -> Iterator[SessionRow]:
        """All sessions, by client."""
        for client, profile, facts, expires, since, origin in self._rows(_SESSION + " ORDER BY client"):
            yield SessionRow(client, profile, marshal.loads(facts), expires, since, origin)

    def session(self, client: bytes) -> SessionRow | None:
        """A client's session."""
        for row in self._rows(_SESSION + " WHERE client = ?", client):
            return SessionRow(row[0], row[1], marshal.loads(row[2]), *row[3:])
        return None

    def session_profiles(self) -> list[tuple[bytes, int]]:
        """Every client with a session, and its profile: what the kernel's map holds."""
        return list(self._rows("SELECT client, profile FROM sessions"))

    def clients_of_file(self) -> set[bytes]:
        """Whose sessions come from the watched file."""
        # The index is for this very word.
        return {row[0] for row in self._rows(f"SELECT client FROM sessions WHERE origin = '{FILE}'")}

    def origins(self, clients: Collection[bytes]) -> dict[bytes, str]:
        """Where the sessions of these clients come from; those without one are left out."""
        query = "SELECT client, origin FROM sessions"
        if len(clients) > _MANY:
            return {client: origin for client, origin in self._rows(query) if client in clients}
        with explained("reading the facts"):
            return dict(among(self._database, f"{query} WHERE client", clients))

    def count_sessions(self) -> int:
        """How many sessions there are."""
        return int(self._one("SELECT count(*) FROM sessions"))

    def next_session_expiry(self) -> float | None:
        """When the next session expires."""
        found = self._one("SELECT min(expires) FROM sessions WHERE expires IS NOT NULL")
        return None if found is None else float(found)

    def names(self) -> Iterator[NameRow]:
        """All learnt names."""
        for row in self._rows("SELECT client, address, name, expires FROM names"):
            yield NameRow(*row)

    def names_at(self, client: bytes, address: bytes) -> tuple[str, ...]:
        """What an address goes by for a client; names that hold for anybody not among them."""
        query = "SELECT name FROM names WHERE client = ? AND address = ? ORDER BY name"
        return tuple(row[0] for row in self._rows(query, client, address))

    def hosts(self) -> list[tuple[tuple[bytes, bytes], int]]:
        """Every (client, address) with names, and the number of their set: what the kernel's map holds."""
        query = "SELECT client, address, name_set FROM hosts"
        return [((client, address), number) for client, address, number in self._rows(query)]

    def name_set_of(self, client: bytes, address: bytes) -> int:
        """The number of the set of names that an address has for a client; 0 for none."""
        query = "SELECT name_set FROM hosts WHERE client = ? AND address = ?"
        return int(self._one(query, client, address) or 0)

    def next_name_expiry(self) -> float | None:
        """When the next name expires."""
        found = self._one("SELECT min(expires) FROM names")
        return None if found is None else float(found)

    @contextmanager
    def change(self, patience: float | None = None) -> Iterator[Change]:
        """The one change at a time; waits for another's end, up to ten seconds or ``patience`` (BusyError).

        All of it is kept, or after an exception nothing.
        """
        with explained("changing the facts"):
            database.begin(self._database, patience)
            self.begun += 1
            try:
                change = Change(self._database)
                yield change
                change.settle()
                self._database.execute("COMMIT")
            except BaseException:
                self.undone += 1
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise


_Touched = Mapping[tuple[bytes, bytes], set[str]]


class Change:
    """A change of the store, from :meth:`Store.change`."""

    def __init__(self, connection: sqlite3.Connection):
        self._database = connection
        self._profiles = Numbers(connection, "profiles")
        self._name_sets = Numbers(connection, "name_sets")
        self.crowded_out: list[str] = []
        """Names that have made room for others, each for one client and address."""

    @property
    def document(self) -> bytes | None:
        """The resolvers' document, as this change finds it."""
        found = self._database.execute("SELECT value FROM meta WHERE key = 'document'").fetchone()[0]
        return None if found is None else bytes(found)

    def settle(self) -> None:
        """The end: numbers that nobody uses any more are free."""
        self._profiles.settle()
        self._name_sets.settle()

    # --- sessions

    def put_sessions(self, rows: Iterable[NewSession], origin: str) -> Sessions:
        """Adds sessions, or replaces those of the same clients; of two for one client the later one holds.

        A session whose facts stay keeps its ``since``.
        """
        return self.put_stored([(row.client, stored(row.facts), row.expires) for row in rows], origin)

    def put_stored(
        self,
        rows: Sequence[tuple[bytes, Stored, float | None]],
        origin: str,
        fresh: dict[bytes, int] | None = None,
    ) -> Sessions:
        """As :meth:`put_sessions`, with facts that somebody else has brought into their stored form.

        ``fresh`` says that none of the clients has a session, and holds every profile's number by its digest
        (:meth:`Store.profile_numbers`); it is kept up to date.
        """
        wanted = {client: (facts[0], expires) for client, facts, expires in rows}
        users = Counter([key for key, _ in wanted.values()])
        numbers, new = self._profiles.take(users, dict([facts for _, facts, _ in rows]), fresh)
        before = self._sessions(wanted) if fresh is None else {}
        now = time.time()
        changed: list[tuple[bytes, int]] = []
        added, updated = [], []
        for client, (key, expires) in wanted.items():
            number = numbers[key]
            old = before.get(client)
            if old is None:
                changed.append((client, number))
                added.append((client, number, expires, now, origin))
            elif old[0] != number:
                changed.append((client, number))
                updated.append((number, expires, now, origin, client))
            elif old[2:] != (expires, origin):
                updated.append((number, expires, old[1], origin, client))
        self._database.executemany("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", added)
        self._database.executemany(
            "UPDATE sessions SET profile = ?, expires = ?, since = ?, origin = ? WHERE client = ?", updated
        )
        self._profiles.use(number for _, number in changed if number not in new)
        self._profiles.release(before[client][0] for client, _ in changed if client in before)
        return Sessions(changed, [(number, marshal.loads(facts)) for number, facts in new.items()])

    def _sessions(self, clients: Collection[bytes]) -> dict[bytes, tuple[int, float, float | None, str]]:
        """(profile, since, expires, origin) of those of them that have a session."""
        query = "SELECT client, profile, since, expires, origin FROM sessions WHERE client"
        return {row[0]: row[1:] for row in among(self._database, query, clients)}

    def remove_sessions(self, clients: Iterable[bytes]) -> list[bytes]:
        """Ends sessions; returns those that were there."""
        found = self._sessions(dict.fromkeys(clients).keys())
        self._database.executemany("DELETE FROM sessions WHERE client = ?", [(client,) for client in found])
        self._profiles.release(row[0] for row in found.values())
        return list(found)

    def expire_sessions(self, now: float, most: int = 1_000_000_000) -> list[bytes]:
        """Ends the sessions that have expired by ``now``, or so many of them; returns their clients."""
        query = "SELECT client FROM sessions WHERE expires <= ? LIMIT ?"
        return self.remove_sessions([row[0] for row in self._database.execute(query, (now, most))])

    # --- names

    def learn(self, answers: Iterable[Learnt]) -> Names:
        """Adds names; a later expiry extends one that is known. Only hosts whose names changed are listed.

        Where there are too many, those that were known before make room (:attr:`crowded_out`).
        """
        touched: dict[tuple[bytes, bytes], set[str]] = {}
        clients: dict[bytes, set[tuple[bytes, bytes, str]]] = {}
        known = "SELECT expires FROM names WHERE client = ? AND address = ? AND name = ?"
        extend = "UPDATE names SET expires = ? WHERE client = ? AND address = ? AND name = ?"
        for answer in answers:
            where = (answer.client, answer.address, answer.name)
            row = self._database.execute(known, where).fetchone()
            if row is None:
                self._database.execute("INSERT INTO names VALUES (?, ?, ?, ?)", answer)
                touched.setdefault((answer.client, answer.address), set()).add(answer.name)
                if answer.client != ANYBODY:
                    clients.setdefault(household(answer.client), set()).add(where)
            elif row[0] < answer.expires:
                self._database.execute(extend, (answer.expires, *where))
        for client, new in clients.items():
            for who, address, name in self._crowded(client, new):
                touched.setdefault((who, address), set()).discard(name)
        return self._rename(touched)

    def _crowded(self, client: bytes, new: set[tuple[bytes, bytes, str]]) -> list[tuple[bytes, bytes, str]]:
        """Takes away what a client has too many of; ``new`` only if there is nothing else."""
        of_client = "FROM names WHERE client BETWEEN ? AND ?"
        between = client.ljust(16, b"\0"), client.ljust(16, b"\xff")
        (count,) = self._database.execute(f"SELECT count(*) {of_client}", between).fetchone()
        if count <= NAMES_PER_CLIENT:
            return []
        # With the plus, the index of all names by expiry is not walked for one client's.
        query = f"SELECT client, address, name {of_client} ORDER BY +expires LIMIT ?"
        excess = count - NAMES_PER_CLIENT
        rows = self._database.execute(query, (*between, excess + len(new))).fetchall()
        gone = sorted(rows, key=new.__contains__)[:excess]
        self._forget(gone)
        self.crowded_out += [name for _, _, name in gone]
        return gone

    def forget_names(
        self,
        now: float,
        origins: Container[bytes] = (),
        pairs: Container[bytes] = (),
        most: int = 1_000_000_000,
        after: Place = FIRST,
    ) -> tuple[Names, Place | None]:
        """Expired names go, unless a live flow needs them.

        A client's own name is kept while its address behind the client's is in ``pairs``, a name that holds
        for ANYBODY while its address is in ``origins``. Looks at up to ``most`` names behind ``after``;
        returns also where to go on, None at the end.
        """
        query = (
            "SELECT expires, client, address, name FROM names WHERE expires <= ? "
            "AND (expires, client, address, name) > (?, ?, ?, ?) "
            "ORDER BY expires, client, address, name LIMIT ?"
        )
        rows: list[Place] = self._database.execute(query, (now, *after, most)).fetchall()
        gone = [
            (client, address, name)
            for _, client, address, name in rows
            if not (address in origins if client == ANYBODY else client + address in pairs)
        ]
        self._forget(gone)
        names = self._rename({(client, address): set() for client, address, _ in gone})
        return names, rows[-1] if len(rows) == most else None

    def _forget(self, gone: Iterable[tuple[bytes, bytes, str]]) -> None:
        self._database.executemany("DELETE FROM names WHERE client = ? AND address = ? AND name = ?", gone)

    def _rename(self, hosts: _Touched) -> Names:
        """Gives these hosts the sets of their names as they are now; with each, which are new."""
        sets = {host: self._names_of(host, new) for host, new in hosts.items()}
        values = {digest(names): names for names in sets.values() if names}
        users = Counter(digest(names) for names in sets.values() if names)
        numbers, new = self._name_sets.take(users, values)
        changed: list[tuple[tuple[bytes, bytes], int]] = []
        current = "SELECT name_set FROM hosts WHERE client = ? AND address = ?"
        for host, names in sets.items():
            number = numbers[digest(names)] if names else 0
            row = self._database.execute(current, host).fetchone()
            before = row[0] if row else 0
            if before == number:
                continue
            if before:
                self._name_sets.release([before])
            if not number:
                self._database.execute("DELETE FROM hosts WHERE client = ? AND address = ?", host)
            else:
                self._database.execute("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?)", (*host, number))
                if number not in new:
                    self._name_sets.use([number])
            changed.append((host, number))
        return Names(changed, [(number, marshal.loads(names)) for number, names in new.items()])

    def _names_of(self, host: tuple[bytes, bytes], new: Collection[str]) -> bytes:
        query = "SELECT name FROM names WHERE client = ? AND address = ? ORDER BY expires DESC"
        names = [row[0] for row in self._database.execute(query, host)]
        limit = NAMES_PER_SHARED_HOST if host[0] == ANYBODY else NAMES_PER_HOST
        if len(names) > limit:
            names.sort(key=lambda name: name not in new)
            self._forget((*host, name) for name in names[limit:])
            self.crowded_out += names[limit:]
        return marshal.dumps(tuple(sorted(names[:limit])), 2) if names else b""

    # --- the policy bank

    def switch(self, document: bytes, bank: int) -> None:
        """A new bank's resolvers are in force: the document, and a generation more."""
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'bank'", (bank,))
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'document'", (document,))
        self._database.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
