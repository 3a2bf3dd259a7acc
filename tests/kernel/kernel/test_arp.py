from __future__ import annotations

import subprocess
from ipaddress import IPv4Interface

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
