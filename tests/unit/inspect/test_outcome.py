"""Details that the commands add to a verdict: the kind of address, the unavailable egress IP."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from enforcer.inspect.outcome import in_the_end, missing
from enforcer.kernel import routes

CONFIG: dict[str, Any] = {
    "location": "lax",
    "egress_ips": [
        {"name": "lax-1", "location": "lax", "ipv4": "203.0.113.10", "ipv6": "2001:db8:1::/64"},
        {"name": "lax-2", "location": "lax", "ipv4": "203.0.113.11", "ipv6": "2001:db8:3::/64"},
        {"name": "nyc-1", "location": "nyc", "ipv4": "203.0.113.20", "ipv6": "2001:db8:2::/64"},
    ],
    "policies": [
        {
            "name": "both",
            "egress": {"ipv4": "203.0.113.20", "ipv4_fallback": None, "ipv6": "2001:db8:2::/64"},
        },
        {"name": "four", "egress": {"ipv4": "203.0.113.10", "ipv4_fallback": None, "ipv6": None}},
        {
            "name": "lost",
            "egress": {"ipv4": "203.0.113.10", "ipv4_fallback": "203.0.113.11", "ipv6": None},
        },
        {
            "name": "far",
            "egress": {"ipv4": None, "ipv4_fallback": "203.0.113.10", "ipv6": "2001:db8:2::/64"},
        },
        {"name": "shared", "egress": "default"},
        {"name": "by name", "egress": "lax-2"},
        {"name": "far by name", "egress": "nyc-1"},
        {"name": "six", "egress": {"ipv4": None, "ipv4_fallback": None, "ipv6": "2001:db8:1::/64"}},
    ],
}


@pytest.mark.parametrize(
    ("destination", "routed", "reason"),
    [
        ("203.0.113.10", True, "unsolicited"),
        ("2001:db8:1::5", True, "unsolicited"),
        ("203.0.113.20", True, "local"),  # of another location
        ("10.0.1.1", True, "local"),
        ("192.0.2.1", False, "unrouted"),
        ("224.0.0.251", False, "local"),
        ("ff02::fb", False, "local"),
    ],
)
def test_what_the_program_calls_local(
    monkeypatch: pytest.MonkeyPatch, destination: str, routed: bool, reason: str
) -> None:
    monkeypatch.setattr(routes, "interfaces_to", lambda _: [1 if routed else None])
    assert in_the_end(CONFIG, "local", ip_address(destination)) == reason
    assert in_the_end(CONFIG, "policy", ip_address(destination)) == "policy"


@pytest.mark.parametrize(
    ("policy", "version", "egress", "why"),
    [
        ("both", 4, "nyc-1", "nyc-1 is at nyc, this gateway at lax"),
        ("both", 6, "nyc-1", "nyc-1 is at nyc, this gateway at lax"),
        ("four", 4, "lax-1", "203.0.113.10 of lax-1 is on no interface"),
        ("four", 6, "lax-1", "2001:db8:1::/64 of lax-1 is not among the local routes"),
        ("six", 4, "lax-1", "203.0.113.10 of lax-1 is on no interface"),
        (
            "lost",
            4,
            "lax-1",
            "203.0.113.10 of lax-1 is on no interface; fallback: 203.0.113.11 of lax-2 is on no interface",
        ),
        (
            "far",
            6,
            "nyc-1",
            "nyc-1 is at nyc, this gateway at lax; fallback: 2001:db8:1::/64 of lax-1 is not among the local",
        ),
        ("by name", 4, "lax-2", "203.0.113.11 of lax-2 is on no interface"),
        ("by name", 6, "lax-2", "2001:db8:3::/64 of lax-2 is not among the local routes"),
        ("far by name", 6, "nyc-1", "nyc-1 is at nyc, this gateway at lax"),
        (None, 6, None, "no policy matches"),
        # The file changed between the program's answer and this look-up.
        ("shared", 4, None, "the configuration has changed meanwhile, and with it policy shared"),
        ("gone", 6, None, "the configuration has changed meanwhile, and with it policy gone"),
    ],
)
def test_what_is_unavailable(policy: str | None, version: int, egress: str | None, why: str) -> None:
    found, said = missing(CONFIG, policy, version)
    assert found == egress and why in said


def test_a_policy_without_a_fallback_names_none() -> None:
    assert "fallback" not in missing(CONFIG, "four", 4)[1]
