"""Maps of an earlier version under the names of this one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from enforcer.datapath import former_names, layout
from enforcer.datapath.maps import Maps

EARLIER: dict[str, Any] = {
    "flows": {
        "key": ["flow_key", [["client", "unsigned int", [4]], ["origin_port", "unsigned short"]], "struct"],
        "value": [
            "flow",
            [
                ["source", "unsigned int", [4]],
                ["seen", "unsigned long long"],
                ["notes", "unsigned char"],
                ["source_port", "unsigned short"],
                ["last", "unsigned char"],
            ],
            "struct_packed",
        ],
    },
    "ways": {
        "key": "int",
        "value": [
            "way_set",
            [["way", ["way", [["hop", "unsigned short"], ["until", "unsigned int"]], "struct_packed"], [4]]],
            "struct_packed",
        ],
    },
    "places": {"key": "int", "value": "unsigned int"},
    "places_inner": {
        "key": ["prefix_key", [["length", "unsigned int"]], "struct"],
        "value": "unsigned int",
    },
    "settings": {"key": "int", "value": ["settings", [["bank", "unsigned int"]], "struct"]},
    "later": {"key": "u128", "value": ["later", []]},
}


def test_maps_and_fields_have_present_names() -> None:
    found = former_names.described(EARLIER)
    assert list(found) == ["flows", "fast_buckets", "regions", "regions_inner", "settings", "later"]
    assert layout.dtype(found["flows"]["key"]).names == ("client", "origin_port")
    flow = layout.dtype(found["flows"]["value"])
    assert flow.names == ("egress_address", "last_seen", "flags", "egress_port", "last")
    assert flow["egress_address"].shape == (4,)
    bucket = layout.dtype(found["fast_buckets"]["value"])
    assert bucket["entry"].shape == (4,)
    assert bucket["entry"].base.names == ("next_hop", "until")
    assert layout.dtype(found["settings"]["value"]).names == ("bank",)
    assert found["later"] == EARLIER["later"]


def test_present_names_stay() -> None:
    once = former_names.described(EARLIER)
    assert former_names.described(once) == once


def test_pins_keep_their_names() -> None:
    maps = Maps(Path("/pins"), EARLIER)
    assert maps.names() == ["flows", "fast_buckets", "regions", "settings", "later"]
    assert maps.tables() == ["regions"]
    assert maps.pin("fast_buckets") == Path("/pins/ways")
    assert maps.pin("flows") == Path("/pins/flows")
    assert maps.pin("regions", 1) == Path("/pins/places_1")
    assert "regions" in maps
    assert "places" not in maps
    assert Maps(Path("/pins"), former_names.described(EARLIER)).pin("regions", 1) == Path("/pins/regions_1")


def words() -> set[str]:
    """All identifiers of bpf/maps.h."""
    return set(re.findall(r"\w+", (Path(str(files("enforcer.bpf"))) / "maps.h").read_text()))


@pytest.mark.parametrize("names", [former_names.MAPS, *former_names.FIELDS.values()])
def test_present_names_are_those_of_the_sources(names: Mapping[str, str]) -> None:
    """So a second rename requires an update of the table."""
    assert set(names.values()) <= words()


def test_every_map_with_former_fields_exists() -> None:
    assert set(former_names.FIELDS) <= words()
