"""The outside wire: the packets that left the gateway during the whole demo, by source address."""

from __future__ import annotations

import ipaddress
from collections import Counter

from lab.capture import Capture
from lab.configuration import LAX1, LAX2
from lab.demo.screen import Screen
from lab.topology import SHARED, Lab

PLANNED = {
    "shared": SHARED,
    "lax-1": LAX1,
    "lax-2": LAX2,
}


def capture(lab: Lab) -> Capture:
    """A capture, not started, of what the internet's router receives from the gateway."""
    return Capture(lab.net, "gw0", lab.directory, direction="in")


def show(caught: Capture, screen: Screen) -> None:
    """End the capture and count its packets by the owner of their source address."""
    screen.heading("The outside wire during all of this")
    with screen.working("reading the capture"):
        caught.stop()
        sources = caught.sources()
    planned: Counter[str] = Counter()
    unplanned: dict[str, int] = {}
    for address, packets in sources.items():
        name = _owner(address)
        if name is None:
            unplanned[address] = packets
        else:
            planned[name] += packets
    shown = ", ".join(f"{planned[name]:,} from {name}" for name in PLANNED)
    screen.check(
        all(planned[name] for name in PLANNED), f"{sum(sources.values()):,} packets left the gateway: {shown}"
    )
    screen.check(
        not unplanned,
        "no packet left with an unplanned source"
        if not unplanned
        else "packets left with unplanned sources: "
        + ", ".join(f"{packets:,} from {address}" for address, packets in unplanned.items()),
    )


def _owner(address: str) -> str | None:
    for name, networks in PLANNED.items():
        network = networks[6 if ":" in address else 4]
        if ipaddress.ip_address(address) in ipaddress.ip_network(network):
            return name
    return None
