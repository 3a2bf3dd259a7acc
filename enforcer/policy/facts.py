"""Facts: what policies match besides packet fields. Values by field, of regions, clients and hosts.

A missing field is unknown: any comparison of it, `!=` and `not in` included, is neither true nor false, and
a policy that depends on it does not match (three-valued logic, Kleene).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

Facts = Mapping[str, tuple[str, ...]]
"""Values by field (the keys of :data:`DIMENSIONS`); a field with one value has a tuple of length 1."""

NOTHING: Facts = {}
"""No field is known."""

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
"""Field → dimension. Names of multi-valued fields have no ``[*]`` here."""

SAML = "identity.saml_attributes"
"""Prefix of the fields of SAML attributes: ``identity.saml_attributes["department"]``."""


def saml(name: str) -> str:
    """Return the field of a SAML attribute."""
    return f'{SAML}["{name}"]'


def dimension(field: str) -> Dimension:
    """Return a field's dimension; KeyError for an unknown field."""
    return "client" if field.startswith(f"{SAML}[") else DIMENSIONS[field]


class Connection(NamedTuple):
    """A new connection with the facts that policies match. Protocols without ports have port 0."""

    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    src_port: int
    dst_port: int
    protocol: int
    source_region: Facts = NOTHING
    destination_region: Facts = NOTHING
    client: Facts = NOTHING
    """Facts of the client's session; empty without a session."""
    hosts: tuple[Facts, ...] = ()
    """Facts of each known name of the destination: a policy matches if it matches with one of them."""


def region_facts(side: Literal["src", "dst"], country: str | None, continent: str | None) -> Facts:
    """Return the facts of a region: its ISO 3166-1 country code and its continent code, if known."""
    known = {"country": country, "continent": continent}
    return {f"net.{side}.geo.{name}": (value,) for name, value in known.items() if value}


def host_facts(name: str) -> Facts:
    """Return the facts of a host: its name (lower case, no final dot) and the domains that contain it."""
    labels = name.split(".")
    domains = tuple(".".join(labels[start:]) for start in range(len(labels)))
    return {"net.fqdn.host": (name,), "net.fqdn.domains": domains}
