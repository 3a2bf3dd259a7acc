"""Tests of adding and removing egress addresses, and of the links that they are on."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, IPv6Network
from typing import Any

import pytest

from enforcer.errors import KernelError
from enforcer.kernel import addresses, links
from lab.netns import run

FOUR, SIX = IPv4Interface("203.0.113.10/32"), IPv6Interface("2001:db8:f::1/128")
RANGE = IPv6Network("2001:db8:1::/64")


@pytest.fixture(autouse=True)
def pair(netns: str) -> None:
    run("ip link add out0 type veth peer name far0")
    run("ip link set out0 up")


def shown(address: str) -> dict[str, Any]:
    (found,) = [
        info
        for link in json.loads(run("ip -j addr show dev out0"))
        for info in link["addr_info"]
        if info["local"] == address
    ]
    return dict(found)


def test_add_and_remove_twice() -> None:
    both: list[addresses.InterfaceAddress] = [("out0", FOUR), ("out0", SIX)]
    assert addresses.add(both) == both
    assert addresses.add(both) == []
    assert set(both) <= addresses.held()
    four, six = shown("203.0.113.10"), shown("2001:db8:f::1")
    assert (four["prefixlen"], four["scope"]) == (32, "host")
    assert (six["prefixlen"], six["scope"], six["nodad"]) == (128, "global", True)
    assert "tentative" not in six
    assert addresses.remove(both) == both
    assert addresses.remove(both) == []
    assert not set(both) & addresses.held()


def test_what_has_another_scope_is_added_again() -> None:
    """An earlier version added addresses with scope "link"; addresses of other software stay unchanged."""
    assert addresses.add([("out0", FOUR)], own={FOUR.ip}) == [("out0", FOUR)]
    run("ip addr add 203.0.113.11/32 dev out0 scope link")
    own = IPv4Interface("203.0.113.12/32")
    assert addresses.add([("out0", own)], own={own.ip}) == [("out0", own)]
    assert addresses.wrong_scope(own={own.ip}) == {("out0", FOUR)}
    others = IPv4Interface("203.0.113.11/32")
    wanted = [("out0", address) for address in (FOUR, own, others)]
    assert addresses.add(wanted, own={own.ip}) == [("out0", FOUR)]
    assert addresses.wrong_scope(own={own.ip}) == set()
    scopes = {str(address.ip): shown(str(address.ip))["scope"] for _, address in wanted}
    assert scopes == {"203.0.113.10": "host", "203.0.113.12": "link", "203.0.113.11": "link"}


def test_ours_are_told_from_others() -> None:
    run("ip addr add 198.51.100.1/32 dev out0")
    run("ip addr add 2001:db8:e::1/128 dev out0 nodad")
    addresses.add([("out0", FOUR), ("out0", IPv4Interface("198.51.100.1/32"))])
    assert addresses.held(ours=True) == {("out0", FOUR)}
    assert ("out0", IPv6Interface("2001:db8:e::1/128")) in addresses.held()


def test_ranges_twice() -> None:
    assert addresses.add_ranges([RANGE]) == [RANGE]
    assert addresses.add_ranges([RANGE]) == []
    (route,) = json.loads(run(f"ip -j -6 route show table local {RANGE}"))
    assert (route["type"], route["dev"], route["protocol"]) == ("local", "lo", "233")
    assert addresses.ranges() == addresses.ranges(ours=True) == {RANGE}
    run("ping -c1 -W1 2001:db8:1::abcd")
    assert addresses.remove_ranges([RANGE]) == [RANGE]
    assert addresses.remove_ranges([RANGE]) == []
    assert addresses.ranges() == set()


def test_other_peoples_ranges_stay() -> None:
    run(f"ip -6 route add local {RANGE} dev lo table local")
    assert addresses.add_ranges([RANGE]) == []
    assert addresses.ranges() == {RANGE}
    assert addresses.ranges(ours=True) == set()
    assert addresses.remove_ranges([RANGE]) == []
    assert addresses.ranges() == {RANGE}


def test_errors_name_the_operation() -> None:
    with pytest.raises(KernelError, match="interface nope: No such device"):
        addresses.add([("nope", FOUR)])
    assert addresses.remove([("nope", FOUR)]) == []
    multicast = [("out0", IPv6Interface(f"ff02::{n}/128")) for n in (1, 2)]
    with pytest.raises(KernelError, match=r"adding ff02::1/128 to out0 \(and 1 more\)"):
        addresses.add([("out0", FOUR), *multicast])
    assert ("out0", FOUR) in addresses.held()
    run("sysctl -qw net.ipv6.conf.out0.disable_ipv6=1")
    with pytest.raises(KernelError, match="disable_ipv6"):
        addresses.add([("out0", SIX)])
    run("ip link set lo down")
    with pytest.raises(KernelError, match="lo up"):
        addresses.add_ranges([RANGE])


def test_4000_of_each() -> None:
    fours = [("out0", IPv4Interface((int(IPv4Address("203.0.0.0")) + n, 32))) for n in range(4000)]
    sixes = [IPv6Network(((0x20010DB8 << 96) + (n << 64), 64)) for n in range(4000)]
    for name, step, expected in (
        ("add", lambda: addresses.add(fours), fours),
        ("held", lambda: addresses.held(ours=True), set(fours)),
        ("add_ranges", lambda: addresses.add_ranges(sixes), sixes),
        ("ranges", lambda: addresses.ranges(ours=True), set(sixes)),
        ("remove", lambda: addresses.remove(fours), fours),
        ("remove_ranges", lambda: addresses.remove_ranges(sixes), sixes),
    ):
        assert step() == expected, name


def test_links() -> None:
    addresses.add([("out0", FOUR)])
    found = links.links()
    assert set(found) == {"lo", "out0", "far0"}
    (shown_link,) = json.loads(run("ip -j link show dev out0"))
    out = found["out0"]
    assert (out.index, out.mtu, out.up, out.header) == (shown_link["ifindex"], shown_link["mtu"], True, 14)
    assert FOUR in out.addresses
    assert not found["far0"].up


def test_links_without_ethernet() -> None:
    run("ip tuntap add dev tun0 mode tun")
    assert links.links()["tun0"].header == 0


def test_allmulti_twice() -> None:
    assert links.set_allmulti("out0", True) is True
    assert links.set_allmulti("out0", True) is False
    assert "ALLMULTI" in run("ip link show dev out0")
    assert links.links()["out0"].allmulti
    assert links.set_allmulti("out0", False) is True
    assert links.set_allmulti("out0", False) is False
    assert "ALLMULTI" not in run("ip link show dev out0")
    with pytest.raises(KernelError, match="No such device"):
        links.set_allmulti("nope", True)
