"""`enforcer sessions`: the clients' sessions and their facts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from enforcer.facts.session import shown, unpack_client
from enforcer.facts.store import Store
from enforcer.gateway.reader import GatewayReader
from enforcer.instance import Instance

Row = dict[str, Any]


def sessions(instance: Instance) -> Iterator[Row]:
    """One row per client, IPv4 first. Raises NotInstalledError if nothing is enforced."""
    GatewayReader(instance)
    with Store(instance.facts_file, create=False) as store:
        for row in store.sessions():
            yield {
                "client": str(unpack_client(row.client)),
                **shown(row.facts),
                "expires": None if row.expires is None else _time(row.expires),
                "since": _time(row.since),
                "origin": row.origin,
            }


def _time(seconds: float) -> str:
    """RFC 3339, in seconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
