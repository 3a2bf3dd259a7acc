"""What policies ask about that no packet carries: regions, clients and hosts, as values by field.

A field that is missing is unknown: whatever a comparison asks of it, `!=` and `not in` too, is neither true
nor false, and a policy that depends on it does not match (three-valued logic, Kleene).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

Facts = Mapping[str, tuple[str, ...]]
"""Values by field, as :data:`DIMENSIONS` names them; a field of one value has a tuple of one."""

NOTHING: Facts = {}
"""Nothing is known."""

Dimension = Literal["source_region", "destination_region", "client", "host"]

DIMENSIONS: dict[str, Dimension] = {
    "net.src.geo.country": "source_region",
    "net.src.geo.continent": "source_region",
    "net.dst.geo.country": "destination_region",
    "net.dst.geo.continent": "destination_region",
    "net.vnet_id": "client",
    "proxy.endpoint": "client",
    "identity.email": "client",
    "identity.name": "client",
    "identity.groups.id": "client",
    "identity.groups.name": "client",
    "identity.groups.email": "client",
    "device_posture.checks.passed": "client",
    "net.fqdn.host": "host",
    "net.fqdn.domains": "host",
}
"""Field → what it is about. Those of several values stand without the ``[*]`` of the language."""

SAML = "identity.saml_attributes"
"""Before the attribute's name: ``identity.saml_attributes["department"]`` is a field as well."""


def saml(name: str) -> str:
    """The field of a SAML attribute."""
    return f'{SAML}["{name}"]'


def dimension(field: str) -> Dimension:
    """What a field is about; KeyError for one that is not known."""
    return "client" if field.startswith(f"{SAML}[") else DIMENSIONS[field]


class Connection(NamedTuple):
    """A new connection as policies see it. A protocol without ports has port 0."""

    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    src_port: int
    dst_port: int
    protocol: int
    source_region: Facts = NOTHING
    destination_region: Facts = NOTHING
    client: Facts = NOTHING
    """Of the client's session; empty without one."""
    hosts: tuple[Facts, ...] = ()
    """One for each name that the destination is known by: a policy that matches with one of them matches."""


def region_facts(side: Literal["src", "dst"], country: str | None, continent: str | None) -> Facts:
    """What is known of a region, from its ISO 3166-1 country and its continent code."""
    known = {"country": country, "continent": continent}
    return {f"net.{side}.geo.{name}": (value,) for name, value in known.items() if value}


def host_facts(name: str) -> Facts:
    """What is known of a host: its name (lower case, no final dot) and the domains that it lies in."""
    labels = name.split(".")
    domains = tuple(".".join(labels[start:]) for start in range(len(labels)))
    return {"net.fqdn.host": (name,), "net.fqdn.domains": domains}
