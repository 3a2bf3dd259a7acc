"""Which pins of what is in force are gone: removed, or their file system is out of reach."""

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
    """Names of the maps that are not pinned, and of the tables of the policy bank in force."""
    lost = [name for name in layouts if not name.endswith(_INNER) and not (maps.directory / name).exists()]
    if "settings" in lost:
        return lost
    try:
        found = settings.read(maps)
    except LostPinError:  # lost between the two looks
        return [*lost, "settings"]
    if found.ready:
        tables = [
            f"{name.removesuffix(_INNER)}_{found.bank_number}" for name in layouts if name.endswith(_INNER)
        ]
        lost += [name for name in tables if not (maps.directory / name).exists()]
    return lost


def lost_programs(pins: Pins) -> list[str]:
    """Names of the programs that are not pinned, and of the table by which they call each other."""
    return [name for name in (*PROGRAMS, STAGES) if not (pins.programs / name).exists()]
