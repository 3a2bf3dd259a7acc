"""Distinct values of one kind, each with a number that the kernel's maps know it by.

A value keeps its number for as long as somebody uses it. A number that nobody uses is given again, but never
in the change that freed it: the kernel may still hold it until that change is done.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from enforcer.errors import EnforcerError

NUMBERS = (1 << 20) - 1
"""The last number."""
# From so many on one scan of an index is cheaper than a look-up each.
_MANY = 1000


def digest(text: str) -> bytes:
    """What a value is found by: 128 bits of BLAKE2b."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Numbers:
    """The values of ``table``, which rows of ``users`` refer to by ``column``; texts, as they are stored."""

    def __init__(self, database: sqlite3.Connection, table: str, users: str, column: str):
        self._database = database
        self._table = table
        self._users = users
        self._column = column
        self._released: set[int] = set()

    def take(self, texts: Iterable[str]) -> tuple[dict[str, int], list[tuple[int, str]]]:
        """Numbers by text, and which of them are new. Raises EnforcerError if there are too many values."""
        keys = {text: digest(text) for text in texts}
        known = self._known(list(keys.values()))
        new = [text for text, key in keys.items() if key not in known]
        numbered: list[tuple[int, str]] = []
        if new:
            sequence = self._next_sequence()
            numbered = list(zip(self._free(len(new)), new, strict=True))
            self._database.executemany(
                f"INSERT INTO {self._table} VALUES (?, ?, ?, ?)",
                [(number, keys[text], sequence, text) for number, text in numbered],
            )
            known |= {keys[text]: number for number, text in numbered}
        return {text: known[key] for text, key in keys.items()}, numbered

    def release(self, numbers: Iterable[int]) -> None:
        """Somebody no longer uses these: at the change's end those go that nobody uses."""
        self._released.update(numbers)

    def settle(self) -> None:
        """The change's end: values without users go, and their numbers are free."""
        unused = sorted(self._released - self._in_use())
        self._released.clear()
        rows = [(number,) for number in unused]
        self._database.executemany(f"DELETE FROM {self._table} WHERE number = ?", rows)
        self._database.executemany(f"INSERT INTO {self._table}_free VALUES (?)", rows)

    def after(self, sequence: int) -> Iterator[tuple[int, str]]:
        """The values that are newer than this, by number."""
        return self._database.execute(
            f"SELECT number, value FROM {self._table} WHERE sequence > ? ORDER BY number", (sequence,)
        )

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        if len(keys) > _MANY:
            return dict(self._database.execute(f"SELECT digest, number FROM {self._table}"))
        query = f"SELECT number FROM {self._table} WHERE digest = ?"
        found = ((key, self._database.execute(query, (key,)).fetchone()) for key in keys)
        return {key: row[0] for key, row in found if row is not None}

    def _in_use(self) -> set[int]:
        if len(self._released) > _MANY:
            return {row[0] for row in self._database.execute(f"SELECT {self._column} FROM {self._users}")}
        query = f"SELECT 1 FROM {self._users} WHERE {self._column} = ? LIMIT 1"
        return {number for number in self._released if self._database.execute(query, (number,)).fetchone()}

    def _free(self, count: int) -> list[int]:
        query = f"SELECT number FROM {self._table}_free ORDER BY number LIMIT ?"
        free = [row[0] for row in self._database.execute(query, (count,))]
        self._database.executemany(
            f"DELETE FROM {self._table}_free WHERE number = ?", [(one,) for one in free]
        )
        query = (
            f"SELECT max(ifnull((SELECT max(number) FROM {self._table}), 0), "
            f"ifnull((SELECT max(number) FROM {self._table}_free), 0))"
        )
        last = max([self._database.execute(query).fetchone()[0], *free[-1:]])
        lacking = count - len(free)
        if last + lacking > NUMBERS:
            kind = self._table.replace("_", " ")
            raise EnforcerError(
                f"more than {NUMBERS:,} distinct {kind}, which is as many as there are numbers for",
                "Take some away in one change, and add others in the next.",
            )
        return free + list(range(last + 1, last + 1 + lacking))

    def _next_sequence(self) -> int:
        query = "UPDATE meta SET value = value + 1 WHERE key = 'sequence' RETURNING value"
        return int(self._database.execute(query).fetchone()[0])
