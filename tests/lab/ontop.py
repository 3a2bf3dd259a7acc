"""An inside interface on top of another interface of the gateway, and checks of the traffic through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from truth import leaves_from, packets

from lab.clients import ping, tcp_ask, udp_ask
from lab.configuration import LAX1, Document
from lab.gateway import LabGateway
from lab.topology import CLIENT, ORIGIN1

HOST = {4: "10.0.3.2", 6: "fd00:3::2"}
"""The second client's addresses on that interface's network."""
_GATEWAY = {4: "10.0.3.1", 6: "fd00:3::1"}
_LENGTH = {4: 24, 6: 64}
_FIRST_CLIENTS = {4: "10.0.1.0/24", 6: "fd00:1::/64"}


@contextmanager
def on_top(gateway: LabGateway, config: Document, lower: str, kind: str) -> Iterator[LabGateway]:
    """``upper0`` of this kind (ip-link(8): "macvlan", "vlan id 5") becomes an inside interface, too.

    The second client is on its network. The client's link is on top of the lower link's peer: the first
    client's ``eth0``, or ``gw0`` of the internet's router.
    """
    lab = gateway.lab
    far, name = (lab.net, "gw0") if lower == "out0" else (lab.client, "eth0")
    lab.gw.ip(
        f"link add link {lower} name upper0 type {kind}",
        "link set upper0 up",
        *(_address(_GATEWAY, family, "upper0") for family in HOST),
    )
    far.ip(f"link add link {name} name there0 type {kind}", f"link set there0 netns {lab.client2.name}")
    lab.client2.ip("link set there0 up")
    for family in HOST:
        lab.client2.ip(
            _address(HOST, family, "there0"),
            *(f"route add {to[family]} via {_GATEWAY[family]}" for to in (_FIRST_CLIENTS, ORIGIN1)),
        )
    sides = config["interfaces"]
    try:
        gateway.reload({**config, "interfaces": {**sides, "inside": [*sides["inside"], "upper0"]}})
        yield gateway
    finally:
        gateway.reload(config)
        lab.gw.ip("link del upper0")
        lab.client2.ip("link del there0")


def _address(addresses: dict[int, str], family: int, device: str) -> str:
    nodad = "nodad" if family == 6 else ""
    return f"address add {addresses[family]}/{_LENGTH[family]} dev {device} {nodad}"


def passes(gateway: LabGateway, family: int) -> None:
    """Assert that inside networks reach one another and that ``upper0``'s host leaves by its egress IP."""
    lab, host = gateway.lab, HOST[family]
    before = packets(gateway)
    assert ping(lab.client, host, CLIENT[family]).received == 1
    assert ping(lab.client2, CLIENT[family], host).received == 1
    for ask in (tcp_ask, udp_ask):
        seen = ask(lab.client2, ORIGIN1[family], source=host, timeout=30)
        assert seen.address == leaves_from(LAX1, family, host)
    assert not {"leak", "spoofed"} & (packets(gateway) - before).keys()
