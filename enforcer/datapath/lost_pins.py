"""Finds lost pins of the maps and programs in force: removed, or in an unreachable file system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enforcer.datapath import settings
from enforcer.datapath.compiler import PROGRAMS
from enforcer.datapath.maps import Maps
from enforcer.datapath.programs import STAGES, Pins
from enforcer.errors import LostPinError

_INNER = "_inner"


def lost_maps(maps: Maps, layouts: Mapping[str, Any]) -> list[str]:
    """Names of the maps, and of the tables of the policy bank in force, that are not pinned."""
    lost = [name for name in layouts if not name.endswith(_INNER) and not (maps.directory / name).exists()]
    if "settings" in lost:
        return lost
    try:
        found = settings.read(maps)
    except LostPinError:  # lost since the check above
        return [*lost, "settings"]
    if found.ready:
        tables = [
            f"{name.removesuffix(_INNER)}_{found.bank_number}" for name in layouts if name.endswith(_INNER)
        ]
        lost += [name for name in tables if not (maps.directory / name).exists()]
    return lost


def lost_programs(pins: Pins) -> list[str]:
    """Names of the programs that are not pinned, and STAGES if the tail call table is not."""
    return [name for name in (*PROGRAMS, STAGES) if not (pins.programs / name).exists()]
