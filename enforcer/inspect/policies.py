"""`enforcer policies`: the policies in force, and the number of flows that each has decided."""

from __future__ import annotations

import time
from typing import Any

from enforcer.gateway.reader import SHARED, GatewayReader

Row = dict[str, Any]


def policies(reader: GatewayReader) -> list[Row]:
    """One row per policy in ascending precedence."""
    names: dict[str | None, str] = {None: ""}
    for entry in reader.config["egress_ips"]:
        names[entry["ipv4"]] = names[entry["ipv6"]] = entry["name"]
    names["0.0.0.0"] = SHARED
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    rows = []
    for policy in sorted(reader.config["policies"], key=lambda entry: entry["precedence"]):
        hits = reader.maps.policy_hits.get(reader.state.policies[policy["name"]])
        matched = int(hits["flows"]) if hits is not None else 0
        rows.append(
            {
                "precedence": policy["precedence"],
                "name": policy["name"],
                "enabled": policy["enabled"],
                "traffic": policy["traffic"],
                "egress": _primary(policy["egress"], names),
                "fallback": _fallback(policy["egress"], names),
                "matched": matched,
                "last_matched": round((now - int(hits["last"])) / 1e9, 3)
                if hits is not None and matched
                else None,
                "identity": policy["identity"],
                "device_posture": policy["device_posture"],
            }
        )
    return rows


def _primary(egress: Any, names: dict[str | None, str]) -> str:
    if isinstance(egress, str):
        return egress
    chosen = [names[egress[field]] for field in ("ipv4", "ipv6") if egress[field] is not None]
    return " / ".join(dict.fromkeys(chosen))


def _fallback(egress: Any, names: dict[str | None, str]) -> str | None:
    if not isinstance(egress, dict) or egress["ipv4_fallback"] is None:
        return None
    return names[egress["ipv4_fallback"]]
