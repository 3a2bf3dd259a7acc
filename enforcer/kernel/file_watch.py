"""Events of files: one that was written, replaced, linked anew, or taken away (inotify(7)).

What is watched is the directory, since editors put a new file in the old one's place. Where a file is a link
into another directory, the other end's changes are found by looking at it now and then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from inotify_simple import INotify, flags  # type: ignore[import-untyped]

_EVENTS = (
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.CREATE
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
# A file that is being written is announced by its creation too, and is not whole then.
_WHOLE = flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
# Without an event a file that was written so long ago is taken for whole.
_SETTLED = 2.0

Stamp = tuple[int, int, int, int] | None
"""What changes with a file's content; None: there is no file."""


def stamp(path: Path) -> Stamp:
    """The file's stamp just now."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class FileWatch:
    """Some files to watch. Closed with :meth:`close`."""

    def __init__(self) -> None:
        self._events = INotify(nonblocking=True)
        self._stamps: dict[Path, Stamp] = {}
        self._directories: dict[Path, int] = {}

    def fileno(self) -> int:
        """Readable when :meth:`drain` has something to read."""
        return int(self._events.fileno())

    def close(self) -> None:
        """Ends the watch."""
        self._events.close()

    def watch(self, files: Iterable[Path]) -> None:
        """Watches these and no others; a file that was watched before keeps its stamp."""
        before = self._stamps
        self._stamps = {file: before[file] if file in before else stamp(file) for file in files}
        for directory in set(self._directories) - {file.parent for file in self._stamps}:
            self._forget(directory)
        self._attach()

    def drain(self) -> set[Path]:
        """The files that have changed, by events; never waits."""
        suspects: set[Path] = set()
        by_number = {number: directory for directory, number in self._directories.items()}
        for event in self._events.read(timeout=0):
            directory = by_number.get(event.wd)
            if event.mask & flags.Q_OVERFLOW:
                suspects |= set(self._stamps)
            if directory is None:
                continue
            if event.mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED):
                self._forget(directory)
            suspects |= {
                file
                for file in self._stamps
                if file.parent == directory
                and ((file.name == event.name and event.mask & _WHOLE) or file.is_symlink())
            }
        return self._changed(suspects)

    def look(self) -> set[Path]:
        """The files that have changed without an event; also finds directories that were not there."""
        self._attach()
        now = time.time_ns()
        settled = {
            file for file in self._stamps if (found := stamp(file)) is None or now - found[3] > _SETTLED * 1e9
        }
        return self._changed(settled)

    def _changed(self, suspects: set[Path]) -> set[Path]:
        changed = {file for file in suspects if stamp(file) != self._stamps[file]}
        for file in changed:
            self._stamps[file] = stamp(file)
        return changed

    def _attach(self) -> None:
        for directory in {file.parent for file in self._stamps} - set(self._directories):
            try:
                self._directories[directory] = self._events.add_watch(os.fspath(directory), _EVENTS)
            except OSError:
                continue  # it isn't there, or is no directory; looked for again

    def _forget(self, directory: Path) -> None:
        number = self._directories.pop(directory, None)
        if number is not None:
            with suppress(OSError):  # it went with the directory
                self._events.rm_watch(number)
