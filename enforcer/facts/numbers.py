"""Numbers for distinct values (profiles, sets of names), which the kernel's maps use as keys.

A value keeps its number while it has users. A free number is assigned again, but never in the transaction
that freed it: the kernel's maps may hold it until that transaction ends.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from enforcer.errors import EnforcerError
from enforcer.facts.database import among

NUMBERS = (1 << 20) - 1
"""The last number."""


def digest(value: bytes) -> bytes:
    """Return the key of a value: 128 bits of BLAKE2b."""
    return hashlib.blake2b(value, digest_size=16).digest()


class Numbers:
    """The values of one table in stored form, by digest, each with its number of users."""

    def __init__(self, database: sqlite3.Connection, table: str):
        self._database = database
        self._table = table
        self._released: set[int] = set()

    def assign(
        self,
        users: Mapping[bytes, int],
        values: Mapping[bytes, bytes],
        known: dict[bytes, int] | None = None,
    ) -> tuple[dict[bytes, int], dict[int, bytes]]:
        """Return the numbers of the digests in ``users``, and the values that are new.

        A new value starts with its count in ``users``. ``known`` has all numbers, if the caller knows them;
        new ones are added to it. EnforcerError if the numbers are used up.
        """
        numbers = self._known(users) if known is None else known
        new = [key for key in users if key not in numbers]
        if not new:
            return numbers, {}
        sequence = self._next_sequence()
        free = self._free(len(new))
        self._database.executemany(
            f"INSERT INTO {self._table} VALUES (?, ?, ?, ?, ?)",
            [(number, key, sequence, users[key], values[key]) for number, key in zip(free, new, strict=True)],
        )
        numbers.update(zip(new, free, strict=True))
        return numbers, {number: values[key] for number, key in zip(free, new, strict=True)}

    def add_users(self, numbers: Iterable[int]) -> None:
        """Add one user for each occurrence of a number."""
        self._database.executemany(
            f"UPDATE {self._table} SET users = users + ? WHERE number = ?",
            [(users, number) for number, users in Counter(numbers).items()],
        )

    def remove_users(self, numbers: Iterable[int]) -> None:
        """Remove one user for each occurrence of a number; :meth:`finish` deletes values without users."""
        counts = Counter(numbers)
        self._database.executemany(
            f"UPDATE {self._table} SET users = users - ? WHERE number = ?",
            [(users, number) for number, users in counts.items()],
        )
        self._released.update(counts)

    def finish(self) -> None:
        """End the transaction: delete values without users and free their numbers."""
        if not self._released:
            return
        self._database.executemany(
            f"DELETE FROM {self._table} WHERE number = ? AND users = 0",
            [(number,) for number in self._released],
        )
        self._database.executemany(
            f"INSERT INTO {self._table}_free SELECT ?1 "
            f"WHERE NOT EXISTS (SELECT 1 FROM {self._table} WHERE number = ?1)",
            [(number,) for number in self._released],
        )
        self._released.clear()

    def after(self, sequence: int) -> Iterator[tuple[int, bytes]]:
        """Return the values with a sequence above ``sequence``, by number."""
        return self._database.execute(
            f"SELECT number, value FROM {self._table} WHERE sequence > ? ORDER BY number", (sequence,)
        )

    def _known(self, keys: Collection[bytes]) -> dict[bytes, int]:
        return dict(among(self._database, f"SELECT digest, number FROM {self._table} WHERE digest", keys))

    def _free(self, count: int) -> list[int]:
        """Reserve ``count`` free numbers."""
        tops = [
            f"ifnull((SELECT max(number) FROM {table}), 0)" for table in (self._table, f"{self._table}_free")
        ]
        last = int(self._database.execute(f"SELECT max({', '.join(tops)})").fetchone()[0])
        query = f"SELECT number FROM {self._table}_free ORDER BY number LIMIT ?"
        free = [row[0] for row in self._database.execute(query, (count,))]
        lacking = count - len(free)
        if last + lacking > NUMBERS:
            kind = self._table.replace("_", " ")
            raise EnforcerError(
                f"more than {NUMBERS:,} distinct {kind}, which is as many as there are numbers for",
                "Take some away in one change, and add others in the next.",
            )
        self._database.executemany(
            f"DELETE FROM {self._table}_free WHERE number = ?", [(number,) for number in free]
        )
        return free + list(range(last + 1, last + 1 + lacking))

    def _next_sequence(self) -> int:
        query = "UPDATE meta SET value = value + 1 WHERE key = 'sequence' RETURNING value"
        return int(self._database.execute(query).fetchone()[0])
