"""The configuration file as frozen models, named as the file's keys are.

A model checks its own fields; what concerns several of them (two egress IPs with one address, a policy that
names an address nobody owns) is checked by :func:`enforcer.config.load`.
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
    Switch,
    Title,
)
from enforcer.errors import Fault
from enforcer.policy.lists import MAX_VALUES, NO_LISTS, Lists
from enforcer.policy.tables import MatchTables, compile_tables

SHARED: Final = "shared"
"""The shared address where an egress IP's name could stand; no egress IP may be called so."""


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
    """By which clients' traffic may leave as it is; towards any that is in no list it is dropped."""


class Proxy(_Model):
    """The protocols that policies decide; the others leave from the shared address."""

    tcp: Switch = True
    """Whether TCP is proxied."""
    udp: Switch = False
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
    on_link: Switch = False
    """Whether the gateway answers neighbour solicitations for the range (it is not routed to the gateway)."""


class Limits(_Model):
    """Sizes and ceilings."""

    connections_per_origin: Annotated[int, Field(strict=True, ge=1, le=64512)] = 40000
    """Concurrent connections per egress address, protocol, origin address and origin port.

    64,512 is the number of source ports from 1024 up.
    """
    flows: Annotated[int, Field(strict=True, ge=1024, le=16777216)] = 262144
    """Flows that the gateway can hold. When they are all taken, unanswered and closed ones make room."""
    origins: Annotated[int, Field(strict=True, ge=1024, le=16777216)] = 262144
    """Origins, per egress address, that the gateway can count."""
    flows_per_client: Annotated[int, Field(strict=True, ge=1, le=16777216)] | None = None
    """Live flows of one client, an IPv4 address or an IPv6 /64; by default three eighths of ``flows``."""
    unanswered_per_client: Annotated[int, Field(strict=True, ge=1, le=16777216)] | None = None
    """Those of them without an answer; by default 4,096, or a quarter of ``flows`` if that is less."""


class Timers(_Model):
    """After how many seconds without a packet a connection is forgotten; docs/timers.md says why."""

    tcp_established: Annotated[int, Seconds(7440, "RFC 5382, REQ-5: 2 hours 4 minutes")] = 7440
    """An open TCP connection, also one that one side has closed."""
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
    """Where countries and continents come from."""

    database: FilePath | None = None
    """A MaxMind DB (GeoLite2 or GeoIP2, Country or City), reread when it changes; absent: none is known."""


class Sessions(_Model):
    """Where clients' identities come from, besides `enforcer session add`."""

    file: FilePath | None = None
    """Sessions as JSON, one a line, read again when the file changes; absent: none."""


class DNS(_Model):
    """How hosts are learnt from DNS answers, for policies that ask for net.fqdn.*."""

    resolvers: tuple[Resolver, ...] = ()
    """The resolvers whose answers are learnt from; empty: all."""
    when_down: Literal["pass", "drop"] = "pass"
    """What becomes of answers while nothing learns from them: `pass` (unlearnt) or `drop`."""
    grace: Annotated[int, Field(strict=True, ge=0, le=86400)] = 30
    """Seconds for which a name outlives its answer's TTL."""


NamedList = Annotated[tuple[ListValue, ...], Field(max_length=MAX_VALUES)]
"""The values of one list; of which kind is seen where the list is used."""


class PolicyEgress(_Model):
    """The egress IP of a policy; at least one of `ipv4` and `ipv6` is given."""

    ipv4: PrimaryIPv4 | None = None
    """IPv4 address of an egress IP; absent: that of the egress IP which owns `ipv6`."""
    ipv4_fallback: FallbackIPv4 | None = None
    """Used, for both families, while the primary is unavailable: the address of another egress IP, or 0.0.0.0
    for the shared address. Absent: traffic is then refused."""
    ipv6: Range6 | None = None
    """IPv6 range of an egress IP; absent: that of the egress IP which owns `ipv4`."""


def _egress_kind(value: object) -> str:
    if isinstance(value, dict | PolicyEgress):
        return "egress"
    return "name" if isinstance(value, str) and value != "default" else "default"


class Policy(_Model):
    """One rule: which traffic, and what it leaves from."""

    name: Title
    """Its name, unique."""
    precedence: Annotated[int, Field(strict=True, ge=0, le=0xFFFFFFFF)]
    """Its rank, unique: the first match in ascending precedence decides."""
    enabled: Switch = True
    """A disabled policy is checked and otherwise ignored."""
    traffic: Expression = ""
    """Expression, as docs/policy-language.md describes them; absent: everything."""
    identity: Expression = ""
    """Expression, usually about the client's session; absent: everybody."""
    device_posture: Expression = ""
    """Expression, usually about the posture checks that the client passed; absent: every device."""
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
    """What a policy's traffic leaves from; egress IPs by name."""

    shared: bool
    """The policy says `default`: no primary, no fallback."""
    primary4: str | None = None
    primary6: str | None = None
    fallback: str | None = None
    """Name of an egress IP, ``SHARED``, or None: refuse."""


Owners = dict[IPv4Address | IPv6Network, str]


def owners(egress_ips: Iterable[EgressIP]) -> Owners:
    """Map each egress IP's address and range to its name."""
    names: Owners = {}
    for egress in egress_ips:
        names[egress.ipv4] = egress.name
        names[egress.ipv6] = egress.name
    return names


def resolve(policy: Policy, names: Owners) -> ResolvedEgress:
    """Name a policy's egress IPs; KeyError for an address that no egress IP owns.

    A family whose address the policy leaves out leaves from the other family's egress IP.
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
    """A whole configuration file; as JSON (``model_dump(mode="json")``) it can be read back."""

    location: Name
    """Where this gateway stands: a key of `locations`."""
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
    """Sizes and ceilings."""
    timers: Timers = Timers()
    """After how many seconds without a packet a connection is forgotten."""
    check_source: Switch | dict[str, Switch] = True
    """Whether a new flow's source must lead back to the interface that it came by; for all inside ones, or by
    name."""
    fast_path: Switch = True
    """Whether established flows pass by the kernel's routing, conntrack and translation."""
    mark_mask: MarkMask = 0x7FFF0000
    """The bits of the packet mark that are the enforcer's: contiguous, at least 8."""
    lists: dict[Name, NamedList] = {}
    """Values by name, which expressions use as `in $name`."""
    geoip: GeoIP = GeoIP()
    """Where countries and continents come from."""
    sessions: Sessions = Sessions()
    """Where clients' identities come from."""
    dns: DNS = DNS()
    """How hosts are learnt from DNS answers."""
    policies: tuple[Policy, ...] = ()
    """First match in ascending precedence; no match: the nearest dedicated egress IP."""

    _warnings: tuple[Fault, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """What is allowed and probably not meant; empty unless the configuration was loaded from a file."""
        return self._warnings

    @cached_property
    def _egress_by_name(self) -> dict[str, EgressIP]:
        return {egress.name: egress for egress in self.egress_ips}

    @cached_property
    def _owners(self) -> Owners:
        return owners(self.egress_ips)

    def egress_ip(self, name: str) -> EgressIP:
        """Find an egress IP by name; KeyError."""
        return self._egress_by_name[name]

    @cached_property
    def named_lists(self) -> Lists:
        """The lists for expressions to use."""
        return Lists(self.lists) if self.lists else NO_LISTS

    @cached_property
    def tables(self) -> MatchTables:
        """The policies as match tables; TooManyRulesError (a loaded file's have been made)."""
        return compile_tables(self.policies, self.named_lists)

    def ordered_policies(self) -> tuple[Policy, ...]:
        """All policies, disabled ones too, in ascending precedence."""
        return tuple(sorted(self.policies, key=lambda policy: policy.precedence))

    def resolve(self, policy: Policy) -> ResolvedEgress:
        """Name a policy's egress IPs; KeyError for an address that no egress IP owns."""
        return resolve(policy, self._owners)
