"""The store of facts: the single truth of who has a session and which names were learnt.

Whoever changes what the kernel holds of facts, or switches the policy bank, does it within a
:meth:`Store.change`; so no session and no name falls between two generations.
"""

from __future__ import annotations

import marshal
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
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
    "stored",
]

NAMES_PER_HOST = 4096
"""Names that one address may have for one client; those that expire first make room."""
# From so many on reading all rows is quicker than looking for each.
_MANY = 10_000
_SESSION = (
    "SELECT client, profile, value, expires, since, origin FROM sessions JOIN profiles ON number = profile"
)


Stored = tuple[bytes, bytes]
"""Facts as they are stored, behind the digest that they are found by."""


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
    def change(self) -> Iterator[Change]:
        """The one change at a time; waits for another's end, up to ten seconds (BusyError).

        All of it is kept, or after an exception nothing.
        """
        with explained("changing the facts"):
            database.begin(self._database)
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


class Change:
    """A change of the store, from :meth:`Store.change`."""

    def __init__(self, connection: sqlite3.Connection):
        self._database = connection
        self._profiles = Numbers(connection, "profiles")
        self._name_sets = Numbers(connection, "name_sets")

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

    def replace_file_sessions(self, rows: Iterable[NewSession]) -> tuple[Sessions, list[bytes]]:
        """Makes these the sessions of the watched file; returns what changed, and who has none any more."""
        rows = list(rows)
        changed = self.put_sessions(rows, FILE)
        named = {row.client for row in rows}
        query = f"SELECT client FROM sessions WHERE origin = '{FILE}'"
        gone = [row[0] for row in self._database.execute(query) if row[0] not in named]
        return changed, self.remove_sessions(gone)

    def expire_sessions(self, now: float, most: int = 1_000_000_000) -> list[bytes]:
        """Ends the sessions that have expired by ``now``, or so many of them; returns their clients."""
        query = "SELECT client FROM sessions WHERE expires <= ? LIMIT ?"
        return self.remove_sessions([row[0] for row in self._database.execute(query, (now, most))])

    # --- names

    def learn(self, answers: Iterable[Learnt]) -> Names:
        """Adds names; a later expiry extends one that is known. Only hosts whose names changed are listed."""
        touched: dict[tuple[bytes, bytes], None] = {}
        known = "SELECT expires FROM names WHERE client = ? AND address = ? AND name = ?"
        extend = "UPDATE names SET expires = ? WHERE client = ? AND address = ? AND name = ?"
        for answer in answers:
            where = (answer.client, answer.address, answer.name)
            row = self._database.execute(known, where).fetchone()
            if row is None:
                self._database.execute("INSERT INTO names VALUES (?, ?, ?, ?)", answer)
                touched[answer.client, answer.address] = None
            elif row[0] < answer.expires:
                self._database.execute(extend, (answer.expires, *where))
        return self._rename(touched)

    def forget_names(self, now: float, alive: Collection[bytes]) -> Names:
        """Expired names go, unless their address is in ``alive``: the destinations of live flows."""
        query = "SELECT client, address, name FROM names WHERE expires <= ?"
        gone = [row for row in self._database.execute(query, (now,)) if row[1] not in alive]
        self._database.executemany("DELETE FROM names WHERE client = ? AND address = ? AND name = ?", gone)
        return self._rename(dict.fromkeys((client, address) for client, address, _ in gone))

    def _rename(self, hosts: Iterable[tuple[bytes, bytes]]) -> Names:
        """Gives these hosts the sets of their names as they are now."""
        sets = {host: self._names_of(host) for host in hosts}
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

    def _names_of(self, host: tuple[bytes, bytes]) -> bytes:
        query = "SELECT name FROM names WHERE client = ? AND address = ? ORDER BY expires DESC"
        names = [row[0] for row in self._database.execute(query, host)]
        if len(names) > NAMES_PER_HOST:
            self._database.executemany(
                "DELETE FROM names WHERE client = ? AND address = ? AND name = ?",
                [(*host, name) for name in names[NAMES_PER_HOST:]],
            )
        return marshal.dumps(tuple(sorted(names[:NAMES_PER_HOST])), 2) if names else b""

    # --- the policy bank

    def switch(self, document: bytes, bank: int) -> None:
        """A new bank's resolvers are in force: the document, and a generation more."""
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'bank'", (bank,))
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'document'", (document,))
        self._database.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
