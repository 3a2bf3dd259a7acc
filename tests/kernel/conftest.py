"""Fixtures for tests of kernel functions: client - gateway - origin, each a network namespace.

A socket belongs to the namespace in which it was made, so one process uses sockets of all three.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest

from lab.netns import Namespace, inside, temporary, veth

_NUMBER = itertools.count()


@contextmanager
def new_namespace(role: str) -> Iterator[str]:
    made = Namespace(f"kernel-{os.getpid()}-{next(_NUMBER)}-{role}")
    with temporary(made):
        made.ip("link set lo up")
        # Without duplicate address detection, all addresses are usable at once.
        made.sysctl("net.ipv6.conf.default.accept_dad", 0)
        yield made.name


class Lab:
    """10.1.0.2, fd01::2 (client) - gateway - 10.2.0.2, fd02::2 (origin); the origin routes all back."""

    CLIENT: ClassVar[dict[int, str]] = {socket.AF_INET: "10.1.0.2", socket.AF_INET6: "fd01::2"}
    ORIGIN: ClassVar[dict[int, str]] = {socket.AF_INET: "10.2.0.2", socket.AF_INET6: "fd02::2"}

    def __init__(self, client: str, gateway: str, origin: str) -> None:
        self.client, self.gateway, self.origin = client, gateway, origin
        router = Namespace(gateway)
        router.sysctls({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
        for net, (device, host) in enumerate((("in0", Namespace(client)), ("out0", Namespace(origin))), 1):
            router.ip(veth(device, router, "eth0", host))
            for end, name, number in ((router, device, 1), (host, "eth0", 2)):
                end.ip(
                    f"addr add 10.{net}.0.{number}/24 dev {name}",
                    f"addr add fd0{net}::{number}/64 dev {name} nodad",
                    f"link set {name} up",
                )
            host.ip(f"route add default via 10.{net}.0.1", f"route add default via fd0{net}::1")

    def open(self, where: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with inside(where):
            made = socket.socket(family, kind, protocol)
        made.settimeout(5)
        return made

    def listener(self, family: int, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = self.open(self.origin, family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.ORIGIN[family], port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made


@pytest.fixture
def netns() -> Iterator[str]:
    """An empty namespace with lo up; the test runs inside."""
    with new_namespace("alone") as name, inside(name):
        yield name


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The test runs inside the gateway."""
    with (
        new_namespace("client") as client,
        new_namespace("gateway") as gateway,
        new_namespace("origin") as origin,
    ):
        made = Lab(client, gateway, origin)
        with inside(gateway):
            yield made


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)
