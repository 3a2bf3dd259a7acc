"""A gateway's pinned programs and maps: loading, upgrading, opening and unpinning them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from enforcer.constants.bpf import Stage
from enforcer.datapath import syscall
from enforcer.datapath.maps import Map, lost_pin
from enforcer.instance.trust import remove_tree

IN_FORCE = "programs"
"""Symbolic link to the directory of the load in force, for bpftool; the state file names that directory.
Earlier versions pinned programs in a directory of this name."""
STAGES = "stages"
_LOAD, _MAPS = "load-", "maps-"


@dataclass(frozen=True)
class Pins:
    """The paths of a gateway's pins."""

    directory: Path
    loaded: str = IN_FORCE
    """Name of the load's directory: its programs and their tail call table."""
    shared: str = ""
    """Name of the directory of its maps, which loads of one layout share."""

    @property
    def programs(self) -> Path:
        """The directory of this load's programs."""
        return self.directory / self.loaded

    @property
    def links(self) -> Path:
        """The directory of the TCX links (enforcer/datapath/tcx.py)."""
        return self.directory / "links"

    @property
    def maps(self) -> Path:
        """The directory of this load's maps."""
        return self.directory / self.shared

    def program(self, name: str) -> int:
        """A file descriptor of a pinned program. Raises LostPinError, KernelError, PrivilegeError."""
        try:
            return syscall.get(str(self.programs / name))
        except FileNotFoundError as error:
            raise lost_pin(f"the program {name}") from error
        except OSError as error:
            raise syscall.explain_error(error, f"opening the program {name}") from error

    @contextmanager
    def open(self, name: str) -> Iterator[int]:
        """A file descriptor of a pinned program, closed at the end of the block."""
        fd = self.program(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def program_ids(self) -> dict[str, int]:
        """Ids of the pinned programs by name."""
        found = {}
        for path in self.program_paths():
            fd = syscall.get(str(path))
            found[path.name] = syscall.program_info(fd)[0]
            os.close(fd)
        return found

    def program_paths(self) -> list[Path]:
        """The pins of the programs."""
        if not self.programs.is_dir():
            return []
        return [path for path in self.programs.iterdir() if path.name != STAGES]

    def show_in_force(self) -> None:
        """Points the symbolic link IN_FORCE to this load."""
        link, new = self.directory / IN_FORCE, self.directory / f"{IN_FORCE}-new"
        if self.loaded == IN_FORCE or (link.is_dir() and not link.is_symlink()):
            return
        new.unlink(missing_ok=True)
        new.symlink_to(self.loaded)
        new.rename(link)

    def remove(self) -> bool:
        """Unpins everything; False if nothing was pinned."""
        return remove_tree(self.directory)

    def remove_others(self) -> None:
        """Unpins other loads and maps; to be called when only this load is attached.

        The kernel empties a tail call table without a pin, even if a program still uses it.
        """
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            if path not in (self.programs, self.maps, self.links) and not path.is_symlink():
                remove_tree(path)
        self.show_in_force()


def layout_digest(definition: str, flows: int, origins: int) -> str:
    """Digest of a set of maps: loads with equal digests can share the maps."""
    return hashlib.sha256(f"{definition} {flows} {origins}".encode()).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """A finished load: the maps' layouts and the pins."""

    layouts: dict[str, Any]
    pins: Pins


def load(
    pins: Pins,
    flows: int,
    origins: int,
    *,
    fresh_maps: bool,
    progress: Callable[[str], None] = lambda _: None,
) -> Loaded:
    """Compiles and loads the programs on the pinned maps or on new ones, and pins both.

    ``progress`` is called before each program. Nothing is attached and no pin is replaced: attached programs
    keep their maps and tail calls.
    """
    from enforcer.datapath import compiler

    name = os.urandom(4).hex()
    own = replace(pins, loaded=f"{_LOAD}{name}", shared=f"{_MAPS}{name}" if fresh_maps else pins.shared)
    own.programs.mkdir(parents=True)
    own.maps.mkdir(exist_ok=True)
    stages = own.programs / STAGES
    try:
        compiled = compiler.compile_programs(own.maps, stages, flows, origins, progress=progress)
        _link(stages, compiled.programs)
        for name, fd in compiled.programs.items():
            syscall.pin(fd, str(own.programs / name))
    except BaseException:
        remove_tree(own.programs)
        if fresh_maps:
            remove_tree(own.maps)
        raise
    return Loaded(compiled.layouts, own)


def _link(stages: Path, programs: Mapping[str, int]) -> None:
    """Fills the tail call table: a stage has its program's name."""
    table = syscall.get(str(stages))
    for stage in Stage:
        Map(table, np.dtype("<u4"), np.dtype("<u4"), "stages").put(stage, programs[stage.name.lower()])
    os.close(table)
