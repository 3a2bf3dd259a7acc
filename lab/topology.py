"""The lab: eight network namespaces around one gateway, built in well under a second.

::

    client  10.0.1.2-9  fd00:1::2-9 ── in0 ┐      ┌ out0 ── net ┬─ origin1  198.18.1.10   2001:db8:a1::10
    client2 10.0.2.2-9  fd00:2::2-9 ── in1 ┴─ gw ─┘             ├─ origin2  198.18.2.10   2001:db8:a2::10
                                                                ├─ resolver 198.18.53.53  2001:db8:53::53
                                                                └─ private  10.20.0.10    fd20::10

``net`` is the internet's router. It looks for 203.0.113.0/24 by ARP on the gateway's link, routes
2001:db8::/44 to the gateway, and looks for 2001:db8:9::/64 by neighbour discovery. It has no route to
the clients' networks: what leaves the gateway untranslated is never answered.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from enforcer.datapath import bpffs
from enforcer.instance import Instance
from enforcer.instance.trust import remove_tree
from enforcer.kernel.namespace import RUN_NETNS
from lab import configuration
from lab.configuration import Document
from lab.netns import LabError, Namespace, create, delete, execute, processes_in, veth

ROLES = ("client", "client2", "gw", "net", "origin1", "origin2", "resolver", "private")
ROUTERS = ("gw", "net")
STATE = Path("/run/enforcer-lab")

# The host parts that each client has, in both families; the first is its default source.
HOSTS = tuple(range(2, 10))

SHARED = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
CLIENT = {4: "10.0.1.2", 6: "fd00:1::2"}
CLIENT2 = {4: "10.0.2.2", 6: "fd00:2::2"}
GATEWAY = {4: "10.0.1.1", 6: "fd00:1::1"}  # client's default gateway, with a resolver and sshd
ORIGIN1 = {4: "198.18.1.10", 6: "2001:db8:a1::10"}
ORIGIN2 = {4: "198.18.2.10", 6: "2001:db8:a2::10"}
RESOLVER = {4: "198.18.53.53", 6: "2001:db8:53::53"}
PRIVATE = {4: "10.20.0.10", 6: "fd20::10"}

# Servers behind the internet's router: their addresses, and the router's: host 1 (and ::1) of each network.
SERVERS = {
    "origin1": (ORIGIN1, "198.18.1.1", "2001:db8:a1::1"),
    "origin2": (ORIGIN2, "198.18.2.1", "2001:db8:a2::1"),
    "resolver": (RESOLVER, "198.18.53.1", "2001:db8:53::1"),
    "private": (PRIVATE, "10.20.0.1", "fd20::1"),
}

# SIGINT raises KeyboardInterrupt by default; handlers raise SystemExit for these, so that __exit__ runs.
_ENDING = (signal.SIGTERM, signal.SIGHUP)

_SETTINGS: dict[str, str | int] = {
    # The kernel uses the greater value of "all" and the interface, which starts with that of "default".
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.router_solicitations": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
}
_ROUTER: dict[str, str | int] = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
}
_HOST: dict[str, str | int] = {
    # Tens of thousands of connections from a few addresses, and as many accepted at once.
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.core.somaxconn": 65535,
    "net.ipv4.tcp_max_syn_backlog": 65535,
}
# Only the gateway keeps the kernel's limits on ICMP errors: with limits on the others, a test that provokes
# several errors in a second would see only some.
_TALKATIVE: dict[str, str | int] = {
    "net.ipv4.icmp_ratelimit": 0,
    "net.ipv6.icmp.ratelimit": 0,
}


class Lab:
    """One lab by its prefix; a context manager that builds it on entry and removes it on exit.

    Raises LabError if ip(8) refuses a step, and removes what was built until then.
    """

    def __init__(self, prefix: str = "lab", outside: int = 1):
        if outside not in (1, 2):
            raise ValueError("a lab has one or two outside interfaces")
        self.prefix = prefix
        self.outside = [f"out{index}" for index in range(outside)]
        self.directory = STATE / prefix
        self.namespaces = {role: Namespace(f"{prefix}-{role}") for role in ROLES}
        self.client = self.namespaces["client"]
        self.client2 = self.namespaces["client2"]
        self.gw = self.namespaces["gw"]
        self.net = self.namespaces["net"]
        self.origin1 = self.namespaces["origin1"]
        self.origin2 = self.namespaces["origin2"]
        self.resolver = self.namespaces["resolver"]
        self.private = self.namespaces["private"]
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread, which alone gets signals
            self._handlers = {number: signal.signal(number, _exit_on_signal) for number in _ENDING}
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def up(self) -> Self:
        """Build the namespaces, links, addresses and routes, after removing a stale lab of this name."""
        self.down()
        try:
            self._build()
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Remove all of it: processes, namespaces, the gateway's pins and state, logs. Idempotent."""
        with _uninterrupted():
            _end(list(self.namespaces.values()))
            if self.gw.exists:
                self._remove_traces()
            delete(*self.namespaces.values())
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                STATE.rmdir()

    def _remove_traces(self) -> None:
        """Remove pins and state that an enforcer left when it was killed."""
        instance = Instance(self.gw.cookie())
        mount = bpffs.find_bpffs()
        if mount is not None:
            remove_tree(bpffs.directory(mount, instance.cookie))
        remove_tree(instance.directory)

    def config(self, **changes: object) -> Document:
        """A configuration that fits this topology; ``changes`` replace top-level keys (None removes one)."""
        return configuration.document(outside=self.outside, **changes)

    def write_config(self, document: Document | str | None = None, name: str = "enforcer.yaml") -> Path:
        """Write a configuration (default: ``config()``), or text as it is, and return its path."""
        if document is None:
            document = self.config()
        path = self.directory / name
        path.write_text(
            document if isinstance(document, str) else configuration.dump(document), encoding="utf-8"
        )
        return path

    def _build(self) -> None:
        self.directory.mkdir(parents=True)
        create(*self.namespaces.values())
        for role, namespace in self.namespaces.items():
            namespace.sysctls(
                _SETTINGS | (_ROUTER if role in ROUTERS else _HOST) | (_TALKATIVE if role != "gw" else {})
            )
        execute(["ip", "-batch", "-"], "\n".join(self._links()) + "\n")
        for index, client in enumerate((self.client, self.client2), 1):
            client.ip(*_client(index))
        self.gw.ip(*self._gateway())
        self.net.ip(*self._router())
        for role, (addresses, router4, router6) in SERVERS.items():
            self.namespaces[role].ip(
                *_interface("lo"),
                *_interface("eth0", f"{addresses[4]}/24", f"{addresses[6]}/64"),
                f"route add default via {router4}",
                f"route add default via {router6}",
            )

    def replug(self) -> None:
        """Replace the first uplink with a new interface of its name, as with PPPoE, USB or a new router."""
        self.gw.ip("link del out0")
        execute(["ip", "-batch", "-"], self._pair("gw", "out0", "net", "gw0") + "\n")
        self.net.ip(*_DOWNLINK)
        self.gw.ip(*_UPLINK)

    def _pair(self, role: str, name: str, peer_role: str, peer_name: str) -> str:
        return veth(name, self.namespaces[role], peer_name, self.namespaces[peer_role])

    def _links(self) -> Iterator[str]:
        """A line of ip(8) for each pair of interfaces."""
        pairs = [("client", "eth0", "gw", "in0"), ("client2", "eth0", "gw", "in1")]
        pairs += [("gw", name, "net", f"gw{index}") for index, name in enumerate(self.outside)]
        pairs += [(role, "eth0", "net", role) for role in SERVERS]
        for pair in pairs:
            yield self._pair(*pair)

    def _gateway(self) -> list[str]:
        lines = [
            *_interface("lo"),
            *_interface("in0", "10.0.1.1/24", "fd00:1::1/64"),
            *_interface("in1", "10.0.2.1/24", "fd00:2::1/64"),
            *_UPLINK,
        ]
        if len(self.outside) > 1:
            lines += [
                *_interface("out1", "198.19.0.1/24", "2001:db8:fffe::1/64"),
                "route add 198.18.2.0/24 via 198.19.0.254",
                "route add 2001:db8:a2::/64 via 2001:db8:fffe::fe",
            ]
        return lines

    def _router(self) -> list[str]:
        lines = [
            *_interface("lo"),
            *_DOWNLINK,
            "route add unreachable 2001:db8:3::/64",  # another location's
        ]
        if len(self.outside) > 1:
            lines += _interface("gw1", "198.19.0.254/24", "2001:db8:fffe::fe/64")
        for role, (_, router4, router6) in SERVERS.items():
            lines += _interface(role, f"{router4}/24", f"{router6}/64")
        return lines


def stale_labs(start: str = "lab") -> list[str]:
    """Prefixes ``<start><pid>-<n>`` of labs whose process has ended."""
    stale = set()
    names = [path.name for path in RUN_NETNS.iterdir()] if RUN_NETNS.exists() else []
    for name in names:
        prefix, _, role = name.rpartition("-")
        pid = prefix.removeprefix(start).partition("-")[0]
        if role in ROLES and prefix.startswith(start) and pid.isdigit() and not Path("/proc", pid).exists():
            stale.add(prefix)
    return sorted(stale)


def _client(index: int) -> list[str]:
    addresses = [f"10.0.{index}.{host}/24" for host in HOSTS]
    # The kernel prefers the address added last among equals in IPv6: the first host comes last.
    addresses += [f"fd00:{index}::{host:x}/64" for host in reversed(HOSTS)]
    return [
        *_interface("lo"),
        *_interface("eth0", *addresses),
        f"route add default via 10.0.{index}.1",
        f"route add default via fd00:{index}::1",
    ]


def _interface(name: str, *addresses: str) -> list[str]:
    lines = [f"link set {name} up"]
    for address in addresses:
        lines.append(f"addr add {address} dev {name}" + (" nodad" if ":" in address else ""))
    return lines


_UPLINK = [
    *_interface("out0", "198.51.100.1/24", "2001:db8:ffff::1/64"),
    "route add default via 198.51.100.254",
    "route add default via 2001:db8:ffff::fe",
]
_DOWNLINK = [
    *_interface("gw0", "198.51.100.254/24", "2001:db8:ffff::fe/64"),
    # Egress addresses: IPv4 by ARP, IPv6 ranges routed, one of them on the link.
    "route add 203.0.113.0/24 dev gw0",
    "route add 198.18.128.0/17 dev gw0",  # room for thousands more
    "route add 2001:db8::/44 via 2001:db8:ffff::1",
    "route add 2001:db8:9::/64 dev gw0",
    "route add 2001:db8:1000::/36 via 2001:db8:ffff::1",
]


def _end(namespaces: list[Namespace], patience: float = 3.0) -> None:
    """End every process in these namespaces, by SIGTERM and after ``patience`` seconds by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        asked = processes_in(namespaces)
        for pid in asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while asked and time.monotonic() < deadline:
            time.sleep(0.01)
            asked = [pid for pid in asked if _runs(pid)]
        if not asked:
            return
    raise LabError(f"processes {asked} do not end")


def _runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block Ctrl-C, SIGTERM and SIGHUP until the block has ended, so that the teardown is complete."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_ENDING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
