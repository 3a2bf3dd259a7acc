"""What becomes of a connection by a configuration alone: exempt classes, policies, primary and fallback.

The order is that of bpf/policy.h. What only a live gateway knows is left out: the limit, addresses that were
taken away, traffic that does not leave by an outside interface.
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
"""The shared address, where an egress IP's name could stand."""

REASONS = (
    *("policy", "fallback", "nearest", "default", "fallback-shared"),
    *("dns", "icmp", "tunnel", "tcp-off", "udp-off", "protocol", "unavailable"),
)
"""Names of the reasons (bpf/reasons.h) that a decision can have."""


class Resolved(Protocol):
    """A policy's egress IPs by name; :class:`enforcer.config.ResolvedEgress` is one."""

    @property
    def shared(self) -> bool:
        """Neither primary nor fallback."""

    @property
    def primary4(self) -> str | None:
        """For IPv4."""

    @property
    def primary6(self) -> str | None:
        """For IPv6."""

    @property
    def fallback(self) -> str | None:
        """A name, SHARED, or None: refuse."""


class Configured(Protocol):
    """What is asked of a configuration; :class:`enforcer.config.Configuration` is one."""

    @property
    def location(self) -> str:
        """Where the gateway stands."""

    @property
    def locations(self) -> Mapping[str, Coordinates]:
        """Coordinates by name."""

    @property
    def egress_ips(self) -> Sequence[Any]:
        """Each with a name and a location."""

    @property
    def private_networks(self) -> Sequence[IPv4Network | IPv6Network]:
        """Always shared."""

    @property
    def proxy(self) -> Any:
        """Whether tcp and udp are proxied."""

    @property
    def policies(self) -> Iterable[Any]:
        """In any order."""

    def resolve(self, policy: Any) -> Resolved:
        """Names a policy's egress IPs."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a connection leaves from, and why."""

    reason: str
    """One of :data:`REASONS`."""
    policy: str | None
    """The policy that decided; None: an exempt class did, or none matched."""
    primary: str | None
    """The policy's egress IP for the connection's family, or SHARED; None if no policy names one."""
    fallback: str | None
    """The one that takes over from it, or SHARED; None: traffic is refused without the primary."""
    egress: tuple[str, ...]
    """What it leaves from: an egress IP or SHARED; one of several for ``nearest``; none: it is refused."""


Available = Callable[[str], bool]


def decide_all(
    config: Configured, connection: Connection, lists: Lists = NO_LISTS, available: Available | None = None
) -> Decision:
    """Decide a connection; ``available`` says of an egress IP's name whether it can be used.

    Without it, those at this gateway's location are: a gateway holds no others.
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
    """The class of traffic that no policy is asked about."""
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
    """Name the egress IPs at the location nearest to the gateway that has any; a client gets one of them."""
    used = {each.location for each in config.egress_ips}
    closest = nearest_of(used, config.location, config.locations)
    return sorted(each.name for each in config.egress_ips if each.location == closest)
