"""Bulk loads of sessions into the store and the kernel, in parts.

Each part is a transaction of its own, so a single session or name waits for one part only. The caller has
validated all sessions before the first part.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from enforcer.errors import EnforcerError, abridged
from enforcer.facts.rows import COMMAND, FILE, ChangedSessions
from enforcer.facts.session import unpack_client
from enforcer.facts.store import Store, Stored, Transaction

AT_ONCE = 2500
"""Sessions of one transaction, which takes about 40 ms."""
# Seconds between two transactions; another process can begin its own meanwhile.
_PAUSE = 0.001
_NAMED = 10

Row = tuple[bytes, Stored, float | None]
"""Client, facts in stored form, expiry."""


class Tables(Protocol):
    """The kernel's maps: :class:`enforcer.facts.kernel_facts.KernelFacts`."""

    def put_sessions(self, sessions: ChangedSessions) -> None:
        """Write new or changed sessions."""

    def remove_sessions(self, clients: Iterable[bytes]) -> None:
        """Remove ended sessions."""


class Loaded(NamedTuple):
    """The result of a load."""

    sessions: int
    """Number of sessions in the input."""
    changed: int
    """Number of clients whose facts are new or changed."""
    replaced: int
    """Number of clients that had a session before."""
    removed: int
    taken_over: list[bytes]
    """Clients whose session came from a command and now comes from the file."""


def list_clients(clients: Collection[bytes]) -> str:
    """Return the first addresses of the clients, for a message."""
    return abridged(sorted(clients), _NAMED, unpack_client)


def owned_by_file(clients: Collection[bytes]) -> EnforcerError:
    """Return the error for a command that would change sessions of the watched file."""
    what = "the session of" if len(clients) == 1 else "the sessions of"
    return EnforcerError(
        f"{what} {list_clients(clients)} came from the watched file, which commands do not override",
        "Change them in the file; `enforcer sessions` shows where each session comes from.",
    )


def load(store: Store, tables: Tables, rows: Sequence[Row], origin: str, room: int) -> Loaded:
    """Add and replace sessions; with ``origin`` FILE, also end the file's other sessions.

    ``room`` is the capacity of the kernel's map. EnforcerError, before any change, if the sessions exceed it
    or if a command names a client of the file.
    """
    version = store.version
    clients = {row[0] for row in rows}
    before = store.count_sessions()
    there = store.origins(clients) if before else {}
    of_others = {client for client, one in there.items() if one != origin}
    if origin == COMMAND and of_others:
        raise owned_by_file(of_others)
    gone = store.clients_of_file() - clients if origin == FILE else set()
    total = before + len(clients) - len(there) - len(gone)
    if total > room:
        raise EnforcerError(
            f"{total:,} sessions are more than the {room:,} that have room", "Nothing was changed."
        )
    remove(store, tables, gone)
    changed = 0
    # Without sessions of these clients, no look-up is needed until another connection changes the store.
    fresh = None if there else store.profile_numbers()
    for start in range(0, len(rows), AT_ONCE):
        try:
            with store.transaction() as transaction:
                if store.version != version:
                    fresh = None
                changed += _put(
                    transaction, tables, transaction.put_stored(rows[start : start + AT_ONCE], origin, fresh)
                )
        except EnforcerError as error:
            done = f"{start:,} of {len(rows):,} sessions are in force, and then: "
            raise EnforcerError((done if start else "") + error.message, error.hint) from error
        time.sleep(_PAUSE)
    return Loaded(len(rows), changed, len(there), len(gone), sorted(of_others))


def remove(store: Store, tables: Tables, clients: Collection[bytes]) -> None:
    """End sessions."""
    ending = sorted(clients)
    for start in range(0, len(ending), AT_ONCE):
        with store.transaction() as transaction:
            tables.remove_sessions(transaction.remove_sessions(ending[start : start + AT_ONCE]))
        time.sleep(_PAUSE)


def _put(transaction: Transaction, tables: Tables, sessions: ChangedSessions) -> int:
    if sessions.clients:
        tables.put_sessions(sessions)
    return len(sessions.clients)


def report(loaded: Loaded) -> dict[str, Any]:
    """Return the result as JSON values, for another process."""
    return loaded._asdict() | {"taken_over": [str(unpack_client(client)) for client in loaded.taken_over]}
