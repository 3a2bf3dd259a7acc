"""Fixtures of the tests with real traffic: a lab for each test module and an enforcer on its gateway."""

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
    """Skip where the machine cannot build the lab, naming what it lacks; remove leftovers of killed runs."""
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
    """An enforcer with the lab's configuration, not started; teardown removes all of its state."""
    gateway = LabGateway(lab)
    yield gateway
    gateway.stop()
    gateway.run("down", check=False)
