"""Tests of the check whether the kernel answers ARP requests for egress addresses (arp_ignore)."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from enforcer.kernel import addresses, arp
from lab.netns import inside, run

from ..conftest import Lab


@pytest.mark.parametrize("value", range(9))
@pytest.mark.parametrize("name", ["all", "out0"])
def test_what_is_said_is_what_the_kernel_does(lab: Lab, name: str, value: int) -> None:
    addresses.add([("out0", IPv4Interface("203.0.113.10/32"))])
    run(f"sysctl -qw net.ipv4.conf.{name}.arp_ignore={value}")
    with inside(lab.origin):
        run("ip route add 203.0.113.0/24 dev eth0")
        command = ["ping", "-c1", "-W0.3", "203.0.113.10"]
        answered = subprocess.run(command, capture_output=True, check=False).returncode == 0
    said = arp.unanswered("out0")
    assert answered == (said == [])
    if said:
        assert said[0].startswith(f"net.ipv4.conf.{name}.arp_ignore is {value}: ")


def test_an_interface_that_is_not_there(netns: str) -> None:
    assert arp.unanswered("nope") == []


@pytest.mark.parametrize("opened", [False, True])
def test_an_interface_that_goes_while_its_setting_is_read(
    netns: str, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    """The interface goes before the file of the setting is opened, or before it is read."""
    run("ip link add out0 type veth peer name far0")
    run("sysctl -qw net.ipv4.conf.out0.arp_ignore=8")
    assert arp.unanswered("out0")
    read = Path.read_text

    def read_late(path: Path) -> str:
        if "out0" not in path.parts:
            return read(path)
        if not opened:
            run("ip link del out0")
            return read(path)
        with path.open() as source:
            run("ip link del out0")
            return source.read()

    monkeypatch.setattr(Path, "read_text", read_late)
    assert arp.unanswered("out0") == []
    assert not Path("/proc/sys/net/ipv4/conf/out0").exists()
