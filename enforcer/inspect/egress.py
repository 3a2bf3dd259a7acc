"""`enforcer egress`: the dedicated egress IPs, their availability and utilisation."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network
from typing import Any

from enforcer.address import port, unpack
from enforcer.constants import PROTOCOL_NAMES
from enforcer.gateway.reader import GatewayReader
from enforcer.kernel import addresses

Row = dict[str, Any]


def egress(reader: GatewayReader) -> list[Row]:
    """One row per egress IP in the configuration's order."""
    held = {interface.ip for _, interface in addresses.held()}
    ranges = addresses.ranges()
    keys, values = reader.origins
    rows = []
    for entry in reader.config["egress_ips"]:
        here = entry["location"] == reader.config["location"]
        ipv4 = here and IPv4Address(entry["ipv4"]) in held
        ipv6 = here and IPv6Network(entry["ipv6"]) in ranges
        mine = values["slot"] == reader.state.slots[entry["name"]]
        active = values["active"][mine]
        busiest, most = None, 0
        if active.any():
            key = keys[mine][active.argmax()]
            most = int(active.max())
            busiest = _named(key)
        rows.append(
            {
                "name": entry["name"],
                "location": entry["location"],
                "ipv4": entry["ipv4"],
                "ipv6": entry["ipv6"],
                "available": ipv4 and ipv6,
                "active": int(active.sum()),
                "busiest_origin": busiest,
                "utilisation": round(most / reader.limit, 4),
                "available_ipv4": ipv4,
                "available_ipv6": ipv6,
            }
        )
    return rows


def _named(key: Any) -> str:
    address = unpack(key["origin"])
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{PROTOCOL_NAMES[int(key['protocol'])]} {host}:{port(key['origin_port'])}"
