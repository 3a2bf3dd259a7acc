"""Tests of tunnels over an outside interface: inner packets have an egress address, outer ones do not."""

from __future__ import annotations

from truth import families, running

from lab.capture import Capture
from lab.clients import tcp_ask
from lab.services import Services
from lab.topology import ORIGIN2, PRIVATE, SHARED, Lab

UNDERLAY = {
    4: ("198.51.100.2", "198.51.100.254", 24),
    6: ("2001:db8:ffff::2", "2001:db8:ffff::fe", 64),
}


@families
def test_a_tunnels_outer_packets(lab: Lab, services: Services, family: int) -> None:
    """The outer packets inherit the inner packet's mark and still leave from the tunnel's own address."""
    local, remote, length = UNDERLAY[family]
    nodad = " nodad" if family == 6 else ""
    lab.gw.ip(f"addr add {local}/{length} dev out0{nodad}")
    for namespace, mine, other, host in ((lab.gw, local, remote, 1), (lab.net, remote, local, 2)):
        namespace.ip(
            f"link add vx0 type vxlan id 7 local {mine} remote {other} dstport 4789",
            "link set vx0 up",
            f"addr add 192.168.7.{host}/24 dev vx0",
            f"addr add fd07::{host}/64 dev vx0 nodad",
        )
    behind = ("10.20.0.0/24", "198.18.2.0/24", "fd20::/64", "2001:db8:a2::/64")
    lab.gw.ip(*(f"route add {to} via {'fd07::2' if ':' in to else '192.168.7.2'} dev vx0" for to in behind))
    try:
        with running(lab, lab.config(interfaces={"inside": ["in0"], "outside": ["out0", "vx0"]})):
            outer = Capture(lab.net, "gw0", lab.directory, direction="in", expression="udp dst port 4789")
            with outer:
                for inner in (4, 6):
                    for _ in range(8):  # the later ones take the fast path
                        assert tcp_ask(lab.client, PRIVATE[inner]).address == SHARED[inner]
                        assert tcp_ask(lab.client, ORIGIN2[inner]).address != SHARED[inner]
            assert set(outer.sources()) == {local}
    finally:
        lab.gw.ip("link del vx0", f"addr del {local}/{length} dev out0")
        lab.net.ip("link del vx0")
