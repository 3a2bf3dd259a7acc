"""Fixtures of tests with real traffic: a lab for each test module, and the enforcer on its gateway."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from lab import features
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import Lab, stale_labs

_numbers = itertools.count()


@pytest.fixture(scope="session")
def machine() -> None:
    """Skip where the lab cannot be built, with what is missing; clear away what killed runs left."""
    lacking = features.missing()
    if lacking:
        pytest.skip(f"missing: {'; '.join(lacking)}")
    for prefix in stale_labs():
        Lab(prefix).down()


@pytest.fixture(scope="module")
def lab(machine: None) -> Iterator[Lab]:
    """The module's lab: namespaces, links and routes, no programs."""
    with Lab(f"lab{os.getpid()}-{next(_numbers)}") as built:
        yield built


@pytest.fixture(scope="module")
def services(lab: Lab) -> Iterator[Services]:
    """All servers of the lab, running."""
    with Services(lab) as running:
        yield running


@pytest.fixture
def gateway(lab: Lab) -> Iterator[LabGateway]:
    """The enforcer with the lab's configuration, not started; everything of its is gone afterwards."""
    gateway = LabGateway(lab)
    yield gateway
    gateway.stop()
    gateway.run("down", check=False)
