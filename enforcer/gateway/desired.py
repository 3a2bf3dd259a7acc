"""The desired state: what a configuration asks of the kernel, as plain values.

It is made from the validated configuration in JSON form, which the state file keeps too: so the daemon does
not load pydantic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from itertools import chain
from types import SimpleNamespace
from typing import Any

from enforcer.datapath.settings import Settings
from enforcer.facts.kernel_facts import FORMAT
from enforcer.gateway import timers
from enforcer.kernel.addresses import LOOPBACK, InterfaceAddress
from enforcer.kernel.nft.ruleset import Dns, Ruleset
from enforcer.policy.nearest import nearest_of

UNANSWERED_PER_CLIENT = 4096
"""Default of `limits.unanswered_per_client`: 17 new flows a second that each expire after 240 s."""


@dataclass(frozen=True)
class Egress:
    """One dedicated egress IP; ``here``: its location is this gateway's."""

    name: str
    slot: int
    location: str
    ipv4: IPv4Address
    ipv6: IPv6Network
    on_link: bool
    here: bool


@dataclass(frozen=True)
class Desired:
    """What the kernel shall hold, except the policies."""

    inside: tuple[str, ...]
    outside: tuple[str, ...]
    shared4: IPv4Address
    shared6: IPv6Address
    egresses: tuple[Egress, ...]
    nearest: tuple[str, ...]
    """Names of the egress IPs at the nearest location that has any."""
    settings: Settings
    flows: int
    origins: int
    dns: Dns = ""
    """Empty: DNS is not inspected. Else what happens to DNS answers while no daemon runs."""
    fast_path: bool = True
    """Whether packets of established flows may bypass routing, conntrack and netfilter."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Sysctls by name, forwarding excepted."""
    any_source: frozenset[str] = frozenset()
    """Inside interfaces without the check of a new flow's source (strict reverse-path filtering)."""
    other: tuple[str, ...] = ()
    """Interfaces by which clients' traffic may leave untranslated."""

    @property
    def listed(self) -> tuple[str, ...]:
        """Inside, outside and other interfaces."""
        return (*self.inside, *self.outside, *self.other)

    def still_listed(self, former: Mapping[str, str]) -> dict[str, str]:
        """Renamed links (former name by present name) of which the former name alone is inside or outside."""
        sides = {*self.inside, *self.outside}
        return {now: before for now, before in former.items() if before in sides and now not in sides}

    @property
    def by_slot(self) -> dict[int, Egress]:
        """The egress IPs that this gateway holds, by slot."""
        return {egress.slot: egress for egress in self.ours}

    @property
    def ours(self) -> tuple[Egress, ...]:
        """The egress IPs that this gateway holds."""
        return tuple(egress for egress in self.egresses if egress.here)

    @property
    def shared(self) -> Egress:
        """The shared addresses as the egress IP of slot 0."""
        return Egress("shared", 0, "", self.shared4, IPv6Network(self.shared6), on_link=False, here=True)

    def addresses(self) -> list[InterfaceAddress]:
        """The IPv4 egress addresses on the first outside interface."""
        first = self.outside[0]
        return [(first, IPv4Interface((egress.ipv4, 32))) for egress in self.ours]

    def shared_addresses(self) -> list[InterfaceAddress]:
        """The shared addresses with the interfaces to which they are added if no interface has them.

        An interface takes an IPv6 address once, whatever its prefix length: on the outside interface ours
        would prevent the host's own, which may be added later at boot (ipv6_add_addr, net/ipv6/addrconf.c).
        """
        first = self.outside[0]
        return [(first, IPv4Interface((self.shared4, 32))), (LOOPBACK, IPv6Interface((self.shared6, 128)))]

    def ranges(self) -> list[IPv6Network]:
        """The IPv6 egress ranges."""
        return [egress.ipv6 for egress in self.ours]

    def ruleset(self) -> Ruleset:
        """The contents of the nftables table."""
        mark = self.settings.mark
        source4 = {mark(0): self.shared4}
        source6 = {mark(0): IPv6Network(self.shared6)}
        for egress in self.ours:
            source4[mark(egress.slot)] = egress.ipv4
            source6[mark(egress.slot)] = egress.ipv6
        return Ruleset(
            mark_mask=self.settings.mark_mask,
            inside=self.inside,
            outside=self.outside,
            source4=source4,
            source6=source6,
            dedicated4=frozenset(egress.ipv4 for egress in self.ours),
            dedicated6=frozenset(egress.ipv6 for egress in self.ours),
            dns=self.dns,
            other=self.other,
        )


def combined(leading: Desired, *others: Desired) -> Desired:
    """A desired state that serves all of these during a transition: every interface, every egress IP.

    All other values are those of ``leading``. A slot means the same egress IP in each state. A state with
    another mark_mask contributes its interfaces only.
    """
    egresses = {egress.slot: egress for egress in leading.egresses}
    for other in others:
        for egress in other.egresses if other.settings.mark_mask == leading.settings.mark_mask else ():
            known = egresses.get(egress.slot, egress)
            here, on_link = known.here or egress.here, known.on_link or egress.on_link
            egresses[egress.slot] = replace(known, here=here, on_link=on_link)
    return replace(
        leading,
        inside=_every(leading.inside, *(other.inside for other in others)),
        outside=_every(leading.outside, *(other.outside for other in others)),
        other=_every(leading.other, *(other.other for other in others)),
        egresses=tuple(egresses.values()),
    )


def _every(*names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def desired(config: dict[str, Any], slots: dict[str, int]) -> Desired:
    """The desired state of a Configuration's JSON form, with the slots by egress IP name."""
    here = config["location"]
    egresses = tuple(
        Egress(
            name=entry["name"],
            slot=slots[entry["name"]],
            location=entry["location"],
            ipv4=IPv4Address(entry["ipv4"]),
            ipv6=IPv6Network(entry["ipv6"]),
            on_link=entry["on_link"],
            here=entry["location"] == here,
        )
        for entry in config["egress_ips"]
    )
    locations = {name: SimpleNamespace(**location) for name, location in config["locations"].items()}
    closest = nearest_of({egress.location for egress in egresses}, here, locations)
    caps = per_client(config["limits"])
    return Desired(
        inside=tuple(config["interfaces"]["inside"]),
        outside=tuple(config["interfaces"]["outside"]),
        shared4=IPv4Address(config["shared"]["ipv4"]),
        shared6=IPv6Address(config["shared"]["ipv6"]),
        egresses=egresses,
        nearest=tuple(sorted(egress.name for egress in egresses if egress.location == closest)),
        settings=Settings(
            mark_mask=config["mark_mask"],
            limit=config["limits"]["connections_per_origin"],
            flows_per_client=caps["flows_per_client"],
            unanswered_per_client=caps["unanswered_per_client"],
            proxy_tcp=config["proxy"]["tcp"],
            proxy_udp=config["proxy"]["udp"],
        ),
        flows=config["limits"]["flows"],
        origins=config["limits"]["origins"],
        dns=_dns(config),
        # A state file of an earlier version lacks these keys.
        fast_path=config.get("fast_path", False),
        sysctls=timers.sysctls(config["timers"]) if "timers" in config else {},
        any_source=any_source(config),
        other=tuple(config["interfaces"].get("other", ())),
    )


def any_source(config: dict[str, Any]) -> frozenset[str]:
    """The inside interfaces whose new flows' sources are not checked."""
    # An earlier version had no such check.
    checked = config.get("check_source", False)
    inside = config["interfaces"]["inside"]
    return frozenset(
        name for name in inside if not (checked.get(name, True) if isinstance(checked, dict) else checked)
    )


def per_client(limits: Mapping[str, int | None]) -> dict[str, int]:
    """The two limits of one client: the file's values, else shares of the flow map."""
    flows = limits["flows"] or 0
    unanswered = min(UNANSWERED_PER_CLIENT, flows // 4)
    return {
        # A host's IPv4 address and its IPv6 /64 are two clients; together they leave a quarter to others.
        "flows_per_client": limits.get("flows_per_client") or flows * 3 // 8,
        "unanswered_per_client": limits.get("unanswered_per_client") or unanswered,
    }


def _dns(config: dict[str, Any]) -> Dns:
    """The DNS mode: DNS is inspected only if an enabled policy contains `net.fqdn.`."""
    for policy in config.get("policies", ()):
        texts = (policy.get(field) or "" for field in ("traffic", "identity", "device_posture"))
        if policy.get("enabled", True) and any("net.fqdn." in text for text in texts):
            return "drop" if config.get("dns", {}).get("when_down") == "drop" else "pass"
    return ""


def last_slot(mark_mask: int) -> int:
    """The highest slot: its mark value, slot + 1, must not be all ones."""
    return mark_mask // (mark_mask & -mark_mask) - 2


def tables_digest(
    config: dict[str, Any], slots: dict[str, int], policies: dict[str, int], database: str = ""
) -> str:
    """Equal for configurations whose policy bank is equal; ``database`` is the digest of the MaxMind DB."""
    parts = [config["policies"], config["lists"], config["private_networks"], config["egress_ips"]]
    parts += [slots, policies, database, FORMAT]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
