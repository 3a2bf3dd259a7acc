"""`enforcer dns`: what the daemon made of the DNS that passed, by name."""

from __future__ import annotations

from typing import Any

from enforcer.control import protocol
from enforcer.gateway.reader import GatewayReader
from enforcer.instance import Instance

Row = dict[str, Any]


def dns(instance: Instance) -> list[Row]:
    """What has happened at least once; empty while no policy asks for names. The daemon is asked.

    Raises NotInstalledError, EnforcerError if there is no daemon."""
    GatewayReader(instance)
    report = protocol.ask(protocol.daemon_of(instance), "dns")
    return [
        {"what": what, "number": count, "meaning": report["meanings"][what]}
        for what, count in report.get("counts", {}).items()
    ]
