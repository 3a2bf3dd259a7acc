"""Tests of the copy of flows and counts into maps of another size, while other flows open."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from enforcer.datapath import carry, programs
from enforcer.datapath.maps import Maps
from lab.configuration import Document

from .box import Box
from .box import document as plain_document
from .test_origin_counting import datagram, segment, send


@pytest.fixture(scope="module")
def document() -> Document:
    return plain_document(limits={"connections_per_origin": 50, "flows": 1024, "origins": 1024})


@pytest.fixture
def other(box: Box) -> Iterator[Maps]:
    """Maps of another size, which no attached program uses."""
    box.forget_everything()
    loaded = programs.load(box.pins, 2048, 2048, fresh_maps=True)
    try:
        with Maps(loaded.pins.maps, loaded.layouts) as maps:
            yield maps
    finally:
        box.pins.remove_others()


def carry_over(old: Maps, new: Maps) -> None:
    def nothing() -> carry.Rows:
        raise AssertionError("conntrack was asked although there are flows")

    carry.carry_over(old, new, nothing)


def compare(box: Box, other: Maps) -> None:
    """Asserts the same flows, and the same origins with the same counts."""
    for name, fields in (
        ("flows", ("slot", "counted", "state", "egress_address")),
        ("origins", ("active", "slot")),
    ):
        ours = dict(_rows(getattr(box.maps, name), fields))
        assert dict(_rows(getattr(other, name), fields)) == ours


def _rows(part: programs.Map, fields: tuple[str, ...]) -> Iterator[tuple[bytes, list[bytes]]]:
    for key, row in zip(*part.items(), strict=True):
        yield key.tobytes(), [np.ascontiguousarray(row[field]).tobytes() for field in fields]


def test_flows_that_are_opened_while_others_are_carried(box: Box, other: Maps, family: int) -> None:
    send(box, segment(family), segment(family, sport=1001), datagram(family))
    carry_over(box.maps, other)
    compare(box, other)
    # One more flow of a known origin, and one of a new origin.
    send(box, segment(family, sport=1002), datagram(family, dport=500))
    assert carry.catch_up(box.maps, other) == 2
    compare(box, other)
    assert carry.catch_up(box.maps, other) == 0
    compare(box, other)


def test_a_load_is_pinned_beside_the_one_in_force(box: Box) -> None:
    before = box.pins.program_ids()
    loaded = programs.load(box.pins, 2048, 2048, fresh_maps=True)
    assert box.pins.program_ids() == before
    assert loaded.pins.program_ids().keys() == before.keys()
    assert not set(loaded.pins.program_ids().values()) & set(before.values())
    box.pins.remove_others()
    assert not loaded.pins.programs.exists()
    assert not loaded.pins.maps.exists()
    assert box.pins.program_ids() == before
    link = box.pins.directory / programs.IN_FORCE
    assert link.readlink().name == box.pins.loaded
