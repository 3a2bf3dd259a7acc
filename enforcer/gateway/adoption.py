"""Adoption of live connections from conntrack after the flow map was lost."""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from itertools import islice

import numpy as np

from enforcer.address import IPNetwork
from enforcer.datapath.adopt import Adopted, Slots, adopt
from enforcer.datapath.maps import Maps
from enforcer.gateway import availability
from enforcer.gateway.desired import Desired
from enforcer.kernel import conntrack, links, routes

# conntrack entries converted at a time; as Python objects each takes some hundred bytes.
_AT_ONCE = 65536


def adopted(maps: Maps, wanted: Desired) -> Adopted:
    """The TCP and UDP connections translated to this gateway's addresses, as rows of ``maps.flows``.

    At most as many as the map has room for; connections that count towards limits come first.
    """
    networks: dict[IPNetwork, int] = {}
    for egress in (*wanted.ours, wanted.shared):
        networks[IPv4Network(egress.ipv4)] = egress.slot
        networks[egress.ipv6] = egress.slot
    slots, types = Slots(networks), (maps.flows.key, maps.flows.value)
    timeouts = availability.write_timeouts(maps)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    parts = [adopt((), slots, types, timeouts, now)]
    entries = conntrack.entries()
    while some := list(islice(entries, _AT_ONCE)):
        parts.append(adopt(some, slots, types, timeouts, now))
    keys = np.concatenate([part.keys for part in parts])
    flows = np.concatenate([part.flows for part in parts])
    ours = np.flatnonzero(_from_inside(keys["client"], wanted))
    # conntrack's table may be larger than the map: counted flows come first.
    order = ours[np.argsort(flows["counted"][ours] == 0, kind="stable")][: maps.flows.info.entries]
    return Adopted(keys[order], flows[order])


def _from_inside(clients: np.ndarray, wanted: Desired) -> np.ndarray:
    """Boolean mask: False where the route to the client leaves by an interface that is not inside.

    Rules of other software translate those clients' connections.
    """
    distinct, which = np.unique(clients, axis=0, return_inverse=True)
    inside = {link.index for name, link in links.links().items() if name in wanted.inside}
    found = routes.interfaces_to([client.tobytes() for client in distinct])
    ours = np.array([index is None or index in inside for index in found], dtype=bool)
    return ours[which.reshape(-1)]
