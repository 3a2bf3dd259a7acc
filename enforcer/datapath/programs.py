"""A gateway's pinned programs and maps: load, upgrade, open, take away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enforcer.datapath import syscall
from enforcer.datapath.maps import Map
from enforcer.trust import remove_tree

_STAGES = "stages-"


@dataclass(frozen=True)
class Pins:
    """Where a gateway's programs and maps are pinned."""

    directory: Path

    @property
    def programs(self) -> Path:
        """The programs, by name."""
        return self.directory / "programs"

    @property
    def links(self) -> Path:
        """The links that hold programs at interfaces (enforcer/datapath/tcx.py)."""
        return self.directory / "links"

    def maps(self, layout_digest: str) -> Path:
        """The maps of one layout, by name."""
        return self.directory / f"maps-{layout_digest[:16]}"

    def program(self, name: str) -> int:
        """A file descriptor of a pinned program."""
        try:
            return syscall.get(str(self.programs / name))
        except OSError as error:
            raise syscall.explain_error(error, f"opening the program {name}") from error

    @contextmanager
    def open(self, name: str) -> Iterator[int]:
        """The same, closed afterwards."""
        fd = self.program(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def program_ids(self) -> dict[str, int]:
        """Ids of the pinned programs by name."""
        found = {}
        if self.programs.is_dir():
            for path in self.programs.iterdir():
                fd = syscall.get(str(path))
                found[path.name] = syscall.program_info(fd)[0]
                os.close(fd)
        return found

    def remove(self) -> bool:
        """Unpins everything; True if there was anything."""
        return remove_tree(self.directory)

    def remove_but(self, layout_digest: str, stages: str) -> None:
        """Unpins the maps of other layouts, and the tails of other programs."""
        for path in (*self.directory.glob("maps-*"), *self.directory.glob(f"{_STAGES}*")):
            if path not in (self.maps(layout_digest), self.directory / stages):
                remove_tree(path)


def layout_digest(definition: str, flows: int, origins: int) -> str:
    """What a set of maps is known by: equal digests mean that programs can share the maps."""
    return hashlib.sha256(f"{definition} {flows} {origins}".encode()).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the maps' layouts, and the name of the directory with the table of tail calls."""

    layouts: dict[str, Any]
    stages: str


def load(pins: Pins, digest: str, flows: int, origins: int) -> Loaded:
    """Compiles and loads the programs on the maps of this layout, and pins both.

    Nothing is attached. Programs that are attached already keep running on their maps, and calling their own
    tails.
    """
    from enforcer.datapath import compiler  # BCC: only in a process that ends

    directory = pins.maps(digest)
    fresh = not directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    stages = pins.directory / f"{_STAGES}{os.urandom(4).hex()}"
    stages.mkdir()
    try:
        compiled = compiler.compile_programs(directory, stages / "stages", flows, origins)
        _link(stages / "stages", compiled.programs["decide"])
    except BaseException:
        remove_tree(stages)
        if fresh:
            remove_tree(directory)
        raise
    new = pins.directory / "programs-new"
    if new.is_dir():
        remove_tree(new)
    new.mkdir()
    for name, fd in compiled.programs.items():
        syscall.pin(fd, str(new / name))
    if pins.programs.is_dir():
        remove_tree(pins.programs)
    new.rename(pins.programs)
    return Loaded(compiled.layouts, stages.name)


def _link(stages: Path, program: int) -> None:
    """Makes a program the first, and only, stage that others call."""
    table = syscall.get(str(stages))
    Map(table, np.dtype("<u4"), np.dtype("<u4"), "stages").put(0, program)
    os.close(table)
