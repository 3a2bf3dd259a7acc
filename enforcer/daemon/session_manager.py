"""Sessions of clients: sets and ends them by command, by the watched file, and when they expire.

The file owns the client addresses that it names. A command for one of them is refused, and a session that a
command has set becomes the file's as soon as the file names its client. A session that the file no longer
names ends. A file that is missing or invalid changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enforcer.control.log import NOTICE
from enforcer.control.worker import WorkerProcess
from enforcer.datapath.maps import Maps
from enforcer.errors import ConfigError, EnforcerError, UsageError
from enforcer.facts import loading, session
from enforcer.facts.kernel_facts import KernelFacts
from enforcer.facts.rows import COMMAND, FILE
from enforcer.facts.store import Store, stored

_log = logging.getLogger(__name__)

SMALL = 1 << 20
"""The daemon itself loads a file of fewer bytes, at once."""
# Sessions that one call of expire() ends, so that the loop is not held up.
_AT_ONCE = 1000
# Seconds between two looks at the next expiry: the clock may be set meanwhile.
_PATIENCE = 5.0


def is_large(path: Path, name: str) -> bool:
    """Whether a worker process is to load the file. Raises ConfigError, UsageError."""
    try:
        return path.stat().st_size >= SMALL
    except OSError as error:
        raise ConfigError([session.Fault(name, 0, f"cannot be read: {error.strerror}")]) from error
    except ValueError as error:  # a NUL, or text that no file name can have
        raise UsageError(f"{name!r} cannot be a file: {error}") from error


def load_apart(path: Path, name: str, origin: str, now: float | None = None) -> WorkerProcess:
    """Starts a worker process that loads the file; ``ttl`` counts from ``now`` or the file's last change."""
    return WorkerProcess(
        "enforcer.workers.load_sessions", str(path), origin, name, *([] if now is None else [repr(now)])
    )


class SessionManager:
    """Changes sessions in the store and in the kernel's maps alike."""

    def __init__(self, store: Store, tables: KernelFacts, maps: Maps):
        self._store = store
        self._tables = tables
        self._room = maps.sessions.info.entries

    def expire(self) -> float:
        """Ends sessions that have expired, _AT_ONCE at most; returns the seconds until the next call."""
        now = time.time()
        expiry = self._store.next_session_expiry()
        if expiry is not None and expiry <= now:
            with self._store.change() as change:
                self._tables.removed(change.expire_sessions(now, _AT_ONCE))
            return 0.0
        return _PATIENCE if expiry is None else min(_PATIENCE, expiry - now)

    def add(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Handles `session add`: ``session`` of the request is a session in its JSON form."""
        found, problems = session.read(request.get("session"), time.time())
        if found is None:
            raise UsageError("\n".join(problems))
        before = self._store.session(found.client)
        if before is not None and before.origin == FILE:
            raise loading.of_file([found.client])
        if before is None and self._store.count_sessions() >= self._room:
            raise EnforcerError(f"there are {self._room:,} sessions, and no room for another")
        if found.expires is not None and found.expires <= time.time():
            raise UsageError("the session would have expired already")
        with self._store.change() as change:
            self._tables.put(change.put_sessions([found], COMMAND))
        return {"replaced": before is not None}

    def remove(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Handles `session remove`; ``missing`` of the answer are ``clients`` that have no session."""
        texts = request.get("clients")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError("`clients` is not a list of addresses")
        clients, problems = [], []
        for text in dict.fromkeys(texts):
            try:
                clients.append(session.client_of(text))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise UsageError("\n".join(problems))
        found = {client: self._store.session(client) for client in clients}
        theirs = [client for client, row in found.items() if row is not None and row.origin == FILE]
        if theirs:
            raise loading.of_file(theirs)
        with self._store.change() as change:
            gone = change.remove_sessions(clients)
            self._tables.removed(gone)
        ended = set(gone)
        missing = [str(session.unpack_client(client)) for client in clients if client not in ended]
        return {"removed": len(gone), "missing": missing}

    def load(self, path: Path, name: str, origin: str) -> dict[str, Any]:
        """Loads a file in this process. ``name`` stands for it in messages. Raises EnforcerError."""
        now = None if origin == FILE else time.time()
        rows = [(row.client, stored(row.facts), row.expires) for row in session.read_file(path, now, name)]
        return loading.report(loading.load(self._store, self._tables, rows, origin, self._room))

    def forget_file(self) -> int:
        """Ends the sessions of the watched file, which is watched no more; returns their number."""
        clients = self._store.clients_of_file()
        loading.remove(self._store, self._tables, clients)
        return len(clients)

    def log_loaded(self, path: Path, loaded: Mapping[str, Any]) -> None:
        """Logs what loading the watched file has changed."""
        changed, removed = loaded["changed"], loaded["removed"]
        _log.info(f"sessions of {path}: {loaded['sessions']:,}, changed {changed:,}, ended {removed:,}")
        if loaded["taken_over"]:
            some = loading.named([session.client_of(text) for text in loaded["taken_over"]])
            _log.log(NOTICE, f"sessions set by command belong to the file now: {some}")
