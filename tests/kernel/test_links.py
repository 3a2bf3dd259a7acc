"""What there is to know of an interface."""

from __future__ import annotations

from enforcer.kernel.links import links

from .conftest import run


def test_the_ports_of_a_bridge(netns: str) -> None:
    run("ip link add over0 type bridge")
    run("ip link add port0 type veth peer name port0p")
    run("ip link set port0 master over0")
    found = links()
    assert (found["port0"].port_of, found["port0p"].port_of, found["over0"].port_of) == ("over0", None, None)
