"""Reads the configuration file and files of other formats into validated models."""

from enforcer.config.loader import load
from enforcer.config.models import (
    DNS,
    SHARED,
    Configuration,
    EgressIP,
    GeoIP,
    Interfaces,
    Limits,
    Location,
    Policy,
    PolicyEgress,
    Proxy,
    ResolvedEgress,
    Sessions,
    Shared,
)
from enforcer.config.schema import schema

__all__ = [
    "DNS",
    "SHARED",
    "Configuration",
    "EgressIP",
    "GeoIP",
    "Interfaces",
    "Limits",
    "Location",
    "Policy",
    "PolicyEgress",
    "Proxy",
    "ResolvedEgress",
    "Sessions",
    "Shared",
    "load",
    "schema",
]
