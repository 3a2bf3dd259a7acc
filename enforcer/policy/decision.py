"""Decides a connection by the configuration alone: exempt classes, policies, primary and fallback egress IP.

The order is that of bpf/policy.h. The decision ignores what depends on a running gateway: the limit, removed
addresses, and whether the route leads to an outside interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Protocol

from enforcer.constants import DNS_PORT, ICMP, ICMPV6, TCP, UDP
from enforcer.policy.facts import Connection
from enforcer.policy.language import NO_LISTS, Lists
from enforcer.policy.nearest import Coordinates, nearest_of
from enforcer.policy.reference import decide

SHARED = "shared"
"""Stands for the shared address in place of an egress IP's name."""

REASONS = (
    *("policy", "fallback", "nearest", "default", "fallback-shared"),
    *("dns", "icmp", "tunnel", "tcp-off", "udp-off", "protocol", "unavailable"),
)
"""Names of the reasons (bpf/reasons.h) that a decision can have."""


class Resolved(Protocol):
    """A policy's egress IPs by name; :class:`enforcer.config.ResolvedEgress` is one."""

    @property
    def shared(self) -> bool:
        """The policy says `default`: it has neither primary nor fallback."""

    @property
    def primary4(self) -> str | None: ...

    @property
    def primary6(self) -> str | None: ...

    @property
    def fallback(self) -> str | None:
        """Name of an egress IP, SHARED, or None: refuse."""


class Configured(Protocol):
    """The part of a configuration that decisions use; :class:`enforcer.config.Configuration` is one."""

    @property
    def location(self) -> str:
        """Name of the gateway's location."""

    @property
    def locations(self) -> Mapping[str, Coordinates]:
        """Coordinates by location name."""

    @property
    def egress_ips(self) -> Sequence[Any]:
        """Egress IPs, each with ``name`` and ``location``."""

    @property
    def private_networks(self) -> Sequence[IPv4Network | IPv6Network]:
        """Destinations whose traffic is always shared."""

    @property
    def proxy(self) -> Any:
        """Flags ``tcp`` and ``udp``: policies decide the protocol."""

    @property
    def policies(self) -> Iterable[Any]:
        """Policies in any order."""

    def resolve(self, policy: Any) -> Resolved:
        """Return a policy's egress IPs by name."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The egress of a connection, and the reason."""

    reason: str
    """One of :data:`REASONS`."""
    policy: str | None
    """The deciding policy; None: an exempt class decided, or no policy matched."""
    primary: str | None
    """The policy's egress IP for the connection's family, or SHARED; None if no policy names one."""
    fallback: str | None
    """Used while the primary is unavailable: an egress IP or SHARED; None: the connection is refused."""
    egress: tuple[str, ...]
    """The egress IP, or SHARED; for ``nearest`` one of these egress IPs; empty: the connection is refused."""


Available = Callable[[str], bool]


def decide_all(
    config: Configured, connection: Connection, lists: Lists = NO_LISTS, available: Available | None = None
) -> Decision:
    """Decide a connection. ``available`` returns whether the egress IP of a name can be used.

    By default the egress IPs at the gateway's location are available: a gateway holds no others.
    """
    exempt = _exempt(config, connection)
    if exempt is not None:
        return Decision(exempt, None, SHARED, None, (SHARED,))
    if available is None:
        available = {each.name for each in config.egress_ips if each.location == config.location}.__contains__
    policy = decide(config.policies, connection, lists)
    if policy is None:
        found = tuple(filter(available, nearest_egresses(config)))
        return Decision("nearest" if found else "unavailable", None, None, None, found)
    resolved = config.resolve(policy)
    primary = resolved.primary4 if connection.src.version == 4 else resolved.primary6
    if resolved.shared or primary is None:
        return Decision("default", policy.name, SHARED, None, (SHARED,))
    fallback = resolved.fallback
    egress: tuple[str, ...]
    if available(primary):
        reason, egress = "policy", (primary,)
    elif fallback == SHARED:
        reason, egress = "fallback-shared", (SHARED,)
    elif fallback is not None and available(fallback):
        reason, egress = "fallback", (fallback,)
    else:
        reason, egress = "unavailable", ()
    return Decision(reason, policy.name, primary, fallback, egress)


def _exempt(config: Configured, connection: Connection) -> str | None:
    """Return the reason of the exempt class that the connection belongs to, or None."""
    protocol = connection.protocol
    classes = (
        ("icmp", protocol == (ICMP if connection.src.version == 4 else ICMPV6)),
        ("protocol", protocol not in (TCP, UDP)),
        ("dns", connection.dst_port == DNS_PORT),
        ("tunnel", any(connection.dst in network for network in config.private_networks)),
        ("tcp-off", protocol == TCP and not config.proxy.tcp),
        ("udp-off", protocol == UDP and not config.proxy.udp),
    )
    return next((reason for reason, holds in classes if holds), None)


def nearest_egresses(config: Configured) -> list[str]:
    """Return the egress IPs at the nearest location that has any; each client gets one of them."""
    used = {each.location for each in config.egress_ips}
    closest = nearest_of(used, config.location, config.locations)
    return sorted(each.name for each in config.egress_ips if each.location == closest)
