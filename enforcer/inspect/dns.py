"""`enforcer dns`: the learner's counters of DNS questions and answers, asked of the daemon."""

from __future__ import annotations

from typing import Any

from enforcer.control import protocol
from enforcer.gateway.reader import GatewayReader
from enforcer.instance import Instance

Row = dict[str, Any]


def dns(instance: Instance) -> list[Row]:
    """The counters that are not zero; empty while no policy uses host names.

    Raises NotInstalledError, EnforcerError if no daemon runs.
    """
    GatewayReader(instance)
    report = protocol.ask(protocol.daemon_of(instance), "dns")
    return [
        {"what": what, "number": count, "meaning": report["meanings"][what]}
        for what, count in report.get("counts", {}).items()
    ]
