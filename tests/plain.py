"""A minimal desired state of a gateway."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from enforcer.datapath.settings import Settings
from enforcer.gateway.desired import Desired

PLAIN = Desired(
    inside=("in0",),
    outside=("out0",),
    shared4=IPv4Address("198.51.100.1"),
    shared6=IPv6Address("2001:db8:ffff::1"),
    egresses=(),
    nearest=(),
    settings=Settings(
        mark_mask=0xFFFF,
        limit=40000,
        flows_per_client=512,
        unanswered_per_client=256,
        proxy_tcp=True,
        proxy_udp=False,
    ),
    flows=1024,
    origins=1024,
)
