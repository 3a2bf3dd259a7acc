"""The installed parts of one gateway: its state file, its pins and the maps in force."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from enforcer import __version__
from enforcer.datapath import bpffs, lost_pins, programs
from enforcer.datapath.maps import Maps
from enforcer.datapath.programs import Pins
from enforcer.gateway.desired import Desired, desired
from enforcer.gateway.state import State
from enforcer.instance import Instance, not_installed


def source_digest() -> str:
    """Digest of the BPF programs' sources, headers included."""
    root = Path(str(files("enforcer.bpf")))
    digest = hashlib.sha256()
    for path in sorted([*root.glob("*.[ch]"), *root.glob("include/**/*.h")]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def layout_of(wanted: Desired) -> str:
    """Digest of the map definitions and sizes."""
    return programs.layout_digest(
        files("enforcer.bpf").joinpath("maps.h").read_text(), wanted.flows, wanted.origins
    )


class Installed:
    """The gateway of this network namespace as its state file describes it."""

    def __init__(self, instance: Instance):
        self.instance = instance
        self.state = State.load(instance.state_file)
        mount = bpffs.find_bpffs()
        self.pins = self.pins_at(mount) if mount else None

    def pins_at(self, mount: Path) -> Pins:
        """The pins of the programs and maps in force, in the bpffs mounted at ``mount``."""
        state = self.state or State()
        return Pins(bpffs.directory(mount, self.instance.cookie), state.loaded, state.maps)

    @property
    def previous(self) -> Desired | None:
        """The desired state in force, or None."""
        return desired(self.state.config, self.state.slots) if self.state and self.state.config else None

    @property
    def unfinished(self) -> Desired | None:
        """The other side of an interrupted plan, or None."""
        half_done = self.state.half_done if self.state else None
        return desired(half_done["config"], half_done["slots"]) if half_done and half_done["config"] else None

    def is_current(self) -> bool:
        """Whether ``state`` is still in force and no other process has an unfinished plan."""
        current, known = State.load(self.instance.state_file), self.state
        if current is None or known is None:
            return current is known
        half_done = current.half_done
        return current.applied == known.applied and (half_done is None or half_done["pid"] == os.getpid())

    def maps(self) -> Maps:
        """The maps in force. Raises NotInstalledError. Opening a map without a pin raises LostPinError."""
        if self.state is None or self.pins is None:
            raise not_installed()
        return Maps(self.pins.maps, self.state.layouts)

    def lost(self) -> list[str]:
        """Names of the maps and programs in force whose pins are missing."""
        if self.state is None or self.pins is None or not self.state.layouts:
            return []
        with self.maps() as maps:
            return lost_pins.lost_maps(maps) + lost_pins.lost_programs(self.pins)

    def revert_to(self, before: State) -> None:
        """Makes ``before`` the state in force again; another plan then brings the kernel to it."""
        current = State.load(self.instance.state_file) or before
        before.undo, before.half_done = current.undo, current.half_done
        if self.state is not before and current.half_done is not None:
            before.half_done = current.half_done | current.other_side()
        self.save(before)
        if self.pins is not None:
            self.pins = replace(self.pins, loaded=before.loaded, shared=before.maps)

    def save(self, state: State) -> None:
        """Makes ``state`` the state in force."""
        state.version = __version__
        state.save(self.instance.state_file)
        self.state = state
