"""The models of the configuration file: frozen, with the file's keys as field names.

A model validates its own fields. :func:`enforcer.config.load` checks across entries (two egress IPs with one
address, a policy with the address of no egress IP). The JSON Schema and messages quote the field docstrings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Network
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag

from enforcer.config.fields import (
    UNSPECIFIED,
    Country,
    DedicatedIPv4,
    DedicatedRange6,
    EgressName,
    Expression,
    FallbackIPv4,
    FilePath,
    Flag,
    InterfaceName,
    Latitude,
    ListValue,
    Longitude,
    MarkMask,
    Name,
    NamedEgress,
    PrimaryIPv4,
    PrivateNetwork,
    Range6,
    Resolver,
    Seconds,
    SharedIPv6,
    Title,
)
from enforcer.errors import Fault
from enforcer.policy.lists import MAX_VALUES, NO_LISTS, Lists
from enforcer.policy.tables import MatchTables, compile_tables

SHARED: Final = "shared"
"""Stands for the shared address where an egress IP is named; no egress IP can have this name."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Location(_Model):
    """A data centre."""

    city: Title
    """City, for people and for telling whether egress IPs stand in different ones."""
    country: Country
    """ISO 3166 country code, two capital letters."""
    latitude: Latitude
    """Degrees north."""
    longitude: Longitude
    """Degrees east."""


class Interfaces(_Model):
    """The gateway's sides."""

    inside: Annotated[tuple[InterfaceName, ...], Field(min_length=1)]
    """Where clients' traffic arrives."""
    outside: Annotated[tuple[InterfaceName, ...], Field(min_length=1)]
    """Towards the internet; the first one holds the egress addresses."""
    other: tuple[InterfaceName, ...] = ()
    """Clients' traffic may leave by these unchanged; towards an interface in no list it is dropped."""


class Proxy(_Model):
    """The protocols that policies decide; the others leave from the shared address."""

    tcp: Flag = True
    """Whether TCP is proxied."""
    udp: Flag = False
    """Whether UDP is proxied."""


class Shared(_Model):
    """The default egress."""

    ipv4: DedicatedIPv4
    """Address that shared IPv4 traffic leaves from."""
    ipv6: SharedIPv6
    """Address that shared IPv6 traffic leaves from."""


class EgressIP(_Model):
    """One dedicated egress IP."""

    name: EgressName
    """Its name, unique."""
    location: Name
    """The location that it is assigned to, a key of `locations`."""
    ipv4: DedicatedIPv4
    """Its IPv4 address."""
    ipv6: DedicatedRange6
    """Its IPv6 range."""
    on_link: Flag = False
    """Whether the gateway answers neighbour solicitations for the range (it is not routed to the gateway)."""


class Limits(_Model):
    """Limits and table sizes."""

    connections_per_origin: Annotated[int, Field(strict=True, ge=1, le=64512)] = 40000
    """Concurrent connections per egress address, protocol, origin address and origin port.

    64,512 is the number of source ports from 1024 up.
    """
    flows: Annotated[int, Field(strict=True, ge=1024, le=16777216)] = 262144
    """Maximum number of flows. When the table is full, unanswered and closed flows are removed."""
    origins: Annotated[int, Field(strict=True, ge=1024, le=16777216)] = 262144
    """Maximum number of origins, counted for each egress address."""
    flows_per_client: Annotated[int, Field(strict=True, ge=1, le=16777216)] | None = None
    """Live flows of one client, an IPv4 address or an IPv6 /64; by default three eighths of ``flows``."""
    unanswered_per_client: Annotated[int, Field(strict=True, ge=1, le=16777216)] | None = None
    """Unanswered flows of one client; by default 4,096, or a quarter of ``flows`` if that is less."""


class Timers(_Model):
    """Seconds without a packet after which a connection expires; docs/timers.md gives the reasons."""

    tcp_established: Annotated[int, Seconds(7440, "RFC 5382, REQ-5: 2 hours 4 minutes")] = 7440
    """An established TCP connection, also one that one side has closed."""
    tcp_transitory: Annotated[int, Seconds(240, "RFC 5382, REQ-5: 4 minutes")] = 240
    """A TCP connection that is being opened."""
    tcp_closing: Annotated[int, Seconds(240, "RFC 5382, REQ-5: 4 minutes")] = 240
    """A TCP connection that both sides have closed, until the last acknowledgement."""
    tcp_time_wait: Annotated[int, Seconds(30, "the shortest TIME-WAIT of an origin")] = 60
    """A TCP connection that is closed."""
    tcp_close: Annotated[int, Seconds(10, "a reset may be lost and come again")] = 240
    """A TCP connection after a reset."""
    udp: Annotated[int, Seconds(120, "RFC 4787, REQ-5: 2 minutes")] = 300
    """A UDP flow."""
    icmp: Annotated[int, Seconds(60, "RFC 5508, REQ-2")] = 60
    """An ICMP or ICMPv6 query."""


class GeoIP(_Model):
    """The database of countries and continents."""

    database: FilePath | None = None
    """A MaxMind DB (GeoLite2 or GeoIP2, Country or City), reread when it changes; absent: none is known."""


class Sessions(_Model):
    """The file of clients' sessions; `enforcer session add` sets further ones."""

    file: FilePath | None = None
    """Sessions as JSON, one per line, reread when the file changes; absent: none."""


class DNS(_Model):
    """How the daemon learns hosts from DNS answers, for policies that use net.fqdn.*."""

    resolvers: tuple[Resolver, ...] = ()
    """The resolvers whose answers are learnt from; empty: all."""
    when_down: Literal["pass", "drop"] = "pass"
    """Verdict for answers that cannot be learnt, as while the daemon is down: `pass` or `drop`."""
    grace: Annotated[int, Field(strict=True, ge=0, le=86400)] = 30
    """Seconds added to the TTL of a learnt name."""


NamedList = Annotated[tuple[ListValue, ...], Field(max_length=MAX_VALUES)]
"""The values of one list; the field that a policy compares with the list decides their kind."""


class PolicyEgress(_Model):
    """The egress IP of a policy; at least one of `ipv4` and `ipv6` is given."""

    ipv4: PrimaryIPv4 | None = None
    """IPv4 address of an egress IP; absent: that of the egress IP which owns `ipv6`."""
    ipv4_fallback: FallbackIPv4 | None = None
    """Used for both families while the primary is unavailable: the address of another egress IP, or 0.0.0.0
    for the shared address. Absent: traffic is refused meanwhile."""
    ipv6: Range6 | None = None
    """IPv6 range of an egress IP; absent: that of the egress IP which owns `ipv4`."""


def _egress_kind(value: object) -> str:
    if isinstance(value, dict | PolicyEgress):
        return "egress"
    return "name" if isinstance(value, str) and value != "default" else "default"


class Policy(_Model):
    """One policy: the traffic that it matches, and its egress."""

    name: Title
    """Its name, unique."""
    precedence: Annotated[int, Field(strict=True, ge=0, le=0xFFFFFFFF)]
    """Its rank, unique: the first match in ascending precedence decides."""
    enabled: Flag = True
    """A disabled policy is validated, but not applied."""
    traffic: Expression = ""
    """Expression (docs/policy-language.md); absent: everything."""
    identity: Expression = ""
    """Expression, usually about the client's session; absent: everything."""
    device_posture: Expression = ""
    """Expression, usually about the posture checks that the client passed; absent: everything."""
    egress: Annotated[
        Annotated[Literal["default"], Tag("default")]
        | Annotated[NamedEgress, Tag("name")]
        | Annotated[PolicyEgress, Tag("egress")],
        Discriminator(_egress_kind),
        BeforeValidator(lambda value: "default" if value is None else value),
    ] = "default"
    """`default`, the shared address, or an egress IP: its name, for both families, or its addresses."""


@dataclass(frozen=True, slots=True)
class ResolvedEgress:
    """The egress IPs of a policy, by name."""

    shared: bool
    """The policy says `default`: no primary, no fallback."""
    primary4: str | None = None
    primary6: str | None = None
    fallback: str | None = None
    """Name of an egress IP, ``SHARED``, or None: refuse."""


Owners = dict[IPv4Address | IPv6Network, str]


def owners(egress_ips: Iterable[EgressIP]) -> Owners:
    """Return the name of each egress IP by its address and by its range."""
    names: Owners = {}
    for egress in egress_ips:
        names[egress.ipv4] = egress.name
        names[egress.ipv6] = egress.name
    return names


def resolve(policy: Policy, names: Owners) -> ResolvedEgress:
    """Return a policy's egress IPs by name; KeyError for an address that no egress IP owns.

    If a policy gives one family's address only, the other family uses the same egress IP.
    """
    egress = policy.egress
    if egress == "default":
        return ResolvedEgress(shared=True)
    if isinstance(egress, str):
        return ResolvedEgress(False, egress, egress)
    primary4 = names[egress.ipv4] if egress.ipv4 is not None else None
    primary6 = names[egress.ipv6] if egress.ipv6 is not None else None
    fallback = None
    if egress.ipv4_fallback is not None:
        fallback = SHARED if egress.ipv4_fallback == UNSPECIFIED else names[egress.ipv4_fallback]
    return ResolvedEgress(False, primary4 or primary6, primary6 or primary4, fallback)


class Configuration(_Model):
    """A whole configuration file; its JSON form (``model_dump(mode="json")``) validates again."""

    location: Name
    """This gateway's location: a key of `locations`."""
    interfaces: Interfaces
    """The gateway's sides."""
    proxy: Proxy = Proxy()
    """The protocols that policies decide."""
    locations: Annotated[dict[Name, Location], Field(min_length=1)]
    """The data centres, by name."""
    shared: Shared
    """The default egress."""
    egress_ips: Annotated[tuple[EgressIP, ...], Field(min_length=1)]
    """The dedicated egress IPs of all locations."""
    private_networks: tuple[PrivateNetwork, ...] = ()
    """Destinations reached by tunnel or WAN; traffic to them leaves from the shared address."""
    limits: Limits = Limits()
    """Limits and table sizes."""
    timers: Timers = Timers()
    """Seconds without a packet after which a connection expires."""
    check_source: Flag | dict[str, Flag] = True
    """Whether the route to a new flow's source must lead through the interface of its arrival: for all inside
    interfaces, or by name."""
    fast_path: Flag = True
    """Whether established flows bypass the kernel's routing, conntrack and translation."""
    mark_mask: MarkMask = 0x7FFF0000
    """The bits of the packet mark that the enforcer uses: contiguous, at least 8."""
    lists: dict[Name, NamedList] = {}
    """Values by name, which expressions use as `in $name`."""
    geoip: GeoIP = GeoIP()
    """The database of countries and continents."""
    sessions: Sessions = Sessions()
    """The file of clients' sessions."""
    dns: DNS = DNS()
    """How the daemon learns hosts from DNS answers."""
    policies: tuple[Policy, ...] = ()
    """First match in ascending precedence; no match: the nearest dedicated egress IP."""

    _warnings: tuple[Fault, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Warnings; empty unless the configuration was loaded from a file."""
        return self._warnings

    @cached_property
    def _egress_by_name(self) -> dict[str, EgressIP]:
        return {egress.name: egress for egress in self.egress_ips}

    @cached_property
    def _owners(self) -> Owners:
        return owners(self.egress_ips)

    def egress_ip(self, name: str) -> EgressIP:
        """Return an egress IP by name; KeyError."""
        return self._egress_by_name[name]

    @cached_property
    def named_lists(self) -> Lists:
        """The lists for expressions."""
        return Lists(self.lists) if self.lists else NO_LISTS

    @cached_property
    def tables(self) -> MatchTables:
        """The policies as match tables; TooManyRulesError. Loading a file has compiled them."""
        return compile_tables(self.policies, self.named_lists)

    def ordered_policies(self) -> tuple[Policy, ...]:
        """Return all policies, disabled ones included, in ascending precedence."""
        return tuple(sorted(self.policies, key=lambda policy: policy.precedence))

    def resolve(self, policy: Policy) -> ResolvedEgress:
        """Return a policy's egress IPs by name; KeyError for an address that no egress IP owns."""
        return resolve(policy, self._owners)
