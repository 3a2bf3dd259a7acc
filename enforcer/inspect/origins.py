"""`enforcer origins`: live connections per (egress address, protocol, origin address, origin port)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from enforcer.address import port, unpack
from enforcer.constants import PROTOCOL_NAMES
from enforcer.gateway.reader import GatewayReader

Row = dict[str, Any]


def origins(reader: GatewayReader) -> list[Row]:
    """One row per origin, busiest first."""
    limit = reader.limit
    waiting = _closed(reader)
    rows: list[Row] = []
    for key, value in zip(*reader.origins, strict=True):
        active = int(value["active"])
        rows.append(
            {
                "egress": reader.egress_names.get(int(value["slot"]), f"slot {value['slot']}"),
                "source_ip": str(unpack(key["egress_address"])),
                "protocol": PROTOCOL_NAMES[int(key["protocol"])],
                "origin_ip": str(unpack(key["origin"])),
                "origin_port": port(key["origin_port"]),
                "active": active,
                "limit": limit,
                "utilisation": round(active / limit, 4),
                "peak": int(value["peak"]),
                "total": int(value["total"]),
                "refused": int(value["refused"]),
                "closed": waiting[key.tobytes()],
            }
        )
    rows.sort(
        key=lambda row: (
            -row["active"],
            row["egress"],
            row["source_ip"],
            row["origin_ip"],
            row["origin_port"],
        )
    )
    return rows


def _closed(reader: GatewayReader) -> Counter[bytes]:
    """Number of closed connections that still hold a port (TIME_WAIT, CLOSE), by the origin's key."""
    found: Counter[bytes] = Counter()
    for keys, flows in reader.maps.flows.chunks():
        closed = flows["counted"] == 0
        for key, flow in zip(keys[closed], flows[closed], strict=True):
            tail = key["origin_port"].tobytes() + key["protocol"].tobytes() + b"\0"
            found[flow["egress_address"].tobytes() + key["origin"].tobytes() + tail] += 1
    return found
