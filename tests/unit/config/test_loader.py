"""Faulty configuration files: one message per fault, with file, line, value and what is expected."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from effort import calls
from ruamel.yaml import YAML
from somelinks import some_links

from enforcer.config import Configuration, document, load
from enforcer.errors import ConfigError, Fault
from enforcer.instance import trust

GOOD: dict[str, Any] = {
    "location": "lax",
    "interfaces": {"inside": ["in0"], "outside": ["out0"]},
    "locations": {
        "lax": {"city": "Los Angeles", "country": "US", "latitude": 33.94, "longitude": -118.41},
        "nyc": {"city": "New York", "country": "US", "latitude": 40.64, "longitude": -73.78},
    },
    "shared": {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"},
    "egress_ips": [
        {"name": "lax-1", "location": "lax", "ipv4": "203.0.113.10", "ipv6": "2001:db8:1::/64"},
        {"name": "nyc-1", "location": "nyc", "ipv4": "203.0.113.20", "ipv6": "2001:db8:2::/64"},
    ],
    "private_networks": ["10.20.0.0/16", "fd20::/48"],
    "limits": {"connections_per_origin": 40000},
    "policies": [
        {
            "name": "bank",
            "precedence": 10,
            "traffic": "net.dst.ip in {198.51.100.0/24}",
            "egress": {"ipv4": "203.0.113.10", "ipv4_fallback": "203.0.113.20", "ipv6": "2001:db8:1::/64"},
        },
        {"name": "rest", "precedence": 1000, "egress": "default"},
    ],
}

ABSENT = object()
"""Removes a key."""


def write(path: Path, data: Any) -> Path:
    yaml = YAML()
    yaml.width = 4096
    with path.open("w") as file:
        yaml.dump(data, file)
    return path


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """A valid file with values replaced: ``("egress_ips.0.ipv4", "x")``."""
    data = copy.deepcopy(GOOD)
    for path, value in changes:
        *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
        target: Any = data
        for step in steps:
            target = target[step]
        if value is ABSENT:
            del target[last]
        elif isinstance(target, list) and last == len(target):
            target.append(value)
        else:
            target[last] = value
    return data


def faults_of(path: Path, **options: Any) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, **options)
    assert caught.value.exit_code == 2
    assert all(str(path) == fault.file for fault in caught.value.faults)
    return caught.value.faults


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "enforcer.yaml"


def test_the_good_file_is_good(file: Path) -> None:
    configuration = load(write(file, GOOD), interfaces=some_links("in0", "out0", "lo"))
    assert isinstance(configuration, Configuration)
    assert configuration.warnings == ()
    assert configuration.proxy.tcp and not configuration.proxy.udp
    assert configuration.limits.connections_per_origin == 40000
    assert configuration.limits.flows == 262144
    assert configuration.limits.origins == 262144
    assert configuration.mark_mask == 0x7FFF0000


PREFIX6 = "2001:db8:1::/64"

ONE_FAULT = [
    # (path, value, part of the only message)
    # keys
    ("polices", [], 'unknown key "polices"; expected policies (did you mean that?)'),
    ("zzz", 1, 'unknown key "zzz"; expected one of location, interfaces'),
    ("proxy", {"tpc": True}, 'proxy: unknown key "tpc"; expected tcp'),
    ("shared.ipv5", 1, 'shared: unknown key "ipv5"; expected ipv'),
    ("limits.flow", 1024, 'unknown key "flow"; expected flows'),
    ("locations.lax.longitud", 1, 'unknown key "longitud"; expected longitude'),
    ("egress_ips.0.onlink", True, 'egress_ips[0]: unknown key "onlink"; expected on_link'),
    ("policies.0.presedence", 1, 'policies[0]: unknown key "presedence"; expected precedence'),
    ("policies.0.egress.ipv4_falback", "0.0.0.0", 'unknown key "ipv4_falback"; expected ipv4_fallback'),
    # missing
    ("location", ABSENT, 'the key "location" is missing; expected this gateway\'s location'),
    ("interfaces", ABSENT, 'the key "interfaces" is missing'),
    ("interfaces.inside", ABSENT, 'interfaces: the key "inside" is missing'),
    ("shared", ABSENT, 'the key "shared" is missing'),
    ("shared.ipv4", ABSENT, 'shared: the key "ipv4" is missing'),
    ("shared.ipv6", ABSENT, 'shared: the key "ipv6" is missing'),
    ("egress_ips", ABSENT, 'the key "egress_ips" is missing'),
    ("policies.1.name", ABSENT, 'policies[1]: the key "name" is missing'),
    ("policies.1.precedence", ABSENT, 'policies[1]: the key "precedence" is missing'),
    ("locations.nyc.city", ABSENT, 'locations.nyc: the key "city" is missing'),
    # types
    ("interfaces", "in0", 'interfaces: "in0" is text; expected a group of keys'),
    ("interfaces.inside", "in0", 'interfaces.inside: "in0" is text; expected a list'),
    ("interfaces.inside.0", 5, "interfaces.inside[0]: 5 is a number"),
    ("interfaces.inside", [], "interfaces.inside: is empty; expected at least one entry"),
    ("interfaces.outside", [], "interfaces.outside: is empty; expected at least one entry"),
    ("private_networks", "10.0.0.0/8", 'private_networks: "10.0.0.0/8" is text; expected a list'),
    ("policies", {}, "policies: is a group of keys; expected a list"),
    ("policies.1", "rest", 'policies[1]: "rest" is text; expected a group of keys'),
    ("policies.1", None, "policies[1]: is empty; expected a group of keys"),
    ("proxy", [], "proxy: is a list; expected a group of keys"),
    ("proxy", {"tcp": "yes"}, 'proxy.tcp: "yes" is text; expected true or false'),
    ("proxy", {"udp": 1}, "proxy.udp: 1 is a number; expected true or false"),
    ("policies.1.enabled", "true", 'policies[1].enabled: "true" is text; expected true or false'),
    # locations
    ("location", "lxa", 'location: "lxa" is no key of `locations`; expected lax (did you mean that?)'),
    ("location", "tokyo", "expected one of lax, nyc"),
    ("location", "", "is empty"),
    ("locations.nyc.city", "", 'locations.nyc.city: "" is empty; expected 1 to 128 printable characters'),
    ("locations.nyc.city", "New\nYork", "unprintable"),
    ("locations.nyc.country", "USA", "is no country code; expected two capital letters"),
    ("locations.nyc.country", "us", "is no country code"),
    ("locations.nyc.latitude", 90.5, "90.5 is too large; expected 90 at most"),
    ("locations.nyc.latitude", -91, "-91 is too small; expected at least -90"),
    ("locations.nyc.longitude", 180.1, "180.1 is too large; expected 180 at most"),
    ("locations.nyc.latitude", float("nan"), "nan is not finite"),
    ("locations.nyc.longitude", float("-inf"), "-inf is not finite"),
    ("locations.nyc.latitude", "40", '"40" is text; expected a number'),
    ("locations.nyc.latitude", True, "is true or false; expected a number"),
    # egress IPs
    ("egress_ips", [], "egress_ips: is empty; expected at least one entry"),
    ("egress_ips.1.location", "sfo", 'egress_ips[1].location: "sfo" is no key of `locations`'),
    ("egress_ips.1.name", "lax-1", 'egress_ips[1].name: "lax-1" stands on line'),
    ("egress_ips.1.name", "", "is empty"),
    ("egress_ips.1.name", "a b", "is not a name"),
    ("egress_ips.1.name", 5, "is a number; expected letters"),
    ("egress_ips.1.name", "shared", "is reserved"),
    ("egress_ips.1.ipv4", "2001:db8::1", "is an IPv6 address; expected one IPv4 address"),
    ("egress_ips.1.ipv4", "203.0.113.0/24", "is a prefix of 256 addresses; expected one IPv4 address"),
    ("egress_ips.1.ipv4", "203.0.113.300", "is not an IP address"),
    ("egress_ips.1.ipv4", 3405803796, "is a number; expected one IPv4 address"),
    ("egress_ips.1.ipv4", "127.0.0.1", "is a loopback address"),
    ("egress_ips.1.ipv4", "224.0.0.1", "is a multicast address"),
    ("egress_ips.1.ipv4", "169.254.1.1", "is a link-local address"),
    ("egress_ips.1.ipv4", "255.255.255.255", "is a reserved address"),
    ("egress_ips.1.ipv4", "0.0.0.0", "is an unroutable address"),
    ("egress_ips.1.ipv6", "203.0.113.20", "is IPv4 in an IPv6 field; expected an IPv6 range"),
    ("egress_ips.1.ipv6", "2001:db8:2::1/64", "has bits set after the first 64; expected 2001:db8:2::/64"),
    ("egress_ips.1.ipv6", "2001:db8:2::/129", "is not an IP prefix"),
    ("egress_ips.1.ipv6", "::1", "loopback or unspecified"),
    ("egress_ips.1.ipv6", "ff00::/64", "multicast"),
    ("egress_ips.1.ipv6", "fe80::/64", "link-local"),
    ("egress_ips.1.ipv6", "::ffff:10.0.0.0/112", "IPv4-mapped"),
    ("egress_ips.1.ipv6", "fe80::%eth0/64", "has a zone"),
    ("egress_ips.1.on_link", 1, "is a number; expected true or false"),
    # shared
    ("shared.ipv4", "203.0.113.20", 'shared.ipv4: "203.0.113.20" belongs to the egress IP nyc-1 (line'),
    (
        "shared.ipv6",
        "2001:db8:2::1",
        'shared.ipv6: "2001:db8:2::1" lies in 2001:db8:2::/64 of the egress IP nyc-1',
    ),
    ("shared.ipv4", "2001:db8::1", "is an IPv6 address"),
    ("shared.ipv6", "198.51.100.1", "is an IPv4 address"),
    ("shared.ipv6", "2001:db8::/64", "is a prefix of"),
    ("shared.ipv6", "fe80::1", "link-local"),
    ("shared.ipv6", "2001:db8::1%eth0", "has a zone"),
    ("shared.ipv6", "ff02::1", "multicast"),
    # private networks
    (
        "private_networks.0",
        "10.20.0.1/16",
        'private_networks[0]: "10.20.0.1/16" has bits set after the first 16; ',
    ),
    ("private_networks.1", "fd20::1/48", "has bits set after the first 48; expected fd20::/48"),
    ("private_networks.1", "10.20.0.0/16", "is also a private network (line"),
    ("private_networks.0", "203.0.113.0/28", "contains 203.0.113.10, the egress IP lax-1 (line"),
    ("private_networks.1", "2001:db8:1::/48", "overlaps 2001:db8:1::/64 of the egress IP lax-1"),
    ("private_networks.1", "2001:db8:1::8/128", "lies in 2001:db8:1::/64 of the egress IP lax-1"),
    ("private_networks.0", "198.51.100.1", "is also the shared address (line"),
    ("private_networks.0", "0.0.0.0/0", "(and 2 more)"),
    ("private_networks.0", "lan", "is not an IP prefix"),
    ("private_networks.1", "::ffff:10.0.0.0/104", "is an IPv4-mapped prefix; expected 10.0.0.0/8"),
    ("private_networks.1", "::ffff:0:0/96", "is an IPv4-mapped prefix; expected 0.0.0.0/0"),
    ("private_networks.1", "::ffff:10.0.0.1", "is an IPv4-mapped prefix; expected 10.0.0.1/32"),
    ("private_networks.0", 10, "is a number; expected a prefix"),
    # limits and mask
    ("limits.connections_per_origin", 64513, "64513 is too large; expected 64,512 at most"),
    ("limits.connections_per_origin", 0, "0 is too small; expected at least 1"),
    ("limits.connections_per_origin", -1, "is too small"),
    ("limits.connections_per_origin", 1e4, "is a number; expected a whole number"),
    ("limits.connections_per_origin", "40000", '"40000" is text; expected a whole number'),
    ("limits.connections_per_origin", True, "is true or false; expected a whole number"),
    ("limits.connections_per_origin", 10**30, "is too large"),
    ("limits.flows", 1023, "expected at least 1,024"),
    ("limits.flows", 16777217, "expected 16,777,216 at most"),
    ("limits.origins", 1, "expected at least 1,024"),
    ("mark_mask", 0, "does not fit into 32 bits"),
    ("mark_mask", -1, "does not fit into 32 bits"),
    ("mark_mask", 0x1_0000_0000, "does not fit into 32 bits"),
    ("mark_mask", 0x7F, "is 7 bits wide"),
    ("mark_mask", 0xFF0F, "has a gap between its bits"),
    ("mark_mask", "ffff", "is not a mask"),
    ("mark_mask", True, "is true or false"),
    ("mark_mask", 1.5, "is a number"),
    # interfaces
    ("interfaces.outside.0", "in0", 'interfaces.outside[0]: "in0" stands on both sides'),
    ("interfaces.inside.1", "in0", 'interfaces.inside[1]: "in0" stands here twice'),
    ("interfaces.inside.0", "a-very-long-name", "is no valid interface name"),
    ("interfaces.inside.0", "a b", "is no valid interface name"),
    ("interfaces.inside.0", "a/b", "is no valid interface name"),
    ("interfaces.inside.0", "", "is no valid interface name"),
    ("interfaces.inside.0", "lo", "is the loopback interface"),
    (
        "check_source",
        "no",
        'check_source: "no" is text; expected true or false, or that for inside interfaces',
    ),
    ("check_source", ["in0"], "check_source: is a list; expected true or false, or that for inside"),
    ("check_source", {"in0": "no"}, 'check_source.in0: "no" is text; expected true or false'),
    ("check_source", {"in00": False}, 'check_source: "in00" is no inside interface; expected in0 (did you'),
    ("check_source", {"out0": False}, 'check_source: "out0" is no inside interface; expected'),
    # policies
    ("policies.1.name", "bank", 'policies[1].name: "bank" stands on line'),
    ("policies.1.name", " ", "is empty"),
    ("policies.1.name", "x" * 129, "is too long"),
    ("policies.1.precedence", 10, "policies[1].precedence: 10 stands on line"),
    ("policies.1.precedence", -1, "is too small; expected at least 0"),
    ("policies.1.precedence", "1", "is text; expected a whole number"),
    ("policies.1.precedence", 1.5, "is a number; expected a whole number"),
    ("policies.1.egress", "shared", '"shared" is no egress IP; expected `default` for the shared address'),
    (
        "policies.1.egress",
        "nyc-2",
        '"nyc-2" is the name of no egress IP; expected nyc-1 (did you mean that?)',
    ),
    ("policies.1.egress", "Default", "is the name of no egress IP; expected default (did you mean that?)"),
    ("policies.1.egress", "", "is the name of no egress IP; expected one of default, lax-1, nyc-1"),
    (
        "policies.1.egress",
        "203.0.113.10",
        'is an address where a name stands; expected {ipv4: "203.0.113.10"}',
    ),
    ("policies.1.egress", PREFIX6, f'is an address where a name stands; expected {{ipv6: "{PREFIX6}"}}'),
    ("policies.1.egress", 5, "is a number; expected `default`, or the name or the addresses of an egress IP"),
    ("policies.1.egress", ["default"], "is a list; expected `default`"),
    ("policies.1.egress", {}, "policies[1].egress: names no egress IP"),
    ("policies.1.egress", {"ipv4_fallback": "203.0.113.20"}, "names no egress IP"),
    (
        "policies.1.egress",
        {"ipv4": "203.0.113.21"},
        "belongs to no egress IP; expected 203.0.113.20 (did you",
    ),
    ("policies.1.egress", {"ipv6": "2001:db8:3::/64"}, "belongs to no egress IP"),
    ("policies.1.egress", {"ipv6": "2001:db8:1::/80"}, "is not the range of lax-1; expected 2001:db8:1::/64"),
    ("policies.1.egress", {"ipv6": "2001:db8:1::1"}, "is not the range of lax-1; expected 2001:db8:1::/64"),
    ("policies.1.egress", {"ipv6": "2001:db8::/32"}, "is not the range of lax-1"),
    ("policies.1.egress", {"ipv4": PREFIX6}, "is an IPv6 range in an IPv4 field"),
    ("policies.1.egress", {"ipv6": "203.0.113.10"}, "is IPv4 in an IPv6 field"),
    (
        "policies.1.egress",
        {"ipv4": "0.0.0.0"},
        "which only ipv4_fallback may name; expected `egress: default`",
    ),
    (
        "policies.1.egress",
        {"ipv4": "198.51.100.1"},
        "is the shared address; expected `egress: default` for it",
    ),
    (
        "policies.1.egress",
        {"ipv4": "203.0.113.10", "ipv4_fallback": "198.51.100.1"},
        "is the shared address; expected 0.0.0.0 for it",
    ),
    (
        "policies.1.egress",
        {"ipv4": "203.0.113.10", "ipv4_fallback": "203.0.113.10"},
        "is the policy's own egress IP; expected another egress IP",
    ),
    (
        "policies.1.egress",
        {"ipv6": PREFIX6, "ipv4_fallback": "203.0.113.10"},
        "is the policy's own egress IP",
    ),
    (
        "policies.1.egress",
        {"ipv4": "203.0.113.10", "ipv4_fallback": PREFIX6},
        "is an IPv6 range in an IPv4 field",
    ),
    (
        "policies.1.egress",
        {"ipv4": "203.0.113.10", "ipv4_fallback": "203.0.113.99"},
        "belongs to no egress IP",
    ),
    ("policies.1.traffic", 80, "policies[1].traffic: 80 is a number; expected an expression"),
    ("policies.1.traffic", ["a"], "is a list; expected an expression"),
    (
        "policies.1.traffic",
        "net.dst.port == ",
        "policies[1].traffic: the expression ends here; expected a value",
    ),
    ("policies.1.traffic", "net.dst.prot == 80", "net.dst.prot is no known field; expected net.dst.port"),
    ("policies.1.identity", 5, "policies[1].identity: 5 is a number; expected an expression"),
    ("policies.1.identity", 'identity.email == "a', 'policies[1].identity: " has no end; expected a closing'),
    (
        "policies.1.device_posture",
        "x == 1",
        "policies[1].device_posture: x is no known field; expected one of",
    ),
    ("policies.1.traffic", "net.dst.ip in $x", "$x is no list; expected a list of that name under `lists`"),
    (
        "policies.1.traffic",
        'net.dst.geo.country == "US"',
        "net.dst.geo.country is looked up in a MaxMind DB, and none is named; expected `geoip: {database:",
    ),
    # lists
    ("lists", [], "lists: is a list; expected a group of keys"),
    ("lists", {"a b": ["x"]}, 'lists: "a b" is not a name; expected letters'),
    ("lists", {"a": "x"}, 'lists.a: "x" is text; expected a list'),
    ("lists", {"a": ["x", 1.5]}, "lists.a[1]: 1.5 is a number; expected text, or a whole number (quote it:"),
    ("lists", {"a": ["x", True]}, "lists.a[1]: true is true or false; expected text"),
    ("lists", {"a": ["x", ""]}, 'lists.a[1]: "" is empty; expected text'),
    ("lists", {"a": ["x", None]}, "lists.a[1]: is empty; expected text"),
    ("lists", {"a": ["x", ["y"]]}, "lists.a[1]: is a list; expected text"),
    ("lists", {"a": ["x"] * 100_001}, "lists.a: has 100,001 entries; expected 100,000 at most"),
    # sources of facts
    ("geoip", {"databse": "/x"}, 'geoip: unknown key "databse"; expected database'),
    ("geoip", {"database": 5}, "geoip.database: 5 is a number; expected the path of a file"),
    ("geoip", {"database": "x.mmdb"}, 'geoip.database: "x.mmdb" does not begin with /; expected'),
    ("geoip", {"database": ""}, 'geoip.database: "" is empty; expected'),
    (
        "geoip",
        {"database": "/no/such.mmdb"},
        'geoip.database: "/no/such.mmdb" does not exist; expected a Max',
    ),
    ("geoip", {"database": "/etc"}, 'geoip.database: "/etc" is no file; expected a MaxMind DB'),
    ("sessions", {"file": "sessions"}, 'sessions.file: "sessions" does not begin with /; expected'),
    ("sessions", "x", 'sessions: "x" is text; expected a group of keys'),
    ("dns", {"resolvers": "192.0.2.53"}, 'dns.resolvers: "192.0.2.53" is text; expected a list'),
    (
        "dns",
        {"resolvers": ["192.0.2.0/24"]},
        'dns.resolvers[0]: "192.0.2.0/24" is a prefix of 256 addresses;',
    ),
    ("dns", {"when_down": "hold"}, 'dns.when_down: "hold" is neither; expected `pass` or `drop`'),
    (
        "timers",
        {"tcp_established": 7439},
        "7439 is too short; expected 7,440 seconds at least (RFC 5382, REQ-5",
    ),
    ("timers", {"tcp_transitory": 239}, "239 is too short; expected 240 seconds at least (RFC 5382, REQ-5"),
    ("timers", {"tcp_closing": 239}, "239 is too short; expected 240 seconds at least (RFC 5382, REQ-5"),
    ("timers", {"tcp_time_wait": 29}, "29 is too short; expected 30 seconds at least"),
    ("timers", {"tcp_close": 9}, "9 is too short; expected 10 seconds at least"),
    ("timers", {"udp": 119}, "119 is too short; expected 120 seconds at least (RFC 4787, REQ-5"),
    ("timers", {"icmp": 59}, "59 is too short; expected 60 seconds at least (RFC 5508, REQ-2"),
    ("timers", {"udp": 604801}, "604801 is too large; expected 604,800 at most"),
    ("timers", {"udp": 300.5}, "300.5 is a number; expected a whole number"),
    ("timers", {"udp": True}, "true is true or false; expected a whole number"),
    ("timers", {"udp": "5m"}, '"5m" is text; expected a whole number'),
    ("timers", {"tcp_fin": 10}, 'timers: unknown key "tcp_fin"; expected'),
    ("timers", 300, "timers: 300 is a number; expected a group of keys"),
    ("fast_path", "yes", 'fast_path: "yes" is text; expected true or false'),
    ("dns", {"grace": -1}, "dns.grace: -1 is too small; expected at least 0"),
    ("dns", {"grace": "30"}, 'dns.grace: "30" is text; expected a whole number'),
]


@pytest.mark.parametrize(("path", "value", "message"), ONE_FAULT)
def test_one_fault_is_one_message(file: Path, path: str, value: Any, message: str) -> None:
    faults = faults_of(write(file, changed((path, value))))
    # A wrong address of an egress IP must not also fault the policy that names the right one.
    assert message in str(faults[0]), [str(fault) for fault in faults]
    assert len(faults) == 1, [str(fault) for fault in faults]
    assert faults[0].line > 0 or value is ABSENT
    assert "; expected " in faults[0].message


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ("egress_ips.0.location", "nyc"),
            ("egress_ips.1.ipv4", "203.0.113.10"),
            'egress_ips[1].ipv4: "203.0.113.10" belongs to the egress IP lax-1',
        ),
        (
            ("egress_ips.1.ipv4", "203.0.113.10"),
            ("policies.0.egress.ipv4_fallback", "0.0.0.0"),
            'egress_ips[1].ipv4: "203.0.113.10" belongs to the egress IP lax-1',
        ),
        (
            ("egress_ips.0.ipv6", "2001:db8:2:0:8000::/65"),
            ("policies.0.egress", "default"),
            'egress_ips[1].ipv6: "2001:db8:2::/64" overlaps 2001:db8:2:0:8000::/65 of the egress IP lax-1',
        ),
        (
            ("egress_ips.0.ipv6", "2001:db8::/32"),
            ("policies.0.egress", "default"),
            'egress_ips[1].ipv6: "2001:db8:2::/64" overlaps 2001:db8::/32 of the egress IP lax-1',
        ),
    ],
)
def test_faults_between_egress_ips(
    file: Path, first: tuple[str, Any], second: tuple[str, Any], message: str
) -> None:
    messages = [str(fault) for fault in faults_of(write(file, changed(first, second)))]
    assert any(message in each for each in messages), messages


def test_all_faults_come_at_once_and_in_the_order_of_the_file(file: Path) -> None:
    data = changed(
        ("location", "lxa"),
        ("interfaces.outside.0", "in0"),
        ("locations.lax.latitude", 100),
        ("shared.ipv4", "nonsense"),
        ("egress_ips.0.ipv4", "nonsense"),
        ("egress_ips.1.name", "lax-1"),
        ("limits.connections_per_origin", 64513),
        ("policies.0.traffic", "net.dst.port = 80"),
        ("policies.1.precedence", 10),
        ("policies.1.colour", "red"),
    )
    faults = faults_of(write(file, data))
    assert len(faults) == 10, [str(fault) for fault in faults]
    assert list(faults) == sorted(faults, key=lambda fault: (fault.line, fault.column))


@pytest.mark.parametrize("existing", [some_links("lo", "in0", "wan1"), some_links("in0", "out1")])
def test_an_interface_that_does_not_exist(file: Path, existing: Any) -> None:
    (fault,) = faults_of(write(file, GOOD), interfaces=existing)
    assert 'interfaces.outside[0]: "out0" does not exist; expected ' in fault.message
    assert ("out1 (did you mean that?)" if "out1" in existing else "one of in0, wan1") in fault.message


def test_a_port_of_a_bridge_or_bond(file: Path) -> None:
    """The bridge takes a port's packets: the programs would see them, but they are not routed."""
    (fault,) = faults_of(write(file, GOOD), interfaces=some_links("br0", "out0", in0={"port_of": "br0"}))
    assert 'interfaces.inside[0]: "in0" is a port of br0' in fault.message
    assert "expected br0" in fault.message


@pytest.mark.parametrize(("taker", "instead"), [("vrf", "in no VRF"), ("openvswitch", "an internal port")])
def test_a_port_whose_packets_come_by_no_interface_to_list(file: Path, taker: str, instead: str) -> None:
    existing = some_links("out0", in0={"port_of": "over0"}, over0={"kind": taker})
    (fault,) = faults_of(write(file, GOOD), interfaces=existing)
    assert 'interfaces.inside[0]: "in0" is a port of over0, which takes its packets' in fault.message
    assert instead in fault.message


def test_a_vrf(file: Path) -> None:
    """vrf_ip_rcv takes packets in behind the VRF's own TC hook: a program there would mark none."""
    (fault,) = faults_of(write(file, GOOD), interfaces=some_links("out0", in0={"kind": "vrf"}))
    assert 'interfaces.inside[0]: "in0" is a VRF' in fault.message


@pytest.mark.parametrize(("kind", "lower"), [("ipvlan", "out0"), ("ipvlan", "between"), ("ipvtap", "out0")])
def test_an_interface_with_the_mac_address_of_one_below(file: Path, kind: str, lower: str) -> None:
    """With equal MAC addresses the programs cannot tell the two interfaces' packets apart."""
    above = {"in0": {"kind": kind, "lower": lower}, "between": {"kind": "vlan", "lower": "out0"}}
    (fault,) = faults_of(write(file, GOOD), interfaces=some_links("out0", **above))
    assert (
        f'interfaces.inside[0]: "in0" lies on out0, which is listed too, with the same MAC address ({kind})'
        in (fault.message)
    )
    assert "macvlan" in fault.message


@pytest.mark.parametrize(("kind", "lower"), [("vlan", "out0"), ("macvlan", "out0"), ("ipvlan", "eth0")])
def test_an_interface_on_top_of_another_one(file: Path, kind: str, lower: str) -> None:
    links = some_links("out0", "eth0", in0={"kind": kind, "lower": lower})
    assert load(write(file, GOOD), interfaces=links).interfaces.inside == ("in0",)


def test_fallback_may_differ_from_the_primary_in_any_location(file: Path) -> None:
    data = changed(("policies.1.egress", {"ipv6": "2001:db8:2::/64", "ipv4_fallback": "0.0.0.0"}))
    assert load(write(file, data)).policies[1].egress != "default"


def test_empty_optional_sections_are_absent_ones(file: Path) -> None:
    data = changed(("policies", None), ("private_networks", None), ("limits", None))
    configuration = load(write(file, data))
    assert configuration.policies == () and configuration.private_networks == ()


def test_more_egress_ips_than_the_mask_can_tell_apart(file: Path) -> None:
    def egress_ips(count: int) -> list[dict[str, str]]:
        return [
            {
                "name": f"e{i}",
                "location": "lax",
                "ipv4": f"203.0.{i // 250}.{i % 250}",
                "ipv6": f"2001:db8:{i:x}::/64",
            }
            for i in range(1, count + 1)
        ]

    most = write(file, changed(("mark_mask", 0xFF00), ("egress_ips", egress_ips(253)), ("policies", [])))
    assert load(most).mark_mask == 0xFF00
    over = write(file, changed(("mark_mask", "0xff00"), ("egress_ips", egress_ips(254)), ("policies", [])))
    (fault,) = faults_of(over)
    assert "8 bits tell 253 egress IPs apart, here are 254; expected 9 bits, such as 0x1ff" in fault.message


def test_a_fault_in_any_text_is_found_where_it_stands(file: Path) -> None:
    policy = """  - name: one
    precedence: 1
    traffic: >-
      net.dst.port == 443 and
      net.dst.prot == 80
    identity: 'identity.email == "a@example.com" or identity.emale == "b@example.com"'
    device_posture: any(device_posture.checks.passed == "x")
"""
    text = write(file, changed(("policies", ABSENT))).read_text()
    file.write_text(f"{text}policies:\n{policy}")
    first = text.count("\n") + 2
    lines = file.read_text().splitlines()
    found = [
        (fault.line - first, lines[fault.line - 1][fault.column - 1 :].split()[0])
        for fault in faults_of(file)
    ]
    assert found == [
        (4, "net.dst.prot"),
        (5, "identity.emale"),
        (6, "device_posture.checks.passed"),
    ]


def test_a_list_is_judged_by_its_use_and_faulted_where_it_stands(file: Path) -> None:
    lists = {"a": ["192.0.2.1", "x", "y"], "b": ["x.example.com", "Bücher.example"], "unused": ["!"]}
    policies = [
        {"name": "p1", "precedence": 1, "traffic": "net.dst.ip in $a"},
        {"name": "p2", "precedence": 2, "traffic": "net.src.ip not in $a"},
        {"name": "p3", "precedence": 3, "traffic": "net.fqdn.host in $b", "identity": "identity.email in $b"},
    ]
    faults = faults_of(write(file, changed(("lists", lists), ("policies", policies))))
    assert [fault.message for fault in faults] == [
        'lists.a[1]: "x" is no IP address; expected an IP address, such as 192.0.2.1 or 2001:db8::1, or a '
        "prefix such as 192.0.2.0/24 in {…} (policies[0].traffic uses it)",
        'lists.b[1]: "Bücher.example" is not ASCII, as DNS names are; expected the A-label, '
        '"xn--bcher-kva.example" (policies[2].traffic uses it)',
    ]
    assert [file.read_text().splitlines()[fault.line - 1].strip() for fault in faults] == [
        "- x",
        "- Bücher.example",
    ]
    lists = {"a": ["192.0.2.1", "10.0.0.0/8"], "b": ["x.example.com"], "ports": [80, "8000..8999"]}
    policies[0]["traffic"] = "net.dst.ip in $a and net.dst.port in $ports"
    configuration = load(write(file, changed(("lists", lists), ("policies", policies))))
    assert configuration.lists["ports"] == ("80", "8000..8999")


def test_a_faulty_list_hides_nothing_else(file: Path) -> None:
    changes = changed(("lists", {"a": ["192.0.2.1", True]}), ("policies.1.traffic", "net.dst.ip in $a"))
    (fault,) = faults_of(write(file, changes))
    assert "lists.a[1]" in fault.message


@pytest.mark.parametrize("network", ["::/0", "::/64", "::fffe:0:0/95", "::fffe:0:0/96"])
def test_a_private_network_may_contain_mapped_addresses(network: str) -> None:
    """A prefix that covers mapped addresses applies to IPv6 only."""
    networks = Configuration.model_validate(changed(("private_networks", [network]))).private_networks
    assert [str(each) for each in networks] == [network]


def test_more_policies_than_have_numbers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enforcer.config.checks.MAX_POLICIES", 3)
    policies = [{"name": f"p{i}", "precedence": i, "traffic": f"net.dst.port == {i}"} for i in range(4)]
    assert len(load(write(file, changed(("policies", policies[:3])))).policies) == 3
    for policy in policies:
        policy["enabled"] = False
    (fault,) = faults_of(write(file, changed(("policies", policies))))
    assert "policies: are 4; expected 3 at most" in fault.message


def test_countries_need_a_database_that_is_there(file: Path) -> None:
    database = file.with_suffix(".mmdb")
    place = ("policies.1.traffic", 'net.dst.port == 80 and not net.src.geo.continent in {"EU"}')
    (fault,) = faults_of(write(file, changed(place)))
    assert "net.src.geo.continent is looked up" in fault.message
    assert file.read_text().splitlines()[fault.line - 1][fault.column - 1 :].startswith("net.src.geo")
    with_database = changed(place, ("geoip", {"database": str(database)}))
    (fault,) = faults_of(write(file, with_database))
    assert "geoip.database" in fault.message
    database.touch()
    assert load(write(file, with_database)).geoip.database == str(database)


def test_a_list_of_a_hundred_thousand_addresses(file: Path) -> None:
    values = [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(100_000)]
    text = write(file, changed(("policies.1.traffic", "net.dst.ip in $all"))).read_text()
    file.write_text(text + "lists:\n  all:\n" + "".join(f"  - {value}\n" for value in values))
    assert len(load(file).lists["all"]) == 100_000


def test_more_rules_than_the_tables_hold(file: Path) -> None:
    one = " and ".join(f"(net.src.ip == 10.0.0.{i} or net.dst.ip == 10.0.1.{i})" for i in range(2))
    pairs = " or ".join(f"net.src.ip == 10.0.{i}.1 and net.dst.ip == 10.1.{i}.1" for i in range(200))
    policies = [{"name": f"p{i}", "precedence": i, "traffic": pairs} for i in range(83)]
    (fault,) = faults_of(write(file, changed(("policies", policies))))
    assert "need 16,600 rules, policies[0] alone 200; expected 16,384 at most" in fault.message
    for policy in policies[:2]:
        policy["enabled"] = False
    assert len(load(write(file, changed(("policies", policies)))).policies) == 83
    exploding = " and ".join(one.replace("10.0", f"10.{i}") for i in range(8)).replace("==", "!=")
    exploding = f"not ({exploding})"
    assert load(write(file, changed(("policies.1.traffic", exploding))))
    hopeless = (
        "not ("
        + " or ".join(f"net.src.ip == 10.0.{i}.1 and net.dst.ip == 10.1.{i}.1" for i in range(40))
        + ")"
    )
    (fault,) = faults_of(write(file, changed(("policies.1.traffic", hopeless))))
    assert "policies[1]: needs more than 16,384 rules" in fault.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("egress_ips.1.location", "lax")], "all in one city (Los Angeles)"),
        ([("location", "nyc"), ("egress_ips.1.location", "lax")], "none at nyc, where this gateway stands"),
        ([("locations.nyc.city", "Los Angeles")], "all in one city (Los Angeles)"),
    ],
)
def test_warnings(file: Path, changes: list[tuple[str, Any]], message: str) -> None:
    configuration = load(write(file, changed(*changes)))
    assert any(message in str(warning) for warning in configuration.warnings)
    assert all(warning.line > 0 for warning in configuration.warnings)


# --- the file itself


def test_no_file(file: Path) -> None:
    (fault,) = faults_of(file)
    assert "does not exist" in fault.message


def test_a_directory(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path)
    assert "is a directory" in fault.message


def test_an_unreadable_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, GOOD).chmod(0)
    if os.geteuid() == 0:
        # root may read every file: opening must fail as it does for other users.
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(trust, "open_file", refuse)
    (fault,) = faults_of(file)
    assert "cannot be read: Permission denied" in fault.message


def test_ten_megabytes_are_refused_unparsed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "parse", lambda *_: pytest.fail("parsed"))
    file.write_bytes(b"policies: [" + b"[" * (10 << 20))
    (fault,) = faults_of(file)
    assert "is larger than 8 MiB" in fault.message


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", 0, "is empty"),
        (b"\n\n# nothing\n", 0, "is empty"),
        (b"---\n", 0, "is empty"),
        (b"null", 0, "is empty"),
        (b"just text", 1, "is no configuration"),
        (b"- a\n- b", 1, "is no configuration"),
        (b"location: lax\n\tinterfaces: x", 2, "is indented with a tab"),
        (b"location: lax\ninterfaces:\n\tinside: [a]", 3, "is indented with a tab"),
        (b"location: 'lax", 1, "is not YAML"),
        (b"location: [a, b", 1, "is not YAML"),
        (b"location: a: b", 1, "is not YAML"),
        (b"a: b\n}", 2, "is not YAML"),
        (b"location: lax\nx: \xff\xfe", 2, "byte 0xff is not UTF-8"),
        ("location: lax".encode("utf-16"), 1, "is not UTF-8"),
        (b"location: l\x00ax", 1, "the character U+0000 is not allowed"),
        (b"location: lax\n---\nlocation: nyc", 2, "a second YAML document"),
        (b"location: *nobody", 1, "*nobody refers to nothing"),
        (
            b"location: !!python/object:os.system x",
            1,
            "the tag tag:yaml.org,2002:python/object:os.system is not",
        ),
        (b"location: !secret x", 1, "the tag !secret is not understood"),
        (b"a: " + b"[" * 40 + b"]" * 40, 1, "nested more than 32 levels deep"),
        (b"a: " + b"[" * 1_000_000, 1, "nested more than 32 levels deep"),
        (b"a: " + b"{a: " * 300_000, 1, "nested more than 32 levels deep"),
        (b"- " * 500_000, 1, "nested more than 32 levels deep"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00", 1, "not allowed in YAML"),
    ],
)
def test_not_a_configuration(file: Path, content: bytes, line: int, message: str) -> None:
    file.write_bytes(content)
    found: list[Fault] = []
    assert calls(lambda: found.extend(faults_of(file))) < 100_000 + 10 * len(content)
    (fault,) = found
    assert message in fault.message
    assert fault.line == line


def test_aliases_that_blow_up(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    file.write_text("\n".join(lines))
    (fault,) = faults_of(file)
    assert "aliases make this more than 1,000,000 values" in fault.message


def test_an_alias_of_itself(file: Path) -> None:
    file.write_text("policies: &a [*a]")
    (fault,) = faults_of(file)
    assert "*a refers to nothing" in fault.message


def test_aliases_may_be_used(file: Path) -> None:
    text = write(file, GOOD).read_text()
    text = text.replace("egress: default", "egress: &d default")
    file.write_text(text + "- {name: more, precedence: 2000, egress: *d}\n")
    assert load(file).policies[2].egress == "default"


def test_duplicate_keys_are_all_named(file: Path) -> None:
    text = write(file, GOOD).read_text()
    file.write_text(text + "location: nyc\nlimits: {flows: 2048, flows: 4096}\n")
    messages = [str(fault) for fault in faults_of(file)]
    assert len(messages) == 3
    assert 'the key "location" stands on line 1 already' in messages[0]
    assert 'the key "limits" stands on line' in messages[1]
    assert 'the key "flows" stands on line' in messages[2]


def test_keys_must_be_text(file: Path) -> None:
    file.write_text(write(file, GOOD).read_text() + "5: x\n? [a]\n: y\n")
    messages = [str(fault) for fault in faults_of(file)]
    assert any('a key must be text (quote it: "5")' in message for message in messages)


def test_a_byte_order_mark_and_windows_line_ends_are_read(file: Path) -> None:
    text = write(file, GOOD).read_text()
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load(file).location == "lax"


def test_norway_is_a_country(file: Path) -> None:
    text = write(file, GOOD).read_text().replace("country: US", "country: NO")
    file.write_text(text)
    assert load(file).locations["lax"].country == "NO"


@pytest.mark.parametrize(
    ("traffic", "line", "column"),
    [
        ("traffic: net.dst.port == x", 1, 26),
        ("traffic: 'net.dst.port == x'", 1, 27),
        ("traffic: 'net.protocol == ''tcp'''", 1, 27),
        ('traffic: "net.dst.port == x"', 1, 27),
        ('traffic: "net.protocol == \\"tcp\\" and net.dst.port == x"', 1, 55),
        ('traffic: "net.dst.\\x70ort == x"', 1, 30),
        ("traffic: |\n      net.dst.port == 80\n      or net.dst.port == x", 3, 26),
        ("traffic: >-\n      net.dst.port == 80\n      or\n\n      net.dst.port == x", 5, 23),
        ("traffic:\n      net.dst.port == 80\n      or net.dst.port == x", 3, 26),
        ('traffic: "net.dst.port == 80\n      or net.dst.port == x"', 2, 26),
        ("traffic: |\n      net.dst.port ==\n", 2, 22),
        ('traffic: "net.dst.port ==  "', 1, 26),
    ],
)
def test_a_fault_in_an_expression_is_found_in_the_file(
    file: Path, traffic: str, line: int, column: int
) -> None:
    text = write(file, changed(("policies", ABSENT))).read_text()
    before = text.count("\n") + 2
    file.write_text(f"{text}policies:\n  - name: a\n    precedence: 1\n    {traffic}\n")
    (fault,) = faults_of(file)
    assert (fault.line - before - 1, fault.column) == (line, column + 4 if line == 1 else column)


def test_positions_point_at_key_and_value(file: Path) -> None:
    file.write_text("location: lax\nzzz: 1\ninterfaces:\n  inside: [in0, 5]\n  outsid: [x]\n")
    positions = {fault.message.split(";")[0]: (fault.line, fault.column) for fault in faults_of(file)}
    assert positions['unknown key "zzz"'] == (2, 1)
    assert positions["interfaces.inside[1]: 5 is a number"] == (4, 17)
    assert positions['interfaces: unknown key "outsid"'] == (5, 3)
    assert positions['interfaces: the key "outside" is missing'] == (3, 1)


def test_four_thousand_of_each_are_read(file: Path) -> None:
    egress_ips = [
        {
            "name": f"e{i}",
            "location": ["lax", "nyc"][i % 2],
            "ipv4": f"203.{i >> 8}.1.{i & 255}",
            "ipv6": f"2001:db8:{i:x}::/64",
        }
        for i in range(4000)
    ]
    policies = [
        {
            "name": f"p{i}",
            "precedence": i,
            "traffic": f"net.dst.port == {i}",
            "egress": {"ipv4": egress_ips[i]["ipv4"]},
        }
        for i in range(4000)
    ]
    write(file, changed(("egress_ips", egress_ips), ("policies", policies)))
    configuration = load(file)
    assert {configuration.resolve(policy).primary6 for policy in configuration.policies} == {
        egress["name"] for egress in egress_ips
    }


def test_policies_that_never_decide_are_a_warning_with_those_that_do(file: Path) -> None:
    policies = [
        {"name": "offices", "precedence": 1, "traffic": "net.src.ip in $offices"},
        {"name": "printer", "precedence": 2, "traffic": "net.src.ip in {10.1.2.3 fd01::3}"},
        {"name": "names", "precedence": 3, "traffic": "net.dst.port == 53"},
        {"name": "udp", "precedence": 4, "traffic": 'net.protocol == "udp"'},
        {"name": "branch", "precedence": 5, "traffic": "net.dst.ip == fd20::1"},
        {"name": "rest", "precedence": 6, "traffic": "net.dst.port == 9"},
    ]
    lists = {"offices": ["10.1.0.0/16", "fd01::/16"]}
    found = load(write(file, changed(("policies", policies), ("lists", lists))))
    said = [str(warning).partition(": policies")[2] for warning in found.warnings]
    line = found.warnings[0].line
    shared = "all of its traffic is shared, whatever policies say"
    assert said == [
        f"[1]: printer never applies: offices (line {line - 3}) matches all of its traffic first",
        f"[2]: names never applies: {shared}",
        f"[3]: udp never applies: {shared}",
        f"[4]: branch never applies: {shared}",
    ]


def test_policies_that_fit_no_table_are_a_fault(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enforcer.policy.tables.MAX_PREFIXES", 3)
    (fault,) = faults_of(write(file, changed(("policies.0.traffic", "net.dst.ip in {10.0.0.1 10.0.0.3}"))))
    assert "policies: 4 prefixes in the match tables, 3 at most; most are of: bank" in fault.message
