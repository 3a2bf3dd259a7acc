"""A gateway's pinned programs and maps: load, upgrade, open, take away."""

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
"""A link to the load in force, for people and their tools; the state file says which it is. Programs were
pinned in a directory of this name before each load had one of its own."""
STAGES = "stages"
_LOAD, _MAPS = "load-", "maps-"


@dataclass(frozen=True)
class Pins:
    """Where a gateway's programs and maps are pinned."""

    directory: Path
    loaded: str = IN_FORCE
    """The directory of one load: its programs and their table of tail calls, which no other load shares."""
    shared: str = ""
    """The directory of its maps: loads of one layout share them until they are lost."""

    @property
    def programs(self) -> Path:
        """The programs of this load, by name."""
        return self.directory / self.loaded

    @property
    def links(self) -> Path:
        """The links that hold programs at interfaces (enforcer/datapath/tcx.py)."""
        return self.directory / "links"

    @property
    def maps(self) -> Path:
        """The maps of this load, by name."""
        return self.directory / self.shared

    def program(self, name: str) -> int:
        """A file descriptor of a pinned program."""
        try:
            return syscall.get(str(self.programs / name))
        except FileNotFoundError as error:
            raise lost_pin(f"the program {name}") from error
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
        for path in self.program_paths():
            fd = syscall.get(str(path))
            found[path.name] = syscall.program_info(fd)[0]
            os.close(fd)
        return found

    def program_paths(self) -> list[Path]:
        """Where each program is pinned."""
        if not self.programs.is_dir():
            return []
        return [path for path in self.programs.iterdir() if path.name != STAGES]

    def show_in_force(self) -> None:
        """Makes the link IN_FORCE lead to this load."""
        link, new = self.directory / IN_FORCE, self.directory / f"{IN_FORCE}-new"
        if self.loaded == IN_FORCE or (link.is_dir() and not link.is_symlink()):
            return
        new.unlink(missing_ok=True)
        new.symlink_to(self.loaded)
        new.rename(link)

    def remove(self) -> bool:
        """Unpins everything; True if there was anything."""
        return remove_tree(self.directory)

    def remove_others(self) -> None:
        """Unpins other loads and other maps. Not before this load is all that is attached.

        Without a pin the kernel empties a table of tail calls, whatever still calls it.
        """
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            if path not in (self.programs, self.maps, self.links) and not path.is_symlink():
                remove_tree(path)
        self.show_in_force()


def layout_digest(definition: str, flows: int, origins: int) -> str:
    """What a set of maps is known by: equal digests mean that programs can share the maps."""
    return hashlib.sha256(f"{definition} {flows} {origins}".encode()).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the maps' layouts, and where the programs are pinned."""

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
    """Compiles and loads the programs on the maps that are pinned, or on new ones, and pins both.

    ``progress`` hears of each program.

    Nothing is attached, and nothing that is pinned is replaced: programs that are attached already keep
    running on their maps, and calling their own tails.
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
    """Makes programs the stages that others call; a stage has its program's name."""
    table = syscall.get(str(stages))
    for stage in Stage:
        Map(table, np.dtype("<u4"), np.dtype("<u4"), "stages").put(stage, programs[stage.name.lower()])
    os.close(table)
