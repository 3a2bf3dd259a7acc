"""Compares the settings in Python with struct settings, field by field."""

from __future__ import annotations

from dataclasses import fields

from enforcer.datapath import settings
from enforcer.datapath.settings import Settings

from .box import Box


def test_fields_are_those_of_the_map(box: Box) -> None:
    """A field that only C has would be written as zero."""
    derived = {"mark_shift"}
    assert set(box.maps.settings.value.names or ()) == {each.name for each in fields(Settings)} | derived


def test_what_is_written_is_read(box: Box) -> None:
    found = settings.read(box.maps)
    row = box.maps.settings.get(0)
    assert found.ready
    assert row is not None and found.to_row(box.maps.settings.value) == row
