"""Watches files for changes: written, replaced, relinked or removed (inotify(7)).

The watch is on the directory, since editors replace files. Changes of a symbolic link's target in another
directory are found by polling (:meth:`FileWatch.look`).
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
# CREATE also reports a file that is still being written: not a sign of a complete file.
_WHOLE = flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
# Seconds after its last change at which a polled file counts as complete.
_SETTLED = 2.0

Stamp = tuple[int, int, int, int] | None
"""(device, inode, size, mtime in ns): changes with a file's content. None: the file does not exist."""


def stamp(path: Path) -> Stamp:
    """The file's present stamp."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class FileWatch:
    """A set of watched files."""

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
        """Watches exactly these files; a file that was watched before keeps its stamp."""
        before = self._stamps
        self._stamps = {file: before[file] if file in before else stamp(file) for file in files}
        for directory in set(self._directories) - {file.parent for file in self._stamps}:
            self._forget(directory)
        self._attach()

    def drain(self) -> set[Path]:
        """The files that changed according to events; never blocks."""
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
        """The files that changed without an event; also watches directories that exist by now."""
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
                continue  # missing or not a directory; look() tries again

    def _forget(self, directory: Path) -> None:
        number = self._directories.pop(directory, None)
        if number is not None:
            with suppress(OSError):  # the kernel removed it with the directory
                self._events.rm_watch(number)
