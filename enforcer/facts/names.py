"""The names of addresses in the store, within one change: learnt, forgotten, bounded.

A row says that an address goes by a name for a client, or for ANYBODY. Each row is charged to a client
(:func:`client_prefix`): its own, or the one whose answer caused a row for ANYBODY. A client that is charged
for more than its share makes room among the rows that it is charged for, so it takes nothing from others.
A row for ANYBODY that several clients' answers named is charged to the one of them that is charged least: a
client that fills its share cannot take a common name with it.

All costs depend on the number of rows that are written, not on how many a client has.
"""

from __future__ import annotations

import marshal
import sqlite3
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from typing import NamedTuple

from enforcer.constants import MAPPED
from enforcer.facts.charges import NO_CLIENT, Charges
from enforcer.facts.database import ROW, among
from enforcer.facts.numbers import Numbers, digest
from enforcer.facts.rows import ANYBODY, Learnt, Names

NAMES_PER_HOST = 64
"""Names that one address may have for one client; of those known before the first to expire makes room."""
NAMES_PER_SHARED_HOST = 256
"""The same for ANYBODY."""
BYTES_OF_CLIENT = 8 << 20
"""What one client may be charged; the first to expire of the rows that it pays for make room."""
BYTES_IN_ALL = 192 << 20
"""What all together may be charged; the client that is charged most makes room. Bounds rows, too: fewer than
the kernel's map has room for."""

ExpiryCursor = tuple[float, bytes, bytes, int]
"""The position of a row in order of expiry: expires, client, address, number of the name."""
FIRST: ExpiryCursor = (-1.0, b"", b"", 0)
"""The position before every row; :meth:`LearntNames.forget` begins there."""

# The order matters: the rows that are looked for first, each one's name then.
_JOINED = "FROM names CROSS JOIN texts ON number = names.text"

_Host = tuple[bytes, bytes]
_Key = tuple[bytes, bytes, int]


class _Row(NamedTuple):
    client: bytes
    address: bytes
    number: int
    payer: bytes
    name: str

    @property
    def key(self) -> _Key:
        return self[:3]


def client_prefix(client: bytes) -> bytes:
    """What a client's bounds are for: its IPv4 address, or its IPv6 /64, all of which one host may use."""
    return client if client.startswith(MAPPED) else client[:8]


def size_of(name: str) -> int:
    """What a row is charged; a name is in the store twice besides, in its host's set and by itself."""
    return ROW + 2 * len(name)


class LearntNames:
    """Of one change; ``in_all`` is what all clients together may be charged, in bytes."""

    def __init__(self, database: sqlite3.Connection, in_all: int = BYTES_IN_ALL):
        self._database = database
        self._in_all = in_all
        self._sets = Numbers(database, "name_sets")
        self._charges = Charges(database)
        self._uses: Counter[int] = Counter()
        self.crowded_out: list[str] = []
        """Names that have made room for others, each for one client and address."""

    def settle(self) -> None:
        """The change's end: names and sets that no row uses go."""
        self._sets.settle()
        self._charges.settle()
        used = [(change, number) for number, change in self._uses.items()]
        self._database.executemany("UPDATE texts SET rows = rows + ? WHERE number = ?", used)
        fewer = [(number,) for change, number in used if change <= 0]
        if fewer:
            self._database.executemany("DELETE FROM texts WHERE number = ? AND rows = 0", fewer)
        self._uses.clear()

    def learn(self, answers: Iterable[Learnt]) -> Names:
        """Adds rows; a later expiry extends one that is there. Only hosts whose names changed are listed."""
        groups: dict[tuple[bytes, str, bytes], dict[bytes, float]] = {}
        for client, address, name, expires, caused_by in answers:
            payer = caused_by or (NO_CLIENT if client == ANYBODY else client_prefix(client))
            group = groups.setdefault((client, name, payer), {})
            group[address] = max(expires, group.get(address, 0.0))
        numbers = self._numbers({name for _, name, _ in groups})
        touched: dict[_Host, set[int]] = {}
        added: dict[bytes, set[_Key]] = {}
        for (client, name, payer), group in groups.items():
            number = numbers[name]
            new = self._put(client, number, name, payer, group)
            for address in new:
                touched.setdefault((client, address), set()).add(number)
            added.setdefault(payer, set()).update((client, address, number) for address in new)
        for row in self._crowded(added):
            touched.setdefault((row.client, row.address), set()).discard(row.number)
        return self._rename(touched)

    def forget(
        self, now: float, origins: Container[bytes], pairs: Container[bytes], most: int, after: ExpiryCursor
    ) -> tuple[Names, ExpiryCursor | None]:
        """:meth:`enforcer.facts.store.Change.forget_names`."""
        rows = self._database.execute(
            f"SELECT expires, client, address, names.text, payer, texts.text {_JOINED} WHERE expires <= ? "
            "AND (expires, client, address, names.text) > (?, ?, ?, ?) "
            "ORDER BY expires, client, address, names.text LIMIT ?",
            (now, *after, most),
        ).fetchall()
        gone = [
            _Row(*row)
            for _, *row in rows
            if not (row[1] in origins if row[0] == ANYBODY else row[0] + row[1] in pairs)
        ]
        self._delete(gone)
        names = self._rename({(row.client, row.address): set() for row in gone})
        return names, rows[-1][:4] if len(rows) == most else None

    # --- rows

    def _numbers(self, names: Collection[str]) -> dict[str, int]:
        """The numbers that names are stored under."""
        found = dict(among(self._database, "SELECT text, number FROM texts WHERE text", names))
        for name in names:
            if name not in found:
                added = self._database.execute("INSERT INTO texts (text, rows) VALUES (?, 0)", (name,))
                found[name] = added.lastrowid
        return found

    def _put(
        self, client: bytes, number: int, name: str, payer: bytes, expiries: Mapping[bytes, float]
    ) -> list[bytes]:
        """Writes the rows of one name for one client; returns the addresses that had no such row."""
        query = "SELECT address, expires, payer FROM names WHERE text = ? AND client = ? AND address"
        known = {row[0]: row[1:] for row in among(self._database, query, expiries, (number, client))}
        new = [address for address in expiries if address not in known]
        self._database.executemany(
            "INSERT INTO names VALUES (?, ?, ?, ?, ?)",
            [(client, address, number, expiries[address], payer) for address in new],
        )
        size = size_of(name)
        self._charges.add(payer, size * len(new))
        self._uses[number] += len(new)
        changed = []
        for address, (expires, before) in known.items():
            later = max(expires, expiries[address])
            cheaper = payer if self._charges.of(payer) + size < self._charges.of(before) else before
            if cheaper != before:
                self._charges.add(before, -size)
                self._charges.add(payer, size)
            if (later, cheaper) != (expires, before):
                changed.append((later, cheaper, client, address, number))
        if changed:
            self._database.executemany(
                "UPDATE names SET expires = ?, payer = ? WHERE client = ? AND address = ? AND text = ?",
                changed,
            )
        return new

    def _delete(self, gone: Collection[_Row]) -> None:
        self._database.executemany(
            "DELETE FROM names WHERE client = ? AND address = ? AND text = ?", [row.key for row in gone]
        )
        for row in gone:
            self._charges.add(row.payer, -size_of(row.name))
            self._uses[row.number] -= 1

    def _crowded(self, added: Mapping[bytes, set[_Key]]) -> list[_Row]:
        """Takes away what is too much of the clients that pay for new rows, then of all."""
        gone = []
        for payer, new in added.items():
            if payer != NO_CLIENT:
                gone += self._make_room(payer, self._charges.of(payer) - BYTES_OF_CLIENT, new)
        if added:
            while (excess := self._charges.total - self._in_all) > 0:
                payer = self._charges.largest()
                gone += self._make_room(payer, excess, added.get(payer, set()))
        return gone

    def _make_room(self, payer: bytes, excess: int, new: set[_Key]) -> list[_Row]:
        """Takes away rows of this payer worth so many bytes; new ones only if there is nothing else."""
        if excess <= 0:
            return []
        gone: list[_Row] = []
        spared: list[_Row] = []
        rows = self._database.execute(
            f"SELECT client, address, number, payer, texts.text {_JOINED} WHERE payer = ? ORDER BY expires",
            (payer,),
        )
        for row in map(_Row._make, rows):
            if row.key in new:
                spared.append(row)
                continue
            gone.append(row)
            excess -= size_of(row.name)
            if excess <= 0:
                break
        for row in spared:
            if excess <= 0:
                break
            gone.append(row)
            excess -= size_of(row.name)
        rows.close()
        self._delete(gone)
        self.crowded_out += [row.name for row in gone]
        return gone

    # --- sets of names

    def _rename(self, touched: Mapping[_Host, set[int]]) -> Names:
        """Gives these hosts the sets of their names as they are now; with each, which are new."""
        by_client: dict[bytes, list[bytes]] = {}
        for client, address in touched:
            by_client.setdefault(client, []).append(address)
        sets: dict[_Host, bytes] = {}
        before: dict[_Host, int] = {}
        for client, addresses in by_client.items():
            sets.update(self._sets_of(client, addresses, touched))
            query = "SELECT address, name_set FROM hosts WHERE client = ? AND address"
            found = among(self._database, query, addresses, (client,))
            before.update(((client, address), number) for address, number in found)
        digests = {value: digest(value) for value in sets.values() if value}
        users = Counter(digests[value] for value in sets.values() if value)
        numbers, new = self._sets.take(users, {key: value for value, key in digests.items()})
        changed = []
        for host, value in sets.items():
            number = numbers[digests[value]] if value else 0
            if before.get(host, 0) != number:
                changed.append((host, number))
        self._write_hosts(changed)
        self._sets.use(number for _, number in changed if number and number not in new)
        self._sets.release(before[host] for host, _ in changed if host in before)
        return Names(changed, [(number, marshal.loads(names)) for number, names in new.items()])

    def _write_hosts(self, changed: Iterable[tuple[_Host, int]]) -> None:
        put = [(*host, number) for host, number in changed if number]
        self._database.executemany("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?)", put)
        if gone := [host for host, number in changed if not number]:
            self._database.executemany("DELETE FROM hosts WHERE client = ? AND address = ?", gone)

    def _sets_of(
        self, client: bytes, addresses: Collection[bytes], touched: Mapping[_Host, set[int]]
    ) -> dict[_Host, bytes]:
        """The names of each of a client's addresses, as they are stored; b"" for none."""
        rows: dict[bytes, list[tuple[float, _Row]]] = {address: [] for address in addresses}
        query = f"SELECT expires, client, address, number, payer, texts.text {_JOINED} WHERE client = ?"
        for expires, *row in among(self._database, f"{query} AND address", addresses, (client,)):
            rows[row[1]].append((expires, _Row(*row)))
        limit = NAMES_PER_SHARED_HOST if client == ANYBODY else NAMES_PER_HOST
        stored: dict[tuple[str, ...], bytes] = {(): b""}
        sets = {}
        for address, every in rows.items():
            found = every
            if len(every) > limit:
                found = self._shortened(every, touched[client, address], limit)
            names = tuple(sorted(row.name for _, row in found))
            if names not in stored:
                stored[names] = marshal.dumps(names, 2)
            sets[client, address] = stored[names]
        return sets

    def _shortened(
        self, rows: list[tuple[float, _Row]], new: Collection[int], limit: int
    ) -> list[tuple[float, _Row]]:
        """So many rows of a host: the new ones, and then those that live longest."""
        rows.sort(key=lambda found: (found[1].number not in new, -found[0]))
        gone = [row for _, row in rows[limit:]]
        self._delete(gone)
        self.crowded_out += [row.name for row in gone]
        return rows[:limit]
