"""Fixtures for tests that run the loaded programs: one gateway for each test module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab import features
from lab.configuration import Document

from . import box as boxes
from .box import Box
from .wire import Wire


@pytest.fixture(scope="module")
def document() -> Document:
    """The configuration of the gateway; a module may define its own."""
    return boxes.document()


@pytest.fixture(scope="module")
def box(document: Document) -> Iterator[Box]:
    """The module's gateway. The tests run inside its namespace."""
    lacking = features.missing() if os.geteuid() == 0 else ["root"]
    if lacking:
        pytest.skip(f"missing: {'; '.join(lacking)}")
    with boxes.new_box(document) as made:
        yield made


@pytest.fixture(scope="module")
def wire(box: Box) -> Iterator[Wire]:
    """The far ends of the gateway's links."""
    made = Wire()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def counts_are_exact(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks after every test that the counters of origins and clients equal the sum of the flows."""
    yield
    if "box" in request.fixturenames:
        wrong = request.getfixturevalue("box").miscounted()
        assert not wrong, wrong


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)
