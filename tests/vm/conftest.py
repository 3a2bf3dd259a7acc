"""Fixtures of the VM tests. All share one lab, because programs start slowly in an emulated machine.

The tests run on any kernel; scripts/test-vm.sh runs them under Debian's stock one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab import features, netns, program
from lab.configuration import Document, added
from lab.gateway import LabGateway
from lab.program import start_all
from lab.services import Services
from lab.topology import Lab

# Seconds; the compiler alone takes 20 to 50 in an emulated machine.
PATIENCE = 420.0
PERSON = "ann@corp.example"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab. A missing feature is a failure here, not a skip: gateways run this kernel."""
    assert features.missing() == []
    netns.PATIENCE = program.PATIENCE = PATIENCE
    with Lab(f"vm{os.getpid()}") as built:
        yield built


@pytest.fixture(scope="session")
def services(lab: Lab) -> Iterator[Services]:
    """The servers that the rows need."""
    services = Services(lab)
    start_all([*services.reporter.values(), services.nginx["origin2"], services.resolver])
    yield services
    services.stop()


@pytest.fixture(scope="session")
def config(lab: Lab) -> Document:
    """The lab's configuration with a person and a host name."""
    person = {
        "name": "person",
        "precedence": 1,
        "identity": f'identity.email == "{PERSON}"',
        "egress": "default",
    }
    named = {
        "name": "named",
        "precedence": 2,
        "traffic": 'net.fqdn.host == "www.lab" and net.src.ip in {10.0.1.4 fd00:1::4}',
        "egress": "default",
    }
    return added(lab.config(), "policies", person, named)


@pytest.fixture(scope="session")
def gateway(lab: Lab, config: Document) -> Iterator[LabGateway]:
    """A running enforcer with that configuration."""
    with LabGateway(lab, config) as gateway:
        yield gateway
        gateway.down()
