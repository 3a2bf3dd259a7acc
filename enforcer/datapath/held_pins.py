"""Holds file descriptors of all pinned objects, which survive the loss of their pins and can be repinned.

A link without pin and descriptor is freed and its program detached. While a process holds descriptors,
removing pins or unmounting their file system detaches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from enforcer.datapath import bpffs, syscall
from enforcer.datapath.programs import Pins

LINKS = "links"
"""Name of the directory with the pins of links."""


@dataclass(frozen=True)
class _Object:
    fd: int
    id: int
    pin: tuple[int, int]
    """Device and inode of the last known pin."""


class HeldObjects:
    """Descriptors of pinned objects by path relative to the pin directory."""

    def __init__(self) -> None:
        self._objects: dict[Path, _Object] = {}

    def hold(self, directory: Path, parts: Iterable[Path]) -> None:
        """Opens what is pinned in the subdirectories ``parts`` and releases the former descriptors.

        Raises KernelError, PrivilegeError; the former descriptors are then kept.
        """
        fresh: dict[Path, _Object] = {}
        try:
            for part in parts:
                for path in sorted(part.iterdir()) if part.is_dir() else ():
                    found = _open(path)
                    if found is not None:
                        fresh[path.relative_to(directory)] = found
        except OSError as error:
            _close(fresh.values())
            raise syscall.explain_error(error, f"opening what is pinned in {directory}") from error
        _close(self._objects.values())
        self._objects = fresh

    def repin(self, directory: Path) -> list[str]:
        """Pins held objects again whose pins are missing below this directory; returns the paths.

        Another map or program at a path is replaced; another link stays if the held one has ended. Raises
        KernelError, PrivilegeError.
        """
        repinned = []
        try:
            for name, held in list(self._objects.items()):
                path = directory / name
                pin = _pin_of(path)
                if pin == held.pin:
                    continue
                if _is_over(held.fd, name):
                    os.close(self._objects.pop(name).fd)
                    continue
                if pin is None or not _leads_to(path, held.id):
                    bpffs.create(directory)
                    path.parent.mkdir(exist_ok=True)
                    path.unlink(missing_ok=True)
                    syscall.pin(held.fd, str(path))
                    repinned.append(str(name))
                self._objects[name] = _Object(held.fd, held.id, _pin_of(path) or held.pin)
        except OSError as error:
            raise syscall.explain_error(error, f"pinning in {directory} again what was lost") from error
        return repinned

    def open(self, name: Path) -> int:
        """A new descriptor of the object pinned at this path, to be closed. Raises KeyError."""
        return os.dup(self._objects[name].fd)

    def close(self) -> None:
        """Closes all descriptors."""
        _close(self._objects.values())
        self._objects.clear()


@dataclass(frozen=True)
class HeldPins(Pins):
    """Pins with held descriptors: programs can be run while their pins are lost."""

    held: HeldObjects = field(default_factory=HeldObjects)

    def program(self, name: str) -> int:
        """A file descriptor of a program."""
        try:
            return self.held.open(self.programs.relative_to(self.directory) / name)
        except KeyError:
            return super().program(name)

    def hold(self) -> None:
        """Holds what is pinned at present (:meth:`HeldObjects.hold`)."""
        self.held.hold(self.directory, [self.links, self.programs, self.maps])

    def repin(self) -> list[str]:
        """Pins again what lost its pin (:meth:`HeldObjects.repin`)."""
        repinned = self.held.repin(self.directory)
        if repinned:
            self.show_in_force()
        return repinned


def _close(objects: Iterable[_Object]) -> None:
    for one in objects:
        os.close(one.fd)


def _pin_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _open(path: Path) -> _Object | None:
    """The object pinned at a path; None if the pin was removed meanwhile."""
    with suppress(FileNotFoundError):
        fd = syscall.get(str(path))
        return _Object(fd, syscall.object_id(fd), _pin_of(path) or (0, 0))
    return None


def _leads_to(path: Path, identifier: int) -> bool:
    found = _open(path)
    if found is None:
        return False
    os.close(found.fd)
    return found.id == identifier


def _is_over(fd: int, name: Path) -> bool:
    """Whether it is a link that was detached or whose interface was removed."""
    if name.parts[0] != LINKS:
        return False
    _, interface, _ = syscall.link_info(fd)
    return not interface
