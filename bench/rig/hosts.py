"""A gateway between two real hosts, whose own network stacks send and receive.

::

    client ── in0 [gateway] out0 ── origin

The devices are veth with default offloads: the hosts leave checksums and segmentation to them, so the gateway
forwards packets of up to 64 KiB.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from bench.rig import documents
from bench.rig.measure import Bench, entered
from bench.rig.peers import Enforcer, FullyRandomSnat, Peer
from bench.rig.programs import Programs
from bench.rig.wire import FAR_MAC, NEAR_MAC, PREFIX, Wire, remove
from lab.netns import Namespace, create

CLIENT = {4: "10.0.1.2", 6: "fd00:1::2"}
ORIGIN = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}
_HOST: dict[str, str | int] = {
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.core.somaxconn": 4096,
}
# The origin keeps no TIME-WAIT state. Translated clients share one address with random ports: a SYN from a
# port in TIME-WAIT at the origin may be taken for an old one (PAWS), and is sent again after a second.
_ORIGIN: dict[str, str | int] = _HOST | {
    "net.ipv6.conf.all.disable_ipv6": 0,
    "net.ipv4.tcp_max_tw_buckets": 0,
    # Above 60 s: up to that, FIN-WAIT-2 is kept as TIME-WAIT (tcp_input.c, tcp_rcv_state_process).
    "net.ipv4.tcp_fin_timeout": 120,
}


class Hosts(Wire):
    """The namespaces of one gateway and its two hosts; a context manager that removes them."""

    def __init__(self, name: str, programs: Programs):
        super().__init__(name, programs, sinks=False)
        self.client = Namespace(f"{PREFIX}-{os.getpid()}-{name}-client")
        self.origin = self.ends

    def __exit__(self, *_: object) -> None:
        remove([self.gateway, self.client, self.origin])

    def _build(self) -> None:
        create(self.client)
        super()._build()
        self.client.sysctls(_HOST)
        self.origin.sysctls(_ORIGIN)
        self.origin.ip(f"link set near netns {self.client.name}")
        for host, name, mac, addresses, network4, network6 in (
            (self.client, "near", NEAR_MAC, CLIENT, "10.0.1.1", "fd00:1::1"),
            (self.origin, "far", FAR_MAC, ORIGIN, "198.51.100.1", "2001:db8:ffff::1"),
        ):
            host.ip(
                "link set lo up",
                f"link set {name} address {mac} up",
                f"addr add {addresses[4]}/24 dev {name}",
                f"addr add {addresses[6]}/64 dev {name} nodad",
                f"route add default via {network4}",
                f"route add default via {network6}",
            )


def compared(bench: Bench, stack: ExitStack) -> list[Peer]:
    """Plain forwarding, SNAT and the enforcer between hosts, removed when the stack unwinds."""
    peers: list[Peer] = [
        Peer(bench.programs),
        FullyRandomSnat(bench.programs),
        Enforcer(bench.programs, bench.directory, documents.gateway()),
    ]
    for peer in peers:
        peer.wire = Hosts(peer.key, bench.programs)
    entered(peers, stack)
    return peers


def hosts(peer: Peer) -> Hosts:
    """The hosts on both sides of a peer from :func:`compared`."""
    assert isinstance(peer.wire, Hosts)
    return peer.wire
