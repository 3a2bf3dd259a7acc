"""Accounts of the bytes that each client's learnt names take in the store, in the same database file."""

from __future__ import annotations

import sqlite3

NO_CLIENT = b""
"""The account of names that no client's answer caused; only the total limits it."""


class Charges:
    """The accounts within one transaction; :meth:`finish` writes the changed ones."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        self._stored: dict[bytes, int] = {}
        self._now: dict[bytes, int] = {}

    def charge_of(self, payer: bytes) -> int:
        """Return a client's charge in bytes."""
        if payer not in self._now:
            query = "SELECT bytes FROM charges WHERE payer = ?"
            row = self._database.execute(query, (payer,)).fetchone()
            self._stored[payer] = self._now[payer] = row[0] if row else 0
        return self._now[payer]

    def add(self, payer: bytes, size: int) -> None:
        """Add ``size`` bytes to a client's charge; negative sizes reduce it."""
        self._now[payer] = self.charge_of(payer) + size

    @property
    def total(self) -> int:
        """The charge of all clients together, in bytes."""
        (stored,) = self._database.execute("SELECT value FROM meta WHERE key = 'charged'").fetchone()
        return int(stored) + sum(self._now.values()) - sum(self._stored.values())

    def largest(self) -> bytes:
        """Return the client with the largest charge."""
        self.finish()
        query = "SELECT payer FROM charges ORDER BY bytes DESC LIMIT 1"
        return bytes(self._database.execute(query).fetchone()[0])

    def finish(self) -> None:
        """Write the changed accounts."""
        changed = [payer for payer, size in self._now.items() if size != self._stored[payer]]
        if not changed:
            return
        difference = sum(self._now[payer] - self._stored[payer] for payer in changed)
        self._database.execute("UPDATE meta SET value = value + ? WHERE key = 'charged'", (difference,))
        rows = [(payer, self._now[payer]) for payer in changed]
        self._database.executemany("INSERT OR REPLACE INTO charges VALUES (?, ?)", rows)
        if any(size == 0 for _, size in rows):
            self._database.execute("DELETE FROM charges WHERE bytes = 0")
        self._stored.update(rows)
