"""The SQLite file of the facts: connections, tables, and the mapping of SQLite's errors.

The file is on tmpfs and does not outlive the kernel state that it describes, so nothing is synced. There is
one writer at a time; readers see committed data (WAL).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from enforcer.errors import (
    BusyError,
    EnforcerError,
    KernelError,
    NotInstalledError,
    PrivilegeError,
)

FORMAT = 3
"""Version of the tables. A file of format 2 is converted; any other file is replaced by an empty one."""
PATIENCE = 10.0
"""Seconds that a transaction waits for another one."""
ROW = 320
"""Upper bound for the bytes of a row of names in all tables and indexes, without the name."""
_LARGEST_LOG = 16 << 20
# Seconds between two attempts to begin a transaction.
_PAUSE = 0.0005
# Keys of one query.
_AT_ONCE = 500

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('generation', 0), ('document', NULL), ('bank', NULL), ('sequence', 0),
    ('charged', 0);

CREATE TABLE profiles (
    number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, sequence INTEGER NOT NULL,
    users INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE TABLE profiles_free (number INTEGER PRIMARY KEY);

CREATE TABLE name_sets (
    number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, sequence INTEGER NOT NULL,
    users INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE TABLE name_sets_free (number INTEGER PRIMARY KEY);

CREATE TABLE sessions (
    client BLOB PRIMARY KEY, profile INTEGER NOT NULL, expires REAL, since REAL NOT NULL, origin TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_of_file ON sessions (origin) WHERE origin = 'file';
CREATE INDEX sessions_by_expiry ON sessions (expires) WHERE expires IS NOT NULL;

CREATE TABLE hosts (
    client BLOB, address BLOB, name_set INTEGER NOT NULL, PRIMARY KEY (client, address)
) WITHOUT ROWID;
"""
_NAMES = """
CREATE TABLE texts (number INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL);
CREATE TABLE names (
    client BLOB, address BLOB, text INTEGER, expires REAL NOT NULL, payer BLOB NOT NULL,
    PRIMARY KEY (client, address, text)
) WITHOUT ROWID;
CREATE INDEX names_by_expiry ON names (expires);
CREATE INDEX names_by_payer ON names (payer, expires);
CREATE TABLE charges (payer BLOB PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX charges_by_bytes ON charges (bytes);
"""
# Names for all clients are charged to no client: format 2 does not store which answers caused them.
_FROM_2 = f"""
DROP INDEX names_by_expiry;
ALTER TABLE names RENAME TO names_2;
{_NAMES}
INSERT INTO texts (text, rows) SELECT name, count(*) FROM names_2 GROUP BY name;
INSERT INTO names SELECT client, address, number, expires, CASE
    WHEN client = zeroblob(16) THEN x''
    WHEN substr(client, 1, 12) = x'00000000000000000000ffff' THEN client
    ELSE substr(client, 1, 8) END FROM names_2 JOIN texts ON text = name;
DROP TABLE names_2;
INSERT INTO charges SELECT payer, sum({ROW} + 2 * length(texts.text))
    FROM names JOIN texts ON number = names.text GROUP BY payer;
INSERT INTO meta SELECT 'charged', ifnull(sum(bytes), 0) FROM charges;
"""


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Raise SQLite's errors as EnforcerError; ``doing`` names the operation."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, doing) from error


def _explain(error: sqlite3.Error, doing: str) -> EnforcerError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError(f"{doing}: another change does not end", "Try again in a moment.")
    if code == sqlite3.SQLITE_FULL:
        return KernelError(f"{doing}: no room is left in /run", "See `df /run`.")
    return KernelError(f"{doing}: {error}", "Start over: `enforcer down`, then `enforcer run`.")


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open the file in autocommit mode.

    ``create`` replaces a file that is missing, of another format or no database by an empty one; otherwise
    such a file is a NotInstalledError.
    """
    if not create and not path.exists():
        raise NotInstalledError("no facts are kept on this gateway", "Start the daemon: enforcer run")
    with explained(f"opening {path}"):
        try:
            return _open(path, create)
        except sqlite3.DatabaseError as error:
            if not create or getattr(error, "sqlite_errorcode", 0) not in (
                sqlite3.SQLITE_NOTADB,
                sqlite3.SQLITE_CORRUPT,
            ):
                raise
        remove(path)
        return _open(path, create)


def begin(database: sqlite3.Connection, patience: float | None = None) -> None:
    """Begin a write transaction; wait up to ``patience`` seconds (PATIENCE) for the current one.

    SQLite's own busy handler sleeps for up to 100 ms at a time and would miss the pauses between the
    transactions of a bulk load.
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    database.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                database.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)
    finally:
        database.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")


def among(
    database: sqlite3.Connection, query: str, keys: Collection[bytes | str], values: tuple[Any, ...] = ()
) -> Iterator[Any]:
    """Yield the rows whose last column in ``query`` is one of ``keys``; ``values`` are its parameters."""
    keys = list(keys)
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        yield from database.execute(f"{query} IN ({','.join('?' * len(part))})", (*values, *part))


def tidy(database: sqlite3.Connection) -> None:
    """Empty the write-ahead log unless another connection reads from it; never waits."""
    database.execute("PRAGMA busy_timeout = 0")
    try:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        database.execute(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")


def size_of_filesystem(path: Path) -> int:
    """Return the size of the file system in bytes."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def size_of_log(path: Path) -> int:
    """Return the size of the file's write-ahead log in bytes."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return 0


def remove(path: Path) -> None:
    """Delete the file with its log and its shared-memory index."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def replace(database: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Copy an open database to a new file at ``path``; return the connection to the new file."""
    new = path.with_name(f"{path.name}.new")
    with explained(f"writing {path}"):
        remove(new)
        copy = sqlite3.connect(new)
        try:
            database.backup(copy)
        finally:
            copy.close()
        remove(path)
        new.rename(path)
        database.close()
        return _open(path, create=True)


def _open(path: Path, create: bool) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, cached_statements=256)
    except sqlite3.OperationalError as error:
        raise PrivilegeError(f"cannot open {path}: {error}", "Run as root.") from error
    try:
        if create:
            database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute(f"PRAGMA journal_size_limit = {_LARGEST_LOG}")
        _prepare(database, create)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, create: bool) -> None:
    """Create or convert the tables if their format is not FORMAT."""
    if _format(database) == FORMAT:
        return
    if not create:
        raise NotInstalledError(
            "the facts kept on this gateway are of another version", "Start the daemon: enforcer run"
        )
    database.execute("BEGIN IMMEDIATE")
    try:
        found = _format(database)
        if found == 2:
            _execute(database, _FROM_2)
        elif found != FORMAT:  # another process may have been first
            _recreate(database)
        database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _recreate(database: sqlite3.Connection) -> None:
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    for (name,) in database.execute(tables).fetchall():
        database.execute(f'DROP TABLE "{name}"')
    _execute(database, _TABLES + _NAMES)


def _execute(database: sqlite3.Connection, script: str) -> None:
    """Execute a script within the open transaction, which ``executescript`` would commit."""
    for statement in script.split(";"):
        if statement.strip():
            database.execute(statement)


def _format(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
