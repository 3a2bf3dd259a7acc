"""The desired state of the kernel for a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from enforcer.config.models import Timers
from enforcer.datapath.fast_path import LIFETIME
from enforcer.gateway.desired import combined, desired, last_slot
from enforcer.gateway.timers import REFRESH


def config(here: str, *egress_locations: str) -> dict[str, Any]:
    places = {
        "lax1": (33.94, -118.41),
        "lax2": (33.94, -118.41),
        "nyc": (40.64, -73.78),
        "lon": (51.47, -0.45),
    }
    return {
        "location": here,
        "locations": {
            name: {"city": name, "country": "XX", "latitude": latitude, "longitude": longitude}
            for name, (latitude, longitude) in places.items()
        },
        "interfaces": {"inside": ["in0"], "outside": ["out0"]},
        "shared": {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"},
        "egress_ips": [
            {
                "name": f"e{number}",
                "location": location,
                "ipv4": f"203.0.113.{number}",
                "ipv6": f"2001:db8:{number}::/64",
                "on_link": False,
            }
            for number, location in enumerate(egress_locations, 1)
        ],
        "mark_mask": 0xFF00,
        "limits": {"connections_per_origin": 1, "flows": 1024, "origins": 1024},
        "proxy": {"tcp": True, "udp": False},
    }


@pytest.mark.parametrize(
    ("switch", "unchecked"),
    [
        (True, set()),
        (False, {"in0", "in1"}),
        ({"in1": False}, {"in1"}),
        ({"in0": True}, set()),
        (None, {"in0", "in1"}),  # an earlier version's state
    ],
)
def test_where_sources_are_not_checked(switch: object, unchecked: set[str]) -> None:
    content = config("nyc", "nyc") | {"interfaces": {"inside": ["in0", "in1"], "outside": ["out0"]}}
    if switch is not None:
        content["check_source"] = switch
    assert desired(content, {"e1": 1}).any_source == unchecked


@pytest.mark.parametrize(
    ("here", "locations", "nearest"),
    [
        ("nyc", ["lax1", "nyc", "nyc"], ("e2", "e3")),
        ("nyc", ["lax1", "lon"], ("e1",)),
        ("lon", ["lax1", "nyc"], ("e2",)),
        ("lax2", ["lax1", "lax2"], ("e2",)),  # another location with the same coordinates
    ],
)
def test_the_nearest_location_that_has_any(here: str, locations: list[str], nearest: tuple[str, ...]) -> None:
    content = config(here, *locations)
    assert desired(content, {"e1": 1, "e2": 2, "e3": 3}).nearest == nearest


@pytest.mark.parametrize(
    ("policy", "dns", "expected"),
    [
        ({"traffic": 'net.fqdn.host == "a.b"'}, {}, "pass"),
        ({"traffic": "", "identity": 'any(net.fqdn.domains[*] == "b")'}, {"when_down": "drop"}, "drop"),
        ({"traffic": "net.dst.port == 80", "device_posture": None}, {"when_down": "drop"}, ""),
        ({"traffic": 'net.fqdn.host == "a.b"', "enabled": False}, {}, ""),
    ],
)
def test_dns_is_looked_at_for_policies_about_names(
    policy: dict[str, Any], dns: dict[str, str], expected: str
) -> None:
    content = {**config("nyc", "nyc"), "policies": [policy], "dns": dns}
    wanted = desired(content, {"e1": 1})
    assert wanted.dns == wanted.ruleset().dns == expected


def test_marks_are_slots_under_the_mask() -> None:
    wanted = desired(config("nyc", "nyc"), {"e1": 1})
    assert (wanted.settings.mark(0), wanted.settings.mark(1)) == (0x100, 0x200)
    assert last_slot(wanted.settings.mark_mask) == 253
    assert wanted.settings.mark(253) == 0xFE00
    assert wanted.ruleset().source4.keys() == {0x100, 0x200}


def test_timers_are_sysctls_of_conntrack() -> None:
    """Timers of flows with fast-path entries are longer by the time for which conntrack may see no packet."""
    content = {**config("nyc", "nyc"), "timers": Timers().model_dump(), "fast_path": True}
    wanted = desired(content, {"e1": 1})
    assert wanted.fast_path
    fast = {
        "udp_timeout": 300,
        "udp_timeout_stream": 300,
        "tcp_timeout_established": 7440,
        "tcp_timeout_fin_wait": 7440,
        "tcp_timeout_close_wait": 7440,
        "tcp_timeout_unacknowledged": 7440,
        "tcp_timeout_max_retrans": 7440,
    }
    others = {
        "tcp_timeout_syn_sent": 240,
        "tcp_timeout_syn_recv": 240,
        "tcp_timeout_last_ack": 240,
        "tcp_timeout_time_wait": 60,
        "tcp_timeout_close": 240,
        "icmp_timeout": 60,
        "icmpv6_timeout": 60,
        "tcp_be_liberal": 1,
        "tcp_ignore_invalid_rst": 1,
    }
    expected = {name: seconds + REFRESH for name, seconds in fast.items()} | others
    assert wanted.sysctls == {
        f"net/netfilter/nf_conntrack_{name}": str(value) for name, value in expected.items()
    }


def test_conntrack_sees_a_packet_of_a_fast_flow_before_it_forgets_it() -> None:
    assert REFRESH >= LIFETIME + 1


def test_an_earlier_versions_state_has_neither_timers_nor_a_fast_path() -> None:
    wanted = desired(config("nyc", "nyc"), {"e1": 1})
    assert (wanted.fast_path, wanted.sysctls) == (False, {})


def test_what_serves_two_configurations() -> None:
    """Interfaces and egress IPs come from both; all other values come from the first."""
    one, other = config("lax1", "lax1", "nyc"), config("lax1", "lax1", "lax1")
    other["egress_ips"][1] |= {"name": "e3", "ipv4": "203.0.113.3", "ipv6": "2001:db8:3::/64"}
    other["interfaces"]["inside"] = ["in1"]
    other["shared"]["ipv4"] = "198.51.100.2"
    slots = {"e1": 1, "e2": 2, "e3": 3}
    both = combined(desired(one, slots), desired(other, slots))
    assert both.inside == ("in0", "in1")
    assert both.outside == ("out0",)
    assert {egress.name: egress.here for egress in both.egresses} == {"e1": True, "e2": False, "e3": True}
    assert str(both.shared4) == "198.51.100.1"
    assert both.ruleset().source4.keys() == {both.settings.mark(slot) for slot in (0, 1, 3)}


def test_marks_of_another_mask_are_not_mixed() -> None:
    one, other = config("lax1", "lax1"), config("lax1", "lax1", "lax1") | {"mark_mask": 0xFF}
    slots = {"e1": 1, "e2": 2}
    both = combined(desired(one, slots), desired(other, slots))
    assert [egress.name for egress in both.egresses] == ["e1"]
