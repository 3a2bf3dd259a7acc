"""A configuration whose egress IP `near` is on link: the internet's router resolves its addresses there."""

from __future__ import annotations

from lab.configuration import Document, added
from lab.topology import Lab

NEAR = {4: "203.0.113.19", 6: "2001:db8:9::/64"}


def with_near(lab: Lab, *, on_link: bool) -> Document:
    """The lab's configuration with this egress IP for all traffic to origin 2."""
    entry = {"name": "near", "location": "lax", "ipv4": NEAR[4], "ipv6": NEAR[6], "on_link": on_link}
    policy = {
        "name": "near",
        "precedence": 1,
        "traffic": "net.dst.ip in {198.18.2.10 2001:db8:a2::10}",
        "egress": {"ipv4": NEAR[4]},
    }
    return added(added(lab.config(), "egress_ips", entry), "policies", policy)
