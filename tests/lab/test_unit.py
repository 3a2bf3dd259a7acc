"""Tests of the daemon with the privileges of its systemd unit only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.clients import Session, tcp_ask
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import ORIGIN1, Lab

UNIT = Path(__file__).resolve().parents[2] / "packaging/enforcer.service"


def capabilities() -> str:
    """The unit's bounding set in the syntax of setpriv(1)."""
    found = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return ",".join("+" + name.removeprefix("CAP_").lower() for name in found[1].split())


class Confined(LabGateway):
    """A gateway whose processes have the unit's capabilities only."""

    def __init__(self, lab: Lab):
        super().__init__(lab)
        only = capabilities()
        self.enforcer = [
            *("nsenter", f"--net={lab.gw.path}", "--"),
            *("setpriv", f"--bounding-set=-all,{only}", f"--inh-caps=-all,{only}", "--no-new-privs"),
            *(word for word in self.enforcer if word not in ("--netns", lab.gw.name)),
        ]
        self.argv = [*self.enforcer, "run"]


@pytest.fixture
def confined(lab: Lab) -> Iterator[Confined]:
    gateway = Confined(lab)
    yield gateway
    gateway.stop()
    gateway.run("down", check=False)


def test_the_capabilities_of_the_unit_are_enough(lab: Lab, services: Services, confined: Confined) -> None:
    with confined:
        held = Path(f"/proc/{confined.pid}/status").read_text(encoding="ascii")
        assert f"{int(re.search(r'CapEff:	(.*)', held)[1], 16):b}".count("1") == 4  # type: ignore[index]
        for family in (4, 6):
            tcp_ask(lab.client, ORIGIN1[family])
        with Session(lab.client, ORIGIN1[4]) as session:
            assert session.seen.address == "203.0.113.10"
            confined.reload(with_another_egress(lab))
            assert session.ask() == session.seen
        for noun in ("status", "policies", "egress", "origins", "flows", "reasons", "plan"):
            confined.json(noun)
        explained = confined.json(
            "explain", "--src", "10.0.1.2", "--dst", ORIGIN1[4], "--protocol", "tcp", "--dport", "80"
        )
        assert explained["verdict"] == "dedicated"
    confined.run("down")
    assert lab.gw.run("nft", "list", "ruleset").stdout == ""


def with_another_egress(lab: Lab) -> dict[str, object]:
    """The lab's configuration with another egress IP to add and announce."""
    document = lab.config()
    extra = {"name": "lax-3", "location": "lax", "ipv4": "203.0.113.12", "ipv6": "2001:db8:4::/64"}
    document["egress_ips"].append(extra)
    return document
