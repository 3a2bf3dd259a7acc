"""A configuration for the lab, and small edits of it.

A document is plain dicts and lists, as YAML reads it. The edits return a copy.
"""

from __future__ import annotations

import copy
import io
from typing import Any

Document = dict[str, Any]

LAX1 = {4: "203.0.113.10", 6: "2001:db8:1::/64"}
LAX2 = {4: "203.0.113.11", 6: "2001:db8:2::/64"}
NYC1 = {4: "203.0.113.20", 6: "2001:db8:3::/64"}

# The ports at origin2 that policies name; any other takes the nearest egress.
SHOP_PORT = 8443
TRAVEL_PORT = 8081
ABROAD_PORT = 8082

_ORIGIN1 = "net.dst.ip in {198.18.1.0/24 2001:db8:a1::/64}"
_ORIGIN2 = "net.dst.ip in {198.18.2.0/24 2001:db8:a2::/64}"


def document(outside: list[str] | None = None, **changes: object) -> Document:
    """The lab's configuration; ``changes`` replace top-level keys, and None removes one."""
    result: Document = {
        "location": "lax",
        "interfaces": {"inside": ["in0", "in1"], "outside": list(outside or ["out0"])},
        "proxy": {"tcp": True, "udp": True},
        "locations": {
            "lax": {"city": "Los Angeles", "country": "US", "latitude": 33.94, "longitude": -118.41},
            "nyc": {"city": "New York", "country": "US", "latitude": 40.64, "longitude": -73.78},
        },
        "shared": {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"},
        "egress_ips": [
            {"name": "lax-1", "location": "lax", "ipv4": LAX1[4], "ipv6": LAX1[6]},
            {"name": "lax-2", "location": "lax", "ipv4": LAX2[4], "ipv6": LAX2[6]},
            {"name": "nyc-1", "location": "nyc", "ipv4": NYC1[4], "ipv6": NYC1[6]},
        ],
        "private_networks": ["10.20.0.0/16", "fd20::/48"],
        "limits": {"connections_per_origin": 40000},
        "policies": [
            {
                "name": "bank",
                "precedence": 10,
                "traffic": f'{_ORIGIN1} and net.protocol in {{"tcp" "udp"}}',
                "egress": {"ipv4": LAX1[4], "ipv6": LAX1[6]},
            },
            {
                "name": "shop",
                "precedence": 20,
                "traffic": f"{_ORIGIN2} and net.dst.port == {SHOP_PORT}",
                "egress": "default",
            },
            {
                "name": "travel",
                "precedence": 30,
                "traffic": f"{_ORIGIN2} and net.dst.port == {TRAVEL_PORT}",
                "egress": {"ipv4": NYC1[4], "ipv4_fallback": LAX2[4], "ipv6": NYC1[6]},
            },
            {
                "name": "abroad",
                "precedence": 40,
                "traffic": f"{_ORIGIN2} and net.dst.port == {ABROAD_PORT}",
                "egress": {"ipv4": NYC1[4], "ipv6": NYC1[6]},
            },
        ],
    }
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = copy.deepcopy(value)
    return result


def dump(source: Document) -> str:
    """A document as YAML text."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(source, text)
    return text.getvalue()


def named(source: Document, section: str, name: str) -> dict[str, Any]:
    """The entry called ``name`` of ``policies`` or ``egress_ips``; KeyError if there is none."""
    for entry in source[section]:
        if entry["name"] == name:
            return dict(entry)
    raise KeyError(f"no {name} in {section}")


def changed(source: Document, section: str, name: str, **changes: object) -> Document:
    """A copy in which the entry ``name`` of a section has other values (None removes a key)."""
    named(source, section, name)
    result = copy.deepcopy(source)
    for entry in result[section]:
        if entry["name"] == name:
            entry.update(changes)
            for key in [key for key, value in changes.items() if value is None]:
                del entry[key]
    return result


def without(source: Document, section: str, *names: str) -> Document:
    """A copy in which a section lacks the entries of these names."""
    for name in names:
        named(source, section, name)
    result = copy.deepcopy(source)
    result[section] = [entry for entry in result[section] if entry["name"] not in names]
    return result


def added(source: Document, section: str, *entries: dict[str, Any]) -> Document:
    """A copy in which a section has these entries too, at its end."""
    result = copy.deepcopy(source)
    result[section] = [*result.get(section, []), *copy.deepcopy(list(entries))]
    return result
