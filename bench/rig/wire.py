"""One gateway between two wires, in network namespaces of its own.

::

    near ── in0 [gateway] out0 ── far

The generator injects frames at in0; near and far are only sinks, so they share one namespace. Within
:meth:`Wire.answering`, far answers as the origins. Every gateway has the same interface indexes and MAC
addresses, and its neighbours are static, so no address resolution runs during a measurement. Clients are
10.64.0.0/10 and fd64::/16, behind a router on in0.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pyroute2 import IPRoute

from bench.rig.programs import OUTSIDE_INDEX, Programs
from enforcer.datapath.bpffs import directory, find_bpffs
from enforcer.instance import Instance
from enforcer.kernel import filters
from enforcer.kernel.namespace import RUN_NETNS
from lab.netns import Namespace, create, delete, processes_in

PREFIX = "bench"
INSIDE_INDEX = 2
INSIDE_MAC = "02:00:00:00:00:01"
OUTSIDE_MAC = "02:00:00:00:00:02"
NEAR_MAC = "02:00:00:00:00:03"
FAR_MAC = "02:00:00:00:00:04"

_GATEWAY: dict[str, str | int] = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
}


class Wire:
    """The namespaces of one gateway; a context manager that removes them."""

    def __init__(self, name: str, programs: Programs, *, sinks: bool = True):
        """Without ``sinks``, packets that leave the gateway reach sockets in ``ends``."""
        self.gateway = Namespace(f"{PREFIX}-{os.getpid()}-{name}")
        self.ends = Namespace(f"{PREFIX}-{os.getpid()}-{name}-ends")
        self._programs = programs
        self._sinks = sinks

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        remove([self.gateway, self.ends])

    def _build(self) -> None:
        create(self.gateway, self.ends)
        self.ends.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.gateway.sysctls(_GATEWAY)
        for near, mac, index, ours, our_mac in (
            ("near", NEAR_MAC, INSIDE_INDEX, "in0", INSIDE_MAC),
            ("far", FAR_MAC, OUTSIDE_INDEX, "out0", OUTSIDE_MAC),
        ):
            self.gateway.ip(
                f"link add {ours} index {index} address {our_mac} type veth "
                f"peer name {near} address {mac} netns {self.ends.name}",
                f"link set {ours} up",
            )
            self.ends.ip(f"link set {near} up")
        self.gateway.ip(
            "link set lo up",
            "addr add 10.0.1.1/24 dev in0",
            "addr add fd00:1::1/64 dev in0 nodad",
            "addr add 198.51.100.1/24 dev out0",
            "addr add 2001:db8:ffff::1/64 dev out0 nodad",
            f"neigh add 10.0.1.2 lladdr {NEAR_MAC} nud permanent dev in0",
            f"neigh add fd00:1::2 lladdr {NEAR_MAC} nud permanent dev in0",
            f"neigh add 198.51.100.254 lladdr {FAR_MAC} nud permanent dev out0",
            f"neigh add 2001:db8:ffff::fe lladdr {FAR_MAC} nud permanent dev out0",
            "route add 10.64.0.0/10 via 10.0.1.2",
            "route add fd64::/16 via fd00:1::2",
            "route add default via 198.51.100.254",
            "route add default via 2001:db8:ffff::fe",
        )
        if self._sinks:
            self.attach("near", "sink_near")
            self.attach("far", "sink_far")
            self.ends.call(self._answer)

    def attach(self, end: str, program: str) -> None:
        """Replaces the XDP program of ``near`` or ``far``."""

        def attach() -> None:
            with IPRoute() as route:
                (index,) = route.link_lookup(ifname=end)
                route.link("set", index=index, xdp_fd=self._programs.fds[program])

        self.ends.call(attach)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block, a packet that arrives at far comes back as its origin's answer."""
        self.attach("far", "pass_far")
        try:
            yield
        finally:
            self.attach("far", "sink_far")

    def _answer(self) -> None:
        index = socket.if_nametoindex("far")
        filters.ensure_clsact(index)
        filters.attach(index, "ingress", self._programs.fds["reflect"], "enforcer/reflect")


def remove(namespaces: list[Namespace]) -> None:
    """Ends the namespaces' processes and deletes them, with the state and pins of an enforcer in them."""
    for pid in processes_in(namespaces):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    bpffs = find_bpffs()
    for namespace in namespaces:
        if not namespace.exists:
            continue
        instance = Instance(namespace.cookie())
        shutil.rmtree(instance.directory, ignore_errors=True)
        if bpffs is not None:
            shutil.rmtree(directory(bpffs, instance.cookie), ignore_errors=True)
        delete(namespace)


def stale() -> Iterator[Namespace]:
    """Namespaces of benchmarks whose process has ended."""
    for path in sorted(RUN_NETNS.glob(f"{PREFIX}-*")) if RUN_NETNS.exists() else []:
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            yield Namespace(path.name)
