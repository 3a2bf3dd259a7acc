"""The store of facts: the authority on sessions and learnt names.

Code that changes the kernel's maps of facts, or switches the policy bank, does so within a
:meth:`Store.transaction`. So no session and no name is lost between two generations.
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
    ANY_CLIENT,
    COMMAND,
    FILE,
    ChangedNames,
    ChangedSessions,
    LearntName,
    NameRow,
    NewSession,
    SessionRow,
)
from enforcer.policy.facts import Facts

__all__ = [
    "ANY_CLIENT",
    "COMMAND",
    "FILE",
    "NUMBERS",
    "ChangedNames",
    "ChangedSessions",
    "LearntName",
    "NameRow",
    "NewSession",
    "SessionRow",
    "Store",
    "Stored",
    "Transaction",
    "stored",
]

LARGEST_LOG = 256 << 20
"""Size of the write-ahead log, in bytes, above which no names are learnt; bulk loads need up to 200 MB."""
# From this number of clients on, reading all rows is faster than one look-up each.
_MANY = 10_000
_SESSION = (
    "SELECT client, profile, value, expires, since, origin FROM sessions JOIN profiles ON number = profile"
)


Stored = tuple[bytes, bytes]
"""Digest of the facts, and the facts in stored form."""


def stored(facts: Facts) -> Stored:
    """Return the stored form of facts, which is equal for equal facts.

    marshal takes a fifth of JSON's time, which matters for 100,000 sessions. Version 2 has no references, so
    equal values give equal bytes, and every later Python reads it.
    """
    value = marshal.dumps(dict(sorted(facts.items())), 2)
    return digest(value), value


class Store:
    """The facts of one gateway. All methods raise BusyError and KernelError.

    Without ``create`` (commands that only read) a missing file is a NotInstalledError.
    """

    def __init__(self, path: Path, *, create: bool = True):
        self.path = path
        self._database = database.connect(path, create=create)
        self._names_in_all = min(BYTES_IN_ALL, database.size_of_filesystem(path) // 4)
        self._file = path.stat().st_ino
        self.undone = 0
        """Number of transactions rolled back, whose entries in the kernel's maps may still exist."""
        self.begun = 0
        """Number of transactions begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def restore(self) -> bool:
        """Write the file again if its path no longer leads to the opened file; return whether it did.

        Replaces a file that another process created at the path: it lacks this connection's data.
        """
        if self.path.exists() and self.path.stat().st_ino == self._file:
            return False
        self._database = database.replace(self._database, self.path)
        self._file = self.path.stat().st_ino
        return True

    @property
    def version(self) -> int:
        """A number that differs after every commit of another connection."""
        return int(self._one("PRAGMA data_version"))

    def prepare_bulk_load(self) -> None:
        """Prepare a bulk load by a process that then ends: larger cache, rare checkpoints of the log."""
        with explained("opening the facts"):
            self._database.execute("PRAGMA cache_size = -65536")
            self._database.execute("PRAGMA wal_autocheckpoint = 50000")

    @property
    def generation(self) -> int:
        """A number that rises with each switch of the policy bank."""
        return int(self._meta("generation"))

    @property
    def document(self) -> bytes | None:
        """The resolvers' document of the bank in force."""
        found = self._meta("document")
        return None if found is None else bytes(found)

    @property
    def bank(self) -> int | None:
        """Number of the bank that the document describes."""
        found = self._meta("bank")
        return None if found is None else int(found)

    @property
    def sequence(self) -> int:
        """A number that rises with every profile or set of names that gets a number."""
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
        """Return the distinct facts of sessions, by number, with a sequence above ``after``."""
        with explained("reading the facts"):
            found = Numbers(self._database, "profiles").after(after)
            return [(number, marshal.loads(facts)) for number, facts in found]

    def profile_numbers(self) -> dict[bytes, int]:
        """Return every profile's number by the digest of its facts."""
        return dict(self._rows("SELECT digest, number FROM profiles"))

    def name_sets(self, after: int = 0) -> list[tuple[int, tuple[str, ...]]]:
        """Return the distinct sets of names, by number, with a sequence above ``after``."""
        with explained("reading the facts"):
            found = Numbers(self._database, "name_sets").after(after)
            return [(number, marshal.loads(facts)) for number, facts in found]

    def sessions(self) -> Iterator[SessionRow]:
        """Yield all sessions in order of client address."""
        for client, profile, facts, expires, since, origin in self._rows(_SESSION + " ORDER BY client"):
            yield SessionRow(client, profile, marshal.loads(facts), expires, since, origin)

    def session(self, client: bytes) -> SessionRow | None:
        """Return a client's session, or None."""
        for row in self._rows(_SESSION + " WHERE client = ?", client):
            return SessionRow(row[0], row[1], marshal.loads(row[2]), *row[3:])
        return None

    def session_profiles(self) -> list[tuple[bytes, int]]:
        """Return every client with a session and its profile, as the map `sessions` holds them."""
        return list(self._rows("SELECT client, profile FROM sessions"))

    def clients_of_file(self) -> set[bytes]:
        """Return the clients whose sessions come from the watched file."""
        # The partial index `sessions_of_file` needs the literal.
        return {row[0] for row in self._rows(f"SELECT client FROM sessions WHERE origin = '{FILE}'")}

    def origins(self, clients: Collection[bytes]) -> dict[bytes, str]:
        """Return the origin of each of these clients' sessions; clients without a session are omitted."""
        query = "SELECT client, origin FROM sessions"
        if len(clients) > _MANY:
            return {client: origin for client, origin in self._rows(query) if client in clients}
        with explained("reading the facts"):
            return dict(among(self._database, f"{query} WHERE client", clients))

    def count_sessions(self) -> int:
        """Return the number of sessions."""
        return int(self._one("SELECT count(*) FROM sessions"))

    def next_session_expiry(self) -> float | None:
        """Return the time at which the next session expires, or None."""
        found = self._one("SELECT min(expires) FROM sessions WHERE expires IS NOT NULL")
        return None if found is None else float(found)

    def names(self) -> Iterator[NameRow]:
        """Yield all learnt names."""
        for row in self._rows(
            "SELECT client, address, texts.text, expires FROM names JOIN texts ON number = names.text"
        ):
            yield NameRow(*row)

    def names_at(self, client: bytes, address: bytes) -> tuple[str, ...]:
        """Return the names of an address for a client, sorted, without those for ANY_CLIENT."""
        query = (
            "SELECT texts.text FROM names JOIN texts ON number = names.text WHERE client = ? AND address = ?"
        )
        return tuple(sorted(row[0] for row in self._rows(query, client, address)))

    def hosts(self) -> list[tuple[tuple[bytes, bytes], int]]:
        """Return the number of the set of each (client, address) with names, as the map `hosts` holds it."""
        query = "SELECT client, address, name_set FROM hosts"
        return [((client, address), number) for client, address, number in self._rows(query)]

    def name_set_of(self, client: bytes, address: bytes) -> int:
        """Return the number of the set of names of an address for a client; 0: none."""
        query = "SELECT name_set FROM hosts WHERE client = ? AND address = ?"
        return int(self._one(query, client, address) or 0)

    def next_name_expiry(self) -> float | None:
        """Return the time at which the next name expires, or None."""
        found = self._one("SELECT min(expires) FROM names")
        return None if found is None else float(found)

    def check_log(self) -> None:
        """Raise KernelError while the write-ahead log is larger than LARGEST_LOG.

        SQLite cannot truncate the log while a command reads an older state.
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
    def transaction(self, patience: float | None = None) -> Iterator[Transaction]:
        """Begin a write transaction; wait for another one up to ``patience`` seconds (default 10), BusyError.

        An exception rolls it back.
        """
        with explained("changing the facts"):
            database.begin(self._database, patience)
            self.begun += 1
            try:
                transaction = Transaction(self._database, self._names_in_all)
                yield transaction
                transaction.finish()
                self._database.execute("COMMIT")
            except BaseException:
                self.undone += 1
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise


class Transaction:
    """A write transaction on the store; :meth:`Store.transaction` makes it."""

    def __init__(self, connection: sqlite3.Connection, in_all: int):
        self._database = connection
        self._profiles = Numbers(connection, "profiles")
        self._names = LearntNames(connection, in_all)

    @property
    def document(self) -> bytes | None:
        """The resolvers' document, as read within this transaction."""
        found = self._database.execute("SELECT value FROM meta WHERE key = 'document'").fetchone()[0]
        return None if found is None else bytes(found)

    def finish(self) -> None:
        """Finish before the commit: delete unused values and free their numbers."""
        self._profiles.finish()
        self._names.finish()

    # --- sessions

    def put_sessions(self, rows: Iterable[NewSession], origin: str) -> ChangedSessions:
        """Add sessions, or replace those of the same clients; of two for one client the later one counts.

        A session with unchanged facts keeps its ``since``.
        """
        return self.put_stored([(row.client, stored(row.facts), row.expires) for row in rows], origin)

    def put_stored(
        self,
        rows: Sequence[tuple[bytes, Stored, float | None]],
        origin: str,
        fresh: dict[bytes, int] | None = None,
    ) -> ChangedSessions:
        """As :meth:`put_sessions`, for facts in stored form.

        ``fresh`` says that none of the clients has a session. It holds every profile's number by its digest
        (:meth:`Store.profile_numbers`), and this method adds new ones to it.
        """
        wanted = {client: (facts[0], expires) for client, facts, expires in rows}
        users = Counter([key for key, _ in wanted.values()])
        numbers, new = self._profiles.assign(users, dict([facts for _, facts, _ in rows]), fresh)
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
        self._profiles.add_users(number for _, number in changed if number not in new)
        self._profiles.remove_users(before[client][0] for client, _ in changed if client in before)
        return ChangedSessions(changed, [(number, marshal.loads(facts)) for number, facts in new.items()])

    def _sessions(self, clients: Collection[bytes]) -> dict[bytes, tuple[int, float, float | None, str]]:
        """Return (profile, since, expires, origin) of the clients that have a session."""
        query = "SELECT client, profile, since, expires, origin FROM sessions WHERE client"
        return {row[0]: row[1:] for row in among(self._database, query, clients)}

    def remove_sessions(self, clients: Iterable[bytes]) -> list[bytes]:
        """End sessions; return the clients that had one."""
        found = self._sessions(dict.fromkeys(clients).keys())
        self._database.executemany("DELETE FROM sessions WHERE client = ?", [(client,) for client in found])
        self._profiles.remove_users(row[0] for row in found.values())
        return list(found)

    def expire_sessions(self, now: float, most: int = 1_000_000_000) -> list[bytes]:
        """End up to ``most`` sessions that have expired by ``now``; return their clients."""
        query = "SELECT client FROM sessions WHERE expires <= ? LIMIT ?"
        return self.remove_sessions([row[0] for row in self._database.execute(query, (now, most))])

    # --- names

    def learn(self, answers: Iterable[LearntName]) -> ChangedNames:
        """Add names; a later expiry extends a known one. Return the hosts whose names changed.

        Beyond a limit, older names are removed (:attr:`crowded_out`).
        """
        return self._names.learn(answers)

    @property
    def crowded_out(self) -> list[str]:
        """Names removed because of a limit, each for one client and address."""
        return self._names.crowded_out

    def forget_names(
        self,
        now: float,
        origins: Container[bytes] = (),
        pairs: Container[bytes] = (),
        most: int = 1_000_000_000,
        after: ExpiryCursor = FIRST,
    ) -> tuple[ChangedNames, ExpiryCursor | None]:
        """Delete expired names, unless a live flow uses them.

        A name for one client stays while ``pairs`` has the client's address followed by the name's; one for
        ANY_CLIENT stays while ``origins`` has its address. Checks up to ``most`` names after ``after``;
        returns also the cursor for the next call, None at the end.
        """
        return self._names.forget(now, origins, pairs, most, after)

    # --- the policy bank

    def record_bank(self, document: bytes, bank: int) -> None:
        """Record a new bank in force with the document of its resolvers; raise the generation."""
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'bank'", (bank,))
        self._database.execute("UPDATE meta SET value = ? WHERE key = 'document'", (document,))
        self._database.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
