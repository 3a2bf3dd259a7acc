"""The store of facts: the single truth of who has a session and which names were learnt.

Whoever changes what the kernel holds of facts, or switches the policy bank, does it within a
:meth:`Store.change`; so no session and no name falls between two generations.
"""

from __future__ import annotations

import marshal
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from enforcer.errors import KernelError
from enforcer.facts import database
from enforcer.facts.database import among, explained
from enforcer.facts.names import BYTES_IN_ALL, FIRST, ExpiryCursor, LearntNames
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

LARGEST_LOG = 256 << 20
"""Bytes of the write-ahead log with which no more names are learnt; loading sessions needs up to 200 MB."""
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
        self._names_in_all = min(BYTES_IN_ALL, database.size_of_filesystem(path) // 4)
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
        for row in self._rows(
            "SELECT client, address, texts.text, expires FROM names JOIN texts ON number = names.text"
        ):
            yield NameRow(*row)

    def names_at(self, client: bytes, address: bytes) -> tuple[str, ...]:
        """What an address goes by for a client; names that hold for anybody not among them."""
        query = (
            "SELECT texts.text FROM names JOIN texts ON number = names.text WHERE client = ? AND address = ?"
        )
        return tuple(sorted(row[0] for row in self._rows(query, client, address)))

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

    def check_log(self) -> None:
        """KernelError while the write-ahead log is too large to go on learning names.

        It cannot be begun again while a command reads an older state.
        """
        if database.size_of_log(self.path) <= LARGEST_LOG:
            return
        with explained("tidying up the facts"):
            database.tidy(self._database)
        if database.size_of_log(self.path) > LARGEST_LOG:
            raise KernelError(
                f"{self.path}-wal is above {LARGEST_LOG >> 20} MiB: a command reads the facts without end",
                f"End it: fuser -v {self.path}",
            )

    @contextmanager
    def change(self, patience: float | None = None) -> Iterator[Change]:
        """The one change at a time; waits for another's end, up to ten seconds or ``patience`` (BusyError).

        All of it is kept, or after an exception nothing.
        """
        with explained("changing the facts"):
            database.begin(self._database, patience)
            self.begun += 1
            try:
                change = Change(self._database, self._names_in_all)
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

    def __init__(self, connection: sqlite3.Connection, in_all: int):
        self._database = connection
        self._profiles = Numbers(connection, "profiles")
        self._names = LearntNames(connection, in_all)

    @property
    def document(self) -> bytes | None:
        """The resolvers' document, as this change finds it."""
        found = self._database.execute("SELECT value FROM meta WHERE key = 'document'").fetchone()[0]
        return None if found is None else bytes(found)

    def settle(self) -> None:
        """The end: numbers that nobody uses any more are free."""
        self._profiles.settle()
        self._names.settle()

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
        return self._names.learn(answers)

    @property
    def crowded_out(self) -> list[str]:
        """Names that have made room for others, each for one client and address."""
        return self._names.crowded_out

    def forget_names(
        self,
        now: float,
        origins: Container[bytes] = (),
        pairs: Container[bytes] = (),
        most: int = 1_000_000_000,
        after: ExpiryCursor = FIRST,
    ) -> tuple[Names, ExpiryCursor | None]:
        """Expired names go, unless a live flow needs them.

        A client's own name is kept while its address behind the client's is in ``pairs``, a name that holds
        for ANYBODY while its address is in ``origins``. Looks at up to ``most`` names behind ``after``;
        returns also where to go on, None at the end.
        """
        return self._names.forget(now, origins, pairs, most, after)

    # --- the policy bank

    def switch(self, document: bytes, bank: int) -> None:
        """A new bank's resolvers are in force: the document, and a generation more."""
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'bank'", (bank,))
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'document'", (document,))
        self._database.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
