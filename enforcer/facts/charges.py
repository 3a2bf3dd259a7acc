"""What each client is charged for the names in the store: bytes, kept with the rows that they are for."""

from __future__ import annotations

import sqlite3

NO_CLIENT = b""
"""Is charged for names that no client's answer caused; bounded in all only."""


class Charges:
    """The accounts within one change; :meth:`settle` writes what changed."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        self._stored: dict[bytes, int] = {}
        self._now: dict[bytes, int] = {}

    def of(self, payer: bytes) -> int:
        """What this client is charged."""
        if payer not in self._now:
            query = "SELECT bytes FROM charges WHERE payer = ?"
            row = self._database.execute(query, (payer,)).fetchone()
            self._stored[payer] = self._now[payer] = row[0] if row else 0
        return self._now[payer]

    def add(self, payer: bytes, size: int) -> None:
        """Charges a client; a negative size gives back."""
        self._now[payer] = self.of(payer) + size

    @property
    def total(self) -> int:
        """What all clients together are charged."""
        (stored,) = self._database.execute("SELECT value FROM meta WHERE key = 'charged'").fetchone()
        return int(stored) + sum(self._now.values()) - sum(self._stored.values())

    def largest(self) -> bytes:
        """The client that is charged most."""
        self.settle()
        query = "SELECT payer FROM charges ORDER BY bytes DESC LIMIT 1"
        return bytes(self._database.execute(query).fetchone()[0])

    def settle(self) -> None:
        """Writes the accounts that changed."""
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
