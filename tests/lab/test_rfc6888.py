"""Tests of RFC 6888, requirements for carrier-grade NAT; see docs/rfc-compliance.md."""

from __future__ import annotations

import pytest
from truth import leaves_from, running

from lab.clients import ping, tcp_ask, udp_ask
from lab.configuration import added, changed
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, ORIGIN2, Lab

# Neither address is adjacent to another one in the lab's routes to the gateway.
FAR = [
    {"name": "far-1", "location": "lax", "ipv4": "198.18.129.7", "ipv6": "2001:db8:1abc::/64"},
    {"name": "far-2", "location": "lax", "ipv4": "198.18.255.250", "ipv6": "2001:db8:1001:8::/80"},
]


@pytest.mark.rfc6888_req12
@pytest.mark.rfc6888_req14
def test_rfc6888_req3_addresses_come_from_anywhere(lab: Lab, services: Services) -> None:
    """Egress addresses may be in any network and range; the daemon's output names no connection."""
    config = added(lab.config(), "egress_ips", *FAR)
    for name, port, each in (("bank", 9000, FAR[0]), ("shop", 8443, FAR[1])):
        traffic = f"net.dst.port == {port}"
        egress = {"ipv4": each["ipv4"], "ipv6": each["ipv6"]}
        config = changed(config, "policies", name, traffic=traffic, egress=egress)
    with running(lab, config) as gateway:
        for family in (4, 6):
            for each, port in ((FAR[0], 9000), (FAR[1], 8443)):
                egress = {4: each["ipv4"], 6: each["ipv6"]}
                for origin in (ORIGIN1, ORIGIN2):
                    assert udp_ask(lab.client, origin[family], port).address == leaves_from(egress, family)
            assert tcp_ask(lab.client, ORIGIN1[family]).address == leaves_from(
                {4: FAR[0]["ipv4"], 6: FAR[0]["ipv6"]}, family
            )
            assert ping(lab.client, ORIGIN1[family])
        said = gateway.said()
    assert "ready" in said
    for address in (*CLIENT.values(), *ORIGIN1.values(), *ORIGIN2.values()):
        assert address not in said
