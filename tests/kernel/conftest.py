"""A small lab for the kernel's functions: client - gateway - origin, each a network namespace.

Sockets belong to the namespace in which they were made, so one process drives all three.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest

from enforcer.kernel import namespace

_NUMBER = itertools.count()


def run(command: str) -> str:
    """Run in the process's current namespace; the command's output."""
    done = subprocess.run(command, shell=True, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def inside(name: str) -> Iterator[None]:
    back = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        namespace.enter(name)
        yield
    finally:
        namespace.enter(f"/proc/self/fd/{back}")
        os.close(back)


@contextmanager
def new_namespace(role: str) -> Iterator[str]:
    name = f"kernel-{os.getpid()}-{next(_NUMBER)}-{role}"
    run(f"ip netns add {name}")
    try:
        run(f"ip -n {name} link set lo up")
        with inside(name):
            # Addresses are usable at once, link-local ones too.
            run("sysctl -qw net.ipv6.conf.default.accept_dad=0")
        yield name
    finally:
        run(f"ip netns del {name}")


class Lab:
    """10.1.0.2, fd01::2 (client) - gateway - 10.2.0.2, fd02::2 (origin); the origin routes all back."""

    CLIENT: ClassVar[dict[int, str]] = {socket.AF_INET: "10.1.0.2", socket.AF_INET6: "fd01::2"}
    ORIGIN: ClassVar[dict[int, str]] = {socket.AF_INET: "10.2.0.2", socket.AF_INET6: "fd02::2"}

    def __init__(self, client: str, gateway: str, origin: str) -> None:
        self.client, self.gateway, self.origin = client, gateway, origin
        run(f"ip -n {gateway} link add in0 type veth peer name eth0 netns {client}")
        run(f"ip -n {gateway} link add out0 type veth peer name eth0 netns {origin}")
        for ns, device, four, six in (
            (gateway, "in0", "10.1.0.1/24", "fd01::1/64"),
            (gateway, "out0", "10.2.0.1/24", "fd02::1/64"),
            (client, "eth0", "10.1.0.2/24", "fd01::2/64"),
            (origin, "eth0", "10.2.0.2/24", "fd02::2/64"),
        ):
            run(f"ip -n {ns} addr add {four} dev {device}")
            run(f"ip -n {ns} addr add {six} dev {device} nodad")
            run(f"ip -n {ns} link set {device} up")
        for ns, net in ((client, 1), (origin, 2)):
            run(f"ip -n {ns} route add default via 10.{net}.0.1")
            run(f"ip -n {ns} route add default via fd0{net}::1")
        with inside(gateway):
            run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")

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
