"""What every part of the demo works with: the lab, its servers, the gateway, the screen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from enforcer.lab.configuration import LAX1, LAX2, Document, added, changed
from enforcer.lab.gateway import Gateway
from enforcer.lab.load import PORT
from enforcer.lab.netns import LabError
from enforcer.lab.services import Services
from enforcer.lab.topology import CLIENT, Lab

FAMILIES = (4, 6)


def configuration(lab: Lab) -> Document:
    """The lab's configuration, and in it: bank has a fallback, and the port of the limit takes lax-1."""
    bank = {"ipv4": LAX1[4], "ipv4_fallback": LAX2[4], "ipv6": LAX1[6]}
    bulk = {
        "name": "bulk",
        "precedence": 5,
        "traffic": f"net.dst.port == {PORT}",
        "egress": {"ipv4": LAX1[4], "ipv6": LAX1[6]},
    }
    return added(changed(lab.config(), "policies", "bank", egress=bank), "policies", bulk)


@dataclass(frozen=True)
class Question:
    """What `enforcer explain` is asked of: an origin by family, a protocol, a port."""

    origin: dict[int, str]
    protocol: str
    port: int | None = None

    def arguments(self, family: int) -> list[str]:
        """The command's arguments."""
        asked = ["--src", CLIENT[family], "--dst", self.origin[family], "--protocol", self.protocol]
        return asked if self.port is None else [*asked, "--dport", str(self.port)]


@dataclass(frozen=True)
class Stage:
    """The lab as the demo has set it up."""

    lab: Lab
    services: Services
    gateway: Gateway
    config: Document

    def explain(self, question: Question) -> dict[int, dict[str, Any]]:
        """What the command says beforehand, by family; both are asked side by side."""
        with ThreadPoolExecutor(len(FAMILIES)) as pool:
            answers = pool.map(
                lambda family: self.gateway.json("explain", *question.arguments(family)), FAMILIES
            )
            return dict(zip(FAMILIES, answers, strict=True))

    def counted(self, reason: str) -> int:
        """The flows that `enforcer reasons` has counted of one reason."""
        for row in self.gateway.json("reasons"):
            if row["reason"] == reason:
                return int(row["flows"])
        raise LabError(f"enforcer reasons does not list {reason}")
