"""Finds lost pins of the maps and programs in force: removed, or in an unreachable file system."""

from __future__ import annotations

from enforcer.datapath import settings
from enforcer.datapath.compiler import PROGRAMS
from enforcer.datapath.maps import Maps
from enforcer.datapath.programs import STAGES, Pins
from enforcer.errors import LostPinError


def lost_maps(maps: Maps) -> list[str]:
    """Names of the maps, and of the tables of the policy bank in force, that are not pinned."""
    lost = [name for name in maps.names() if not maps.pin(name).exists()]
    if "settings" in lost:
        return lost
    try:
        found = settings.read(maps)
    except LostPinError:  # lost since the check above
        return [*lost, "settings"]
    if found.ready:
        bank = found.bank_number
        lost += [f"{name}_{bank}" for name in maps.tables() if not maps.pin(name, bank).exists()]
    return lost


def lost_programs(pins: Pins) -> list[str]:
    """Names of the programs that are not pinned, and STAGES if the tail call table is not."""
    return [name for name in (*PROGRAMS, STAGES) if not (pins.programs / name).exists()]
