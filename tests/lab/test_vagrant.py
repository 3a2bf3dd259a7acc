"""Tests of the scripts in vagrant/, with three network namespaces in place of three machines."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import configuration
from lab.clients import Session, curl, dig, ping, tcp_ask, udp_ask, url
from lab.netns import Namespace, create, delete, execute, processes_in
from lab.program import Program
from lab.topology import CLIENT, ORIGIN1, ORIGIN2, PRIVATE, RESOLVER, SERVERS

VAGRANT = Path(__file__).resolve().parents[2] / "vagrant"
ROLES = ("client", "gateway", "origin")
PREFIX = f"vagrant{os.getpid()}"
families = pytest.mark.parametrize("family", [4, 6])


def macs() -> dict[str, str]:
    """The MAC addresses of the Vagrantfile's interfaces."""
    text = (VAGRANT / "Vagrantfile").read_text(encoding="utf-8")
    found = dict(re.findall(r'"([a-z-]+)" +=> "([0-9a-f]{12})"', text))
    return {name: ":".join(re.findall("..", mac)) for name, mac in found.items()}


@pytest.fixture(scope="module")
def machines(machine: None) -> Iterator[dict[str, Namespace]]:
    """Three namespaces with the Vagrantfile's links, whose interfaces have no final names yet."""
    made = {role: Namespace(f"{PREFIX}-{role}") for role in ROLES}
    behind = [Namespace(f"{PREFIX}-{role}") for role in SERVERS]
    mac = macs()
    try:
        create(*made.values())
        for namespace in made.values():
            namespace.ip("link set lo up")
            namespace.sysctl("net.ipv6.conf.default.accept_dad", 0)
        made["gateway"].ip(
            f"link add enp7 address {mac['gateway-in']} type veth "
            f"peer name enp7 address {mac['client']} netns {made['client'].name}",
            f"link add enp8 address {mac['gateway-out']} type veth "
            f"peer name enp7 address {mac['origin']} netns {made['origin'].name}",
        )
        for role in (*ROLES, *ROLES):  # a second run must change nothing and succeed
            made[role].run("bash", str(VAGRANT / "network.sh"), role, PREFIX)
        yield made
    finally:
        for namespace in (*made.values(), *behind):
            if namespace.exists:
                assert processes_in([namespace]) == []
                delete(namespace)


@pytest.fixture(scope="module")
def origin(machines: dict[str, Namespace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The origin's servers."""
    directory = tmp_path_factory.mktemp("vagrant")
    program = Program(
        machines["origin"],
        [sys.executable, str(VAGRANT / "servers.py"), PREFIX],
        directory,
        "servers",
        ready=lambda: "ready" in program.said(),
    )
    with program:
        yield program
    shutil.rmtree(f"/run/{PREFIX}-servers")


@pytest.fixture(scope="module")
def gateway(machines: dict[str, Namespace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The daemon with the provisioned configuration."""
    directory = tmp_path_factory.mktemp("gateway")
    file = directory / "enforcer.yaml"
    file.write_text(execute([sys.executable, str(VAGRANT / "configuration.py")]).stdout, encoding="utf-8")
    command = [sys.executable, "-m", "enforcer", "--config", str(file)]
    program = Program(
        machines["gateway"], [*command, "run"], directory, "enforcer", ready=lambda: "ready" in program.said()
    )
    with program:
        yield program
        program.stop()
    machines["gateway"].run(*command, "down")


@families
def test_traffic_leaves_from_the_planned_address(
    machines: dict[str, Namespace], origin: Program, gateway: Program, family: int
) -> None:
    client = machines["client"]
    lax1, lax2 = configuration.LAX1[family], configuration.LAX2[family]
    assert inside(tcp_ask(client, ORIGIN1[family]).address, lax1)
    assert inside(udp_ask(client, ORIGIN1[family]).address, lax1)
    status, body = curl(client, url(ORIGIN2[family], configuration.TRAVEL_PORT))
    assert status == 200
    assert inside(body.split()[0], lax2)
    for shared in (
        tcp_ask(client, PRIVATE[family]).address,
        curl(client, url(ORIGIN2[family], configuration.SHOP_PORT, "https"))[1].split()[0],
    ):
        assert shared in ("198.51.100.1", "2001:db8:ffff::1")
    assert ping(client, ORIGIN1[family])
    assert dig(client, RESOLVER[family], "bank.lab") == [ORIGIN1[4]]


@families
def test_the_client_reaches_the_origin_by_the_gateway_alone(
    machines: dict[str, Namespace], origin: Program, gateway: Program, family: int
) -> None:
    with Session(machines["client"], ORIGIN1[family]) as session:
        assert session.seen.address != CLIENT[family]
    assert machines["origin"].run("ip", "route", "get", CLIENT[4], check=False).returncode


def inside(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)
