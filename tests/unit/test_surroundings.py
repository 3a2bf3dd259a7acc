"""What a configuration meets on its machine, in sentences."""

from __future__ import annotations

import pytest
from somelinks import some_links

from enforcer.gateway.surroundings import unlisted


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({}, ""),
        ({"docker0": {}}, "docker0 is up and in no list"),
        ({"docker0": {"up": False}}, ""),
        ({"docker0": {}, "veth1": {"port_of": "docker0"}}, "docker0 is up"),
        ({"eth0": {}, "eth1": {}}, "eth0, eth1 are up"),
        ({f"tun{number}": {} for number in range(5)}, "tun0, tun1, tun2 and 2 more are up"),
    ],
)
def test_interfaces_in_no_list(others: dict[str, dict[str, object]], said: str) -> None:
    found = unlisted(("in0", "out0"), some_links("lo", "in0", "out0", **others))
    assert len(found) == bool(said)
    assert not said or found[0].startswith(said)


def test_what_a_listed_interface_lies_on_need_not_be_listed() -> None:
    links = some_links("lo", "eth0", "in0", out0={"kind": "vlan", "lower": "eth0"})
    assert unlisted(("in0", "out0"), links) == []
    assert unlisted(("in0",), links) != []
