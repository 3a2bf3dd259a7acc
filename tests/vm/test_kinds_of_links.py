"""Tests of WireGuard, VLANs, MACsec, bonds and tunnels on either side, with and without offloads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from fastpath import wait_until_fast
from ontop import on_top, passes
from transfer import Transfer

from lab.clients import udp_ask
from lab.configuration import LAX1, Document
from lab.gateway import LabGateway
from lab.kinds import KINDS, End, build, families, has_ethernet, remove
from lab.services import Services
from lab.topology import CLIENT2, ORIGIN1, SHARED, Lab

LEAST = 1 << 19
NET = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}
GATEWAY2 = {4: "10.0.2.1", 6: "fd00:2::1"}
WHOLE = {4: 32, 6: 128}


def ends(lab: Lab, side: str) -> tuple[End, End]:
    """The gateway's end and the other one."""
    if side == "inside":
        return End(lab.gw, "in1", GATEWAY2), End(lab.client2, "eth0", CLIENT2)
    return End(lab.gw, "out0", SHARED), End(lab.net, "gw0", NET)


def name_of(side: str, kind: str) -> str:
    return f"{side[0]}-{kind}"


def addresses(side: str, kind: str, family: int) -> tuple[str, str]:
    """The addresses of the gateway's end and of the other one."""
    number = list(KINDS).index(kind) + 1
    networks = {"inside": ("10.7", "fd07"), "outside": ("198.19", "2001:db8:f7")}
    if family == 4:
        return tuple(f"{networks[side][0]}.{number}.{host}" for host in (1, 2))
    return tuple(f"{networks[side][1]}:{number}::{host}" for host in (1, 2))


@pytest.fixture(scope="module")
def linked(gateway: LabGateway, config: Document) -> Iterator[LabGateway]:
    """A gateway with a configured link of each kind on either side."""
    lab = gateway.lab
    interfaces = copy.deepcopy(config["interfaces"])
    for first, side in ((1, "inside"), (101, "outside")):
        for number, kind in enumerate(KINDS, first):
            name = name_of(side, kind)
            build(kind, name, number, *ends(lab, side))
            for at, end in enumerate(ends(lab, side)):
                end.namespace.ip(
                    *(
                        f"addr add {addresses(side, kind, family)[at]}/{24 if family == 4 else 64} dev {name}"
                        + (" nodad" if family == 6 else "")
                        for family in families(kind)
                    )
                )
            interfaces[side].append(name)
    gateway.reload({**config, "interfaces": interfaces})
    yield gateway
    for side in ("inside", "outside"):
        for kind in KINDS:
            remove(kind, name_of(side, kind), *ends(lab, side))
    gateway.reload(config)


def routed(lab: Lab, side: str, kind: str, family: int, *, back: bool = False) -> None:
    """Route origin 1 over the link, or remove that route (``back``)."""
    name, (near, far) = name_of(side, kind), addresses(side, kind, family)
    origin = f"{ORIGIN1[family]}/{WHOLE[family]}"
    do = "del" if back else "replace"
    if side == "inside":
        lab.client2.ip(f"route {do} {origin} via {near} dev {name} src {far}")
        return
    lab.gw.ip(f"route {do} {origin} via {far} dev {name}")
    lab.net.ip(f"route {do} {ip_network(LAX1[family])} via {near} dev {name}")


@pytest.mark.parametrize("side", ["inside", "outside"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_link(linked: LabGateway, services: Services, kind: str, side: str) -> None:
    lab, name = linked.lab, name_of(side, kind)
    client = lab.client2 if side == "inside" else lab.client
    for family in families(kind):
        address = ORIGIN1[family]
        routed(lab, side, kind, family)
        for on in (True, False):
            for end in ends(lab, side):
                offload(end, name, on)
            with Transfer(client, lab.origin1, address, LEAST) as transfer:
                if has_ethernet(kind) and on:
                    wait_until_fast(linked, [transfer.client_port])
                assert transfer.finish() >= 2 * LEAST
                seen = [transfer.peer[0], udp_ask(client, address, timeout=30).address]
            assert all(ip_address(source) in ip_network(LAX1[family]) for source in seen), seen
        routed(lab, side, kind, family, back=True)


@pytest.mark.parametrize("lower", ["out0", "in0"])
def test_an_inside_vlan_on_top_of_another_interface(
    gateway: LabGateway, config: Document, lower: str
) -> None:
    """The VLAN's tagged frames pass the lower interface's programs, which ignore them."""
    with on_top(gateway, config, lower, "vlan id 300"):
        for family in (4, 6):
            passes(gateway, family)


def offload(end: End, name: str, on: bool) -> None:
    """Switch the link's own offloads; some kinds have fixed features."""
    words = [
        word
        for feature in ("rx", "tx", "sg", "tso", "gso", "gro")
        for word in (feature, "on" if on else "off")
    ]
    end.namespace.run("ethtool", "-K", name, *words, check=False)
