"""The configuration file as validated models."""

from enforcer.config.loader import load
from enforcer.config.models import (
    SHARED,
    Configuration,
    EgressIP,
    Interfaces,
    Limits,
    Location,
    Policy,
    PolicyEgress,
    Proxy,
    ResolvedEgress,
    Shared,
)
from enforcer.config.schema import schema

__all__ = [
    "SHARED",
    "Configuration",
    "EgressIP",
    "Interfaces",
    "Limits",
    "Location",
    "Policy",
    "PolicyEgress",
    "Proxy",
    "ResolvedEgress",
    "Shared",
    "load",
    "schema",
]
