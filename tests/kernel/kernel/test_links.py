"""Tests of the information on interfaces that the kernel gives."""

from __future__ import annotations

import pytest

from enforcer.kernel import links as kernel_links
from enforcer.kernel import netlink
from enforcer.kernel.links import links
from lab.netns import run


def test_the_ports_of_a_bridge(netns: str) -> None:
    run("ip link add over0 type bridge")
    run("ip link add port0 type veth peer name port0p")
    run("ip link set port0 master over0")
    found = links()
    assert (found["port0"].port_of, found["port0p"].port_of, found["over0"].port_of) == ("over0", None, None)


@pytest.mark.parametrize(
    ("kind", "takes"),
    [("bond", True), ("vrf", True), ("openvswitch", True), ("", True), ("batadv", False)],
)
def test_the_ports_of_what_this_kernel_may_lack(
    netns: str, monkeypatch: pytest.MonkeyPatch, kind: str, takes: bool
) -> None:
    """Replaces the kind of master in the kernel's message of a bridge port."""
    run("ip link add over0 type bridge")
    run("ip link add port0 type veth peer name port0p")
    run("ip link set port0 master over0")
    real = netlink.attributes

    def attributes(message: bytes, start: int = 0) -> dict[int, bytes]:
        found = real(message, start)
        slave = found.get(kernel_links.IFLA_INFO_SLAVE_KIND)
        if slave == b"bridge\0":
            found[kernel_links.IFLA_INFO_SLAVE_KIND] = kind.encode() + b"\0"
        return found

    monkeypatch.setattr(netlink, "attributes", attributes)
    assert links()["port0"].port_of == ("over0" if takes else None)
