"""Names of maps and fields in earlier versions: a state describes the maps of the version that made them.

Every reader of maps gets present names for them (enforcer/datapath/maps.py). So flows, counts and clients are
carried into new maps field by field, and commands and the daemon work on maps of an earlier version until an
upgrade replaces these. A map or a field that gets another name in bpf/maps.h gets a line here, and the state
file another format (enforcer/control/worker.py), so that the previous version refuses what it cannot read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAPS: Mapping[str, str] = {
    "ways": "fast_buckets",
    "hops": "next_hops",
    "guards": "bucket_locks",
    "fast": "fast_path",
    "carried": "upper_macs",
    "places": "regions",
    "place_sets": "region_sets",
    "supposed": "overrides",
}
"""Present names of maps, by former name."""

FIELDS: Mapping[str, Mapping[str, str]] = {
    "flows": {
        "source": "egress_address",
        "source_port": "egress_port",
        "seen": "last_seen",
        "notes": "flags",
    },
    "origins": {"source": "egress_address", "dead": "deleting"},
    "egresses": {"source": "address", "planned": "local"},
    "fast_buckets": {"way": "entry", "source_port": "egress_port", "hop": "next_hop"},
    "bucket_locks": {"answers": "reply_entries"},
    "fast_path": {"last": "last_generation"},
}
"""Present names of fields in keys and values, by former name, for each map by its present name."""

INNER = "_inner"
"""Suffix in the descriptions of a policy bank's tables, after the name of the map that holds them."""


def present(name: str) -> str:
    """A described map's name in this version."""
    outer = name.removesuffix(INNER)
    return MAPS.get(outer, outer) + name[len(outer) :]


def described(layouts: Mapping[str, Any]) -> dict[str, Any]:
    """BCC's descriptions of maps, with the names of this version for maps and fields."""
    result = {}
    for name, parts in layouts.items():
        fields = FIELDS.get(present(name).removesuffix(INNER), {})
        result[present(name)] = {part: _renamed(parts[part], fields) for part in parts}
    return result


def _renamed(description: Any, fields: Mapping[str, str]) -> Any:
    """A description of a type (enforcer/datapath/layout.py) with renamed fields, also in inner structures."""
    if isinstance(description, str) or not fields:
        return description
    name, members, *kind = description
    return [name, [_renamed_field(member, fields) for member in members], *kind]


def _renamed_field(field: Any, fields: Mapping[str, str]) -> Any:
    name, kind, *count = field
    return [fields.get(name, name), _renamed(kind, fields), *count]
