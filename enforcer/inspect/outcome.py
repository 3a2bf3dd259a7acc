"""Completes a program's verdict: the final reason after routing and nftables, and the missing address."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from enforcer.address import IPAddress, pack
from enforcer.kernel import routes

Config = Mapping[str, Any]


def in_the_end(config: Config, reason: str, destination: IPAddress) -> str:
    """The final reason's name for a packet to which the program gives ``reason``.

    The program gives `local` to all packets that the kernel does not forward: to the gateway's own addresses,
    where the nftables table drops those to egress IPs, and to destinations without a route.
    """
    if reason != "local" or destination.is_multicast:
        return reason
    family = f"ipv{destination.version}"
    if any(destination in ip_network(entry[family]) for entry in _ours(config)):
        return "unsolicited"
    return reason if routes.interfaces_to([pack(destination)]) != [None] else "unrouted"


def missing(config: Config, policy: str | None, version: int) -> tuple[str | None, str]:
    """(egress IP, cause) of a connection that is refused as unavailable.

    The cause includes the fallback's. The policy may have been removed since the program ran.
    """
    family = f"ipv{version}"
    if policy is None:
        return None, f"no policy matches, and no egress IP of the nearest location has its IPv{version} here"
    wanted = next((each["egress"] for each in config["policies"] if each["name"] == policy), None)
    named = next((each for each in config["egress_ips"] if each["name"] == wanted), None)
    if named is not None:
        return named["name"], _cause(config, named, family)
    if not isinstance(wanted, Mapping):
        return None, f"the configuration has changed meanwhile, and with it policy {policy}"
    # If a policy names one family's address only, the other family uses the same egress IP.
    primary = wanted[family] or wanted["ipv4"] or wanted["ipv6"]
    by_address = {address: each for each in config["egress_ips"] for address in (each["ipv4"], each["ipv6"])}
    why = _cause(config, by_address[primary], family)
    fallback = by_address.get(wanted["ipv4_fallback"])
    if fallback is not None:
        why += f"; fallback: {_cause(config, fallback, family)}"
    return by_address[primary]["name"], why


def _cause(config: Config, entry: Mapping[str, Any], family: str) -> str:
    """The cause of an egress IP's unavailability."""
    name, here = entry["name"], config["location"]
    if entry["location"] != here:
        return f"{name} is at {entry['location']}, this gateway at {here}"
    where = "on no interface" if family == "ipv4" else "not among the local routes"
    return f"{entry[family]} of {name} is {where}"


def _ours(config: Config) -> list[Mapping[str, Any]]:
    return [entry for entry in config["egress_ips"] if entry["location"] == config["location"]]
