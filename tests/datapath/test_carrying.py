"""Flows and their counts go over to maps of another size, also those that are opened meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from enforcer.datapath import programs
from enforcer.datapath.maps import Maps
from enforcer.lab.configuration import Document

from .box import Box
from .box import document as plain_document
from .test_origin_counting import datagram, segment, send

OTHER = "0123456789abcdef"


@pytest.fixture(scope="module")
def document() -> Document:
    return plain_document(limits={"connections_per_origin": 50, "flows": 1024, "origins": 1024})


@pytest.fixture
def other(box: Box) -> Iterator[Maps]:
    """Maps of another size, which no program that is attached uses."""
    box.forget_everything()
    loaded = programs.load(box.pins, OTHER, 2048, 2048)
    try:
        with Maps(box.pins.maps(OTHER), loaded.layouts) as maps:
            yield maps
    finally:
        box.pins.remove_others(box.gateway.state.layout if box.gateway.state else "")


def compare(box: Box, other: Maps) -> None:
    """The same flows, and the same origins with the same counts."""
    for name, fields in (("flows", ("slot", "counted", "state", "source")), ("origins", ("active", "slot"))):
        ours = dict(_rows(getattr(box.maps, name), fields))
        assert dict(_rows(getattr(other, name), fields)) == ours


def _rows(part: programs.Map, fields: tuple[str, ...]) -> Iterator[tuple[bytes, list[bytes]]]:
    for key, row in zip(*part.items(), strict=True):
        yield key.tobytes(), [np.ascontiguousarray(row[field]).tobytes() for field in fields]


def test_flows_that_are_opened_while_others_are_carried(box: Box, other: Maps, family: int) -> None:
    send(box, segment(family), segment(family, sport=1001), datagram(family))
    programs.carry_over(box.maps, other)
    compare(box, other)
    # One more of an origin that is known, and one of an origin that is new.
    send(box, segment(family, sport=1002), datagram(family, dport=500))
    assert programs.catch_up(box.maps, other) == 2
    compare(box, other)
    assert programs.catch_up(box.maps, other) == 0
    compare(box, other)


def test_a_load_is_pinned_beside_the_one_in_force(box: Box) -> None:
    before = box.pins.program_ids()
    loaded = programs.load(box.pins, OTHER, 2048, 2048)
    assert box.pins.program_ids() == before
    assert loaded.pins.program_ids().keys() == before.keys()
    assert not set(loaded.pins.program_ids().values()) & set(before.values())
    assert box.gateway.state is not None
    box.pins.remove_others(box.gateway.state.layout)
    assert not loaded.pins.programs.exists()
    assert not box.pins.maps(OTHER).exists()
    assert box.pins.program_ids() == before
    link = box.pins.directory / programs.IN_FORCE
    assert link.readlink().name == box.pins.loaded
