"""What every part of the demo uses: the lab, its servers, the gateway, the configuration."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lab.configuration import LAX1, LAX2, Document, added, changed
from lab.gateway import LabGateway
from lab.load import PORT
from lab.netns import LabError
from lab.services import Services
from lab.topology import CLIENT, Lab

FAMILIES = (4, 6)
PERSON, SITE = "ann@corp.example", "bank.lab"
# A second address of the client, from which it looks the site's name up.
READER = {4: "10.0.1.5", 6: "fd00:1::5"}


def configuration(lab: Lab) -> Document:
    """The lab's configuration with a fallback for bank, lax-1 for the limit's port, and a person and a site
    that leave from lax-2.
    """
    bank = {"ipv4": LAX1[4], "ipv4_fallback": LAX2[4], "ipv6": LAX1[6]}
    bulk = {
        "name": "bulk",
        "precedence": 5,
        "traffic": f"net.dst.port == {PORT}",
        "egress": {"ipv4": LAX1[4], "ipv6": LAX1[6]},
    }
    lax2 = {"ipv4": LAX2[4], "ipv6": LAX2[6]}
    person = {
        "name": "person",
        "precedence": 6,
        "traffic": "net.dst.ip in {198.18.1.0/24 2001:db8:a1::/64}",
        "identity": f'identity.email == "{PERSON}"',
        "egress": lax2,
    }
    site = {
        "name": "site",
        "precedence": 7,
        "traffic": f'net.fqdn.host == "{SITE}" and net.src.ip in {{{" ".join(READER.values())}}}',
        "egress": lax2,
    }
    config = changed(lab.config(), "policies", "bank", egress=bank)
    return added(config, "policies", bulk, person, site)


@dataclass(frozen=True)
class Question:
    """A question for `enforcer explain`: an origin by family, a protocol, a port, a client, and overrides."""

    origin: dict[int, str]
    protocol: str
    port: int | None = None
    client: dict[int, str] = field(default_factory=lambda: CLIENT)
    overrides: tuple[str, ...] = ()

    def arguments(self, family: int) -> list[str]:
        """The command's arguments for one family."""
        asked = ["--src", self.client[family], "--dst", self.origin[family], "--protocol", self.protocol]
        asked += [] if self.port is None else ["--dport", str(self.port)]
        return [*asked, *self.overrides]


@dataclass(frozen=True)
class Stage:
    """The lab as the demo has set it up."""

    lab: Lab
    services: Services
    gateway: LabGateway
    config: Document

    def explain(self, question: Question) -> dict[int, dict[str, Any]]:
        """The answers of `enforcer explain` by family; both commands run in parallel."""
        with ThreadPoolExecutor(len(FAMILIES)) as pool:
            answers = pool.map(
                lambda family: self.gateway.json("explain", *question.arguments(family)), FAMILIES
            )
            return dict(zip(FAMILIES, answers, strict=True))

    def counted(self, reason: str) -> int:
        """The flows that `enforcer reasons` counts for one reason."""
        for row in self.gateway.json("reasons"):
            if row["reason"] == reason:
                return int(row["flows"])
        raise LabError(f"enforcer reasons does not list {reason}")
