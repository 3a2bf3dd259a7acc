"""Sessions in bulk: into the store and in force, some at a time.

Each part is a change of its own, so that who has but one session or name to add does not wait for all of
them. Everything that could be wrong with the sessions is known before the first part.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from enforcer.errors import EnforcerError, abridged
from enforcer.facts.rows import COMMAND, FILE, Sessions
from enforcer.facts.session import unpack_client
from enforcer.facts.store import Change, Store, Stored

AT_ONCE = 2500
"""Sessions of one change: some 40 ms."""
# Long enough for another process to see that it may begin its change.
_PAUSE = 0.001
_NAMED = 10

Row = tuple[bytes, Stored, float | None]
"""A client, its facts as they are stored, and the session's end."""


class Tables(Protocol):
    """The kernel's side: :class:`enforcer.facts.kernel_facts.KernelFacts`."""

    def put(self, sessions: Sessions) -> None:
        """Write sessions that are new or changed."""

    def removed(self, clients: Iterable[bytes]) -> None:
        """Take away sessions that ended."""


class Loaded(NamedTuple):
    """What loading has changed."""

    sessions: int
    """How many were named."""
    changed: int
    """Clients whose facts are new or other ones."""
    replaced: int
    """Clients that had a session before."""
    removed: int
    taken_over: list[bytes]
    """Clients whose session was set by a command and is the file's now."""


def named(clients: Collection[bytes]) -> str:
    """Some clients' addresses, for a message."""
    return abridged(sorted(clients), _NAMED, unpack_client)


def of_file(clients: Collection[bytes]) -> EnforcerError:
    """The error for commands that meet sessions of the watched file."""
    what = "the session of" if len(clients) == 1 else "the sessions of"
    return EnforcerError(
        f"{what} {named(clients)} came from the watched file, which commands do not override",
        "Change them in the file; `enforcer sessions` shows where each session comes from.",
    )


def load(store: Store, tables: Tables, rows: Sequence[Row], origin: str, room: int) -> Loaded:
    """Adds and replaces sessions; those of the file (FILE) are all that the file has from then on.

    ``room`` is how many sessions there can be. Raises EnforcerError before anything is changed if there are
    more, or if a command names a client of the file's.
    """
    version = store.version
    clients = {row[0] for row in rows}
    before = store.count_sessions()
    there = store.origins(clients) if before else {}
    of_others = {client for client, one in there.items() if one != origin}
    if origin == COMMAND and of_others:
        raise of_file(of_others)
    gone = store.clients_of_file() - clients if origin == FILE else set()
    total = before + len(clients) - len(there) - len(gone)
    if total > room:
        raise EnforcerError(
            f"{total:,} sessions are more than the {room:,} that have room", "Nothing was changed."
        )
    remove(store, tables, gone)
    changed = 0
    # Clients without a session need not be looked for one by one, as long as nobody else changes anything.
    fresh = None if there else store.profile_numbers()
    for start in range(0, len(rows), AT_ONCE):
        try:
            with store.change() as change:
                if store.version != version:
                    fresh = None
                changed += _put(
                    change, tables, change.put_stored(rows[start : start + AT_ONCE], origin, fresh)
                )
        except EnforcerError as error:
            done = f"{start:,} of {len(rows):,} sessions are in force, and then: "
            raise EnforcerError((done if start else "") + error.message, error.hint) from error
        time.sleep(_PAUSE)
    return Loaded(len(rows), changed, len(there), len(gone), sorted(of_others))


def remove(store: Store, tables: Tables, clients: Collection[bytes]) -> None:
    """Ends sessions."""
    ending = sorted(clients)
    for start in range(0, len(ending), AT_ONCE):
        with store.change() as change:
            tables.removed(change.remove_sessions(ending[start : start + AT_ONCE]))
        time.sleep(_PAUSE)


def _put(change: Change, tables: Tables, sessions: Sessions) -> int:
    if sessions.clients:
        tables.put(sessions)
    return len(sessions.clients)


def report(loaded: Loaded) -> dict[str, Any]:
    """As JSON, for another process."""
    return loaded._asdict() | {"taken_over": [str(unpack_client(client)) for client in loaded.taken_over]}
