"""`enforcer hosts`: names learnt from DNS answers, with their addresses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from enforcer.address import unpack
from enforcer.facts.rows import ANY_CLIENT
from enforcer.facts.store import Store
from enforcer.gateway.reader import GatewayReader

Row = dict[str, Any]


def hosts(reader: GatewayReader) -> list[Row]:
    """Sorted by name, then address. ``client`` None: for clients without an answer of their own.

    ``expires`` is in seconds; 0 for an expired name that a live flow keeps.
    """
    now = time.time()
    with Store(reader.instance.facts_file, create=False) as store:
        rows = [
            {
                "host": row.name,
                "address": str(_address(row.address)),
                "client": None if row.client == ANY_CLIENT else str(_address(row.client)),
                "expires": round(max(0.0, row.expires - now), 1),
            }
            for row in store.names()
        ]
    return sorted(rows, key=lambda row: (row["host"], row["address"], row["client"] or ""))


def _address(raw: bytes) -> Any:
    return unpack(np.frombuffer(raw, dtype="<u4"))
