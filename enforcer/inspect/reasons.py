"""`enforcer reasons`: packets and flows by the reason of their outcome."""

from __future__ import annotations

from typing import Any

from enforcer import reasons as listed
from enforcer.gateway.reader import GatewayReader
from enforcer.kernel import nft

Row = dict[str, Any]


def reasons(reader: GatewayReader) -> list[Row]:
    """One row per reason, by number, including those that never occurred."""
    ruleset = {name.replace("_", "-"): packets for name, (packets, _) in nft.counters().items()}
    rows = []
    for number, reason in sorted(listed.reasons().items()):
        metrics = reader.maps.reasons.get(number)
        packets = int(metrics["packets"].sum()) if metrics is not None else 0
        flows = int(metrics["flows"].sum()) if metrics is not None else 0
        rows.append(
            {
                "reason": reason.name,
                "packets": packets + ruleset.get(reason.name, 0),
                "flows": flows,
                "verdict": reason.verdict,
                "description": reason.description,
            }
        )
    return rows


def packets_of(rows: list[Row], *names: str) -> int:
    """The sum of the packets of these reasons."""
    return sum(row["packets"] for row in rows if row["reason"] in names)
