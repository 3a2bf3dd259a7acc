"""Warnings about the machine that a configuration is applied to."""

from __future__ import annotations

import pytest
from somelinks import some_links

from enforcer.errors import EnforcerError, KernelError, PrivilegeError
from enforcer.gateway.host_warnings import kernel_warnings, unlisted_among, unlisted_interfaces
from enforcer.kernel import arp, ip_rules, links


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
    found = unlisted_among(("in0", "out0"), some_links("lo", "in0", "out0", **others))
    assert len(found) == bool(said)
    assert not said or found[0].startswith(said)


def test_what_a_listed_interface_lies_on_need_not_be_listed() -> None:
    found = some_links("lo", "eth0", "in0", out0={"kind": "vlan", "lower": "eth0"})
    assert unlisted_among(("in0", "out0"), found) == []
    assert unlisted_among(("in0",), found) != []


CHANGING = KernelError("reading the nftables rules: it changed during each of 10 readings", "try again")
FORBIDDEN = PrivilegeError("reading the nftables chains: Operation not permitted", "run it as root")


@pytest.mark.parametrize("error", [CHANGING, FORBIDDEN])
def test_what_cannot_be_looked_at_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, error: EnforcerError
) -> None:
    """The other checks still run."""

    def fail(*_: object) -> list[str]:
        raise error

    monkeypatch.setattr(ip_rules, "using_mark_bits", lambda _: ["a rule"])
    monkeypatch.setattr(ip_rules, "using_foreign_marks", fail)
    monkeypatch.setattr(arp, "unanswered", lambda _: ["no ARP"])
    first, second, third = kernel_warnings(0xFF, ["out0"])
    assert (first, third) == ("a rule", "no ARP")
    subject = "rules of policy routing by marks of others could not be checked"
    assert second == f"{subject}: {error.message} ({error.hint})"
    monkeypatch.setattr(links, "links", fail)
    (said,) = unlisted_interfaces(["out0"])
    assert said.startswith(f"interfaces in no list could not be checked: {error.message}")
