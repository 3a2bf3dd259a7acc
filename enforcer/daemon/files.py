"""Watches the files that the configuration names, and loads them when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from enforcer.control.log import NOTICE
from enforcer.daemon.loop import Loop
from enforcer.daemon.runtime import Runtime
from enforcer.daemon.session_file import SETTLE, SessionFile
from enforcer.kernel.file_watch import FileWatch, stamp

_log = logging.getLogger(__name__)

# Seconds between polls of the files: inotify does not report changes on every file system.
_LOOK_EVERY = 5.0


class Files:
    """The session file, which loads on its own, and the GeoIP database, which takes a ``reload``."""

    def __init__(
        self,
        loop: Loop,
        runtime: Runtime,
        session_file: SessionFile,
        reload: Callable[[], None],
    ):
        self._loop = loop
        self._runtime = runtime
        self._session_file = session_file
        self._reload = reload
        self._watch = FileWatch()
        loop.watch(self._watch, lambda: self._changed(self._watch.drain()))
        loop.timer(self._look, _LOOK_EVERY)
        self._database_settled = loop.timer(self._load_database)

    def activate(self) -> None:
        """Watches the files that the configuration in force names."""
        named = (self._runtime.session_file, self._runtime.database)
        self._watch.watch(file for file in named if file is not None)
        self._session_file.activate()

    def close(self) -> None:
        """Ends the watch."""
        self._loop.unwatch(self._watch)
        self._watch.close()

    def _look(self) -> float:
        self._changed(self._watch.look())
        return _LOOK_EVERY

    def _changed(self, files: Collection[Path]) -> None:
        if self._runtime.session_file in files:
            self._session_file.load()
        if self._runtime.database in files:
            # A program may write a new database in several steps.
            self._database_settled.start(SETTLE)

    def _load_database(self) -> None:
        database = self._runtime.database
        if database is None:
            return
        if stamp(database) is None:
            _log.warning(f"{database} is gone: its former content stays in force until it is there again")
            return
        _log.log(NOTICE, f"{database} has changed: reloading")
        self._reload()
