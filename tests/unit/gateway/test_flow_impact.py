"""FlowImpact: live flows that would get another egress IP, or none, by another file."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv6Network, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from enforcer import instance as instances
from enforcer.address import words
from enforcer.config import Configuration
from enforcer.gateway import preview
from enforcer.gateway.compiled_config import compile_config
from enforcer.gateway.flow_impact import FlowImpact
from enforcer.gateway.operations import (
    AddAddress,
    AddRange,
    Operation,
    SwitchTables,
)
from enforcer.gateway.state import State
from enforcer.reasons import by_name

LAX = ["203.0.113.10", "203.0.113.11"]
BLOCKS = ["2001:db8:1::/64", "2001:db8:2::/64"]
DOCUMENT: dict[str, Any] = {
    "location": "lax",
    "interfaces": {"inside": ["in0"], "outside": ["out0"]},
    "locations": {
        "lax": {"city": "Los Angeles", "country": "US", "latitude": 33.94, "longitude": -118.41},
        "nyc": {"city": "New York", "country": "US", "latitude": 40.64, "longitude": -73.78},
    },
    "shared": {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"},
    "egress_ips": [
        {"name": "lax-1", "location": "lax", "ipv4": LAX[0], "ipv6": BLOCKS[0]},
        {"name": "lax-2", "location": "lax", "ipv4": LAX[1], "ipv6": BLOCKS[1]},
        {"name": "nyc-1", "location": "nyc", "ipv4": "203.0.113.20", "ipv6": "2001:db8:3::/64"},
    ],
}
SLOT = {"shared": 0, "lax-1": 1, "lax-2": 2, "nyc-1": 3}
CLIENTS = {4: "10.0.1.2", 6: "fd00:1::2"}
ORIGINS = {4: "198.18.1.10", 6: "2001:db8:a1::10"}
KEY = np.dtype(
    [("client", "<u4", 4), ("origin", "<u4", 4), ("client_port", "<u2"), ("origin_port", "<u2"),
     ("protocol", "u1")]
)  # fmt: skip
FLOW = np.dtype([("slot", "<u4"), ("reason", "u1"), ("counted", "u1")])
EGRESS = np.dtype([("address", [("local", "<u4"), ("available", "<u4")], 2)])


def before() -> State:
    config = Configuration.model_validate(DOCUMENT)
    return State(config=config.model_dump(mode="json"), slots={k: v for k, v in SLOT.items() if v})


class Maps:
    """The maps of a gateway with both egress IPs of its location, except the addresses in ``lost``."""

    def __init__(
        self, flows: Iterable[tuple[int, str]], lost: Sequence[tuple[str, int]] = (), origin_port: int = 443
    ):
        rows = np.zeros(16, dtype=EGRESS)
        rows["address"]["local"][1:3] = rows["address"]["available"][1:3] = 1
        for name, family in lost:
            rows["address"]["available"][SLOT[name], int(family == 6)] = 0
        self.egresses = SimpleNamespace(get=lambda slot: rows[slot])
        flows = list(flows)
        keys, values = np.zeros(len(flows), dtype=KEY), np.zeros(len(flows), dtype=FLOW)
        for key, value, (family, egress) in zip(keys, values, flows, strict=True):
            key["client"] = words(ip_address(CLIENTS[family]))
            key["origin"] = words(ip_address(ORIGINS[family]))
            key["client_port"], key["origin_port"] = (
                np.uint16(port).byteswap() for port in (40000, origin_port)
            )
            key["protocol"] = 6
            value["slot"], value["counted"] = SLOT[egress], 1
            value["reason"] = by_name()["nearest"].number
        self.flows = SimpleNamespace(chunks=lambda: [(keys, values)])


def impact(maps: Maps, *operations: Operation, **changes: Any) -> int:
    document = {**copy.deepcopy(DOCUMENT), **changes}
    compiled = compile_config(Configuration.model_validate(document), "/etc/e.yaml", before())
    found = FlowImpact(compiled, operations, maps, None).of_flows()  # type: ignore[arg-type]
    assert sum(found.clients.values()) == found.flows
    return found.flows


BOTH = [(4, "lax-1"), (4, "lax-2"), (6, "lax-1"), (6, "lax-2")]


def test_the_nearest_egress_ip_stays_the_nearest() -> None:
    """The file does not determine which of them a client gets: any of them counts as unchanged."""
    assert impact(Maps(BOTH)) == 0
    assert impact(Maps([(4, "shared"), (6, "shared")])) == 2


def test_an_egress_ip_that_goes_takes_its_nearest_flows_along() -> None:
    without = [each for each in DOCUMENT["egress_ips"] if each["name"] != "lax-2"]
    assert impact(Maps(BOTH), egress_ips=without) == 2
    renumbered = copy.deepcopy(DOCUMENT["egress_ips"])
    renumbered[1]["ipv4"] = "203.0.113.99"
    assert impact(Maps(BOTH), egress_ips=renumbered) == 2


def test_another_location_has_another_nearest() -> None:
    assert impact(Maps(BOTH), location="nyc") == 4


def test_nearest_is_what_is_there_in_the_family() -> None:
    assert impact(Maps(BOTH, lost=[("lax-2", 4)])) == 1
    assert impact(Maps(BOTH, lost=[("lax-2", 4), ("lax-1", 4)])) == 2


def policies(**egress: str) -> list[dict[str, Any]]:
    return [{"name": "all", "precedence": 1, "egress": egress}]


def test_what_the_plan_puts_back_counts_as_there() -> None:
    lost = [("lax-1", 4), ("lax-1", 6)]
    flows = [(4, "lax-1"), (6, "lax-1")]
    address = AddAddress(("out0", IPv4Interface(f"{LAX[0]}/32")))
    network = AddRange(IPv6Network(BLOCKS[0]))
    for rules in ([], policies(ipv4=LAX[0])):
        assert impact(Maps(flows, lost), policies=rules) == 2
        assert impact(Maps(flows, lost), address, policies=rules) == 1
        assert impact(Maps(flows, lost), address, network, policies=rules) == 0


def test_a_fallback_counts_while_the_primary_is_away() -> None:
    rules = policies(ipv4=LAX[0], ipv4_fallback=LAX[1])
    assert impact(Maps(BOTH), policies=rules) == 2
    assert impact(Maps([(4, "lax-2"), (6, "lax-1")], lost=[("lax-1", 4)]), policies=rules) == 0
    shared = policies(ipv4="203.0.113.20", ipv4_fallback="0.0.0.0")
    assert impact(Maps([(4, "shared"), (6, "shared"), (6, "lax-1")]), policies=shared) == 1


@pytest.mark.parametrize(
    ("network", "expected"),
    [("::/0", 2), ("::/64", 0), ("2001:db8:a1::/64", 2), ("0.0.0.0/0", 2), ("10.0.0.0/8", 0)],
)
def test_a_private_network_is_of_its_family(network: str, expected: int) -> None:
    assert impact(Maps(BOTH), private_networks=[network]) == expected


def test_dns_stays_shared_whatever_policies_say() -> None:
    shared = [(4, "shared"), (6, "shared")]
    assert impact(Maps(shared, origin_port=53), policies=policies(ipv4=LAX[0])) == 0
    assert impact(Maps(shared, origin_port=54), policies=policies(ipv4=LAX[0])) == 2
    assert impact(Maps(BOTH, origin_port=53), policies=policies(ipv4=LAX[0])) == 4


def test_a_plan_without_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version in force stores no facts: no client has a session, and no host a name."""
    rules = policies(ipv4=LAX[0])
    rules[0]["identity"] = 'identity.email == "a" or net.fqdn.host == "b.example" or net.src.ip == 10.0.1.2'
    config = Configuration.model_validate({**DOCUMENT, "policies": rules})
    gateway = SimpleNamespace(state=before(), maps=lambda: Maps(BOTH))
    monkeypatch.setattr(instances, "RUN", tmp_path / "run")
    monkeypatch.setattr(preview, "netns_cookie", lambda: 0x2A)
    monkeypatch.setattr(preview, "check_file", lambda _: config)
    monkeypatch.setattr(preview, "Gateway", lambda _: gateway)
    monkeypatch.setattr(preview, "planned", lambda *_: [SwitchTables()])
    found = preview.preview_file(tmp_path / "e.yaml")
    assert found.impact.clients == {CLIENTS[4]: 1}
    assert not (tmp_path / "run").exists()
