"""Desired against actual: the operations that make the one of the other. Decides, does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network
from typing import Literal

from enforcer.desired import Desired, Egress
from enforcer.kernel.addresses import Held
from enforcer.kernel.filters import Direction
from enforcer.kernel.links import Link
from enforcer.kernel.ruleset import Ruleset

# What sits where: (role, direction, program). The guard comes first, what lets traffic through last.
HOOKS: tuple[tuple[Literal["inside", "outside"], Direction, str], ...] = (
    ("outside", "egress", "to_origin"),
    ("outside", "ingress", "from_origin"),
    ("inside", "egress", "to_client"),
    ("inside", "ingress", "from_client"),
)


def accept_ra(interface: str) -> str:
    """The setting's name."""
    return f"net/ipv6/conf/{interface}/accept_ra"


FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


@dataclass(frozen=True)
class Actual:
    """What the kernel holds of what we care about."""

    links: Mapping[str, Link]
    held: frozenset[Held]
    ranges: frozenset[IPv6Network]
    table: str | None
    hooks: Mapping[tuple[str, Direction], int]
    """Ids of our programs by interface and direction; 0: attached, but not as it should be."""
    sysctls: Mapping[str, str]
    programs: Mapping[str, int] = field(default_factory=dict)
    """Ids of the pinned programs by name; empty if nothing is loaded, or what is loaded is out of date."""
    tables: str = ""
    """Digest of the policy bank in force."""
    settings: tuple[int, ...] = ()
    """Settings in force, as `settings_of` gives them for the desired ones."""


@dataclass(frozen=True)
class Operation(ABC):
    """One step; `str()` is what `enforcer plan` prints."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class InstallTable(Operation):
    """The nftables table, as a whole in one transaction.

    ``trusted``: what is there is a table of ours, unchanged; connections passed through it translated.
    """

    ruleset: Ruleset
    there: bool
    trusted: bool

    def __str__(self) -> str:
        done = "replace" if self.there else "install"
        return f"{done} nftables table inet enforcer ({len(self.ruleset.source4) - 1} egress IPs)"


@dataclass(frozen=True)
class AddAddress(Operation):
    """An IPv4 egress address or a shared address, on an outside interface."""

    held: Held

    def __str__(self) -> str:
        return f"add address {self.held[1]} to {self.held[0]}"


@dataclass(frozen=True)
class RemoveAddress(Operation):
    """An address that we put there and that the file no longer names."""

    held: Held

    def __str__(self) -> str:
        return f"remove address {self.held[1]} from {self.held[0]}"


@dataclass(frozen=True)
class AddRange(Operation):
    """An IPv6 egress range as a local route."""

    network: IPv6Network

    def __str__(self) -> str:
        return f"add local range {self.network}"


@dataclass(frozen=True)
class RemoveRange(Operation):
    """A range that we put there and that the file no longer names."""

    network: IPv6Network

    def __str__(self) -> str:
        return f"remove local range {self.network}"


@dataclass(frozen=True)
class LoadPrograms(Operation):
    """Compile and load the BPF programs; maps that fit are kept, others are carried over."""

    first: bool

    def __str__(self) -> str:
        return "load BPF programs" if self.first else "upgrade BPF programs"


@dataclass(frozen=True)
class SwitchTables(Operation):
    """Egress IPs, settings and policies into the maps, then the switch."""

    def __str__(self) -> str:
        return "switch policies and settings"


@dataclass(frozen=True)
class Attach(Operation):
    """A program to an interface's hook."""

    interface: str
    direction: Direction
    program: str

    def __str__(self) -> str:
        return f"attach {self.program} to {self.interface} {self.direction}"


@dataclass(frozen=True)
class Detach(Operation):
    """Our program from an interface that no longer has this role."""

    interface: str
    direction: Direction

    def __str__(self) -> str:
        return f"detach from {self.interface} {self.direction}"


@dataclass(frozen=True)
class EndFlows(Operation):
    """The connections of egress IPs that are gone: they can't go on, and must not be counted on."""

    egresses: tuple[Egress, ...]

    def __str__(self) -> str:
        return f"end the connections of {', '.join(egress.name for egress in self.egresses)}"


@dataclass(frozen=True)
class TakeMulticast(Operation):
    """An outside interface receives all multicast: solicitations for an on-link range go to many groups."""

    interface: str

    def __str__(self) -> str:
        return f"set allmulti on {self.interface}"


@dataclass(frozen=True)
class SetSysctl(Operation):
    """A kernel setting."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"set {self.name.replace('/', '.')} = {self.value}"


@dataclass(frozen=True)
class SwitchFastPath(Operation):
    """The fast path on or off: live, and with nothing lost."""

    on: bool

    def __str__(self) -> str:
        return f"switch the fast path {'on' if self.on else 'off'}"


SETTINGS = (
    "mark_mask",
    "mark_shift",
    "limit",
    "flows_per_client",
    "unanswered_per_client",
    "proxy_tcp",
    "proxy_udp",
)
"""The fields of struct settings that the file decides, by the names that ``Desired`` has for them, too."""


def settings_of(desired: Desired) -> tuple[int, ...]:
    """Their values."""
    return tuple(int(getattr(desired, name)) for name in SETTINGS)


def plan(
    desired: Desired, actual: Actual, previous: Desired | None, tables: str, *, restore: bool = True
) -> list[Operation]:
    """The operations, in an order in which nothing leaks and no live flow is lost.

    ``previous`` is what was applied before. ``tables`` is the digest of the desired policy bank. With
    ``restore`` false, addresses that somebody took away stay away (contract: they are unavailable).
    """
    return list(_operations(desired, actual, previous, tables, restore))


def _operations(
    desired: Desired, actual: Actual, previous: Desired | None, tables: str, restore: bool
) -> Iterator[Operation]:
    ruleset = desired.ruleset()
    there = actual.table is not None
    # The table is what closes the gateway, so it comes first. A slot that goes must stay translatable
    # until no policy leads to it: then the table is written twice.
    goes = _going(desired, previous)
    first = _with_going(ruleset, previous) if goes and there and previous else ruleset
    if actual.table != first.digest():
        yield InstallTable(first, there, trusted=bool(actual.table) and not _widens(desired, previous))
    # conntrack has its settings when its table is there: the first one loads it.
    yield from _settings(desired.sysctls, actual)
    if restore:
        yield from _additions(desired, actual, previous)
    if not actual.programs:
        yield LoadPrograms(first=previous is None)
    # Interfaces and addresses are in the maps too, and must be there before a program is attached.
    in_force = actual.tables == tables and actual.settings == settings_of(desired)
    changed = previous is not None and replace(previous, fast_path=desired.fast_path) != desired
    if not actual.programs or not in_force or changed:
        yield SwitchTables()
    yield from _attachments(desired, actual)
    if first != ruleset:
        yield InstallTable(ruleset, there=True, trusted=True)
    if any(egress.on_link for egress in desired.ours):
        for name in desired.outside:
            if name in actual.links and not actual.links[name].allmulti:
                yield TakeMulticast(name)
    yield from _detachments(desired, actual)
    if previous is not None:
        yield from _removals(desired, previous, actual)
        yield from _fast_path(desired, previous)
    forwarding = _settings(FORWARDING, actual)
    if any("ipv6" in operation.name for operation in forwarding):
        # A router drops the default routes that it learnt from advertisements, unless told to keep them
        # (ip-sysctl.rst, accept_ra).
        for name in map(accept_ra, desired.outside):
            if actual.sysctls.get(name) == "1":
                yield SetSysctl(name, "2")
    yield from forwarding


def _settings(wanted: Mapping[str, str], actual: Actual) -> list[SetSysctl]:
    return [SetSysctl(name, value) for name, value in wanted.items() if actual.sysctls.get(name) != value]


def _fast_path(desired: Desired, previous: Desired) -> Iterator[Operation]:
    if previous.fast_path != desired.fast_path:
        yield SwitchFastPath(desired.fast_path)


def _going(desired: Desired, previous: Desired | None) -> bool:
    return previous is not None and bool(previous.by_slot.keys() - desired.by_slot.keys())


def _widens(desired: Desired, previous: Desired | None) -> bool:
    """What becomes inside or outside had connections that nobody translated."""
    return previous is not None and not (
        set(desired.inside) <= set(previous.inside) and set(desired.outside) <= set(previous.outside)
    )


def _with_going(ruleset: Ruleset, previous: Desired) -> Ruleset:
    before = previous.ruleset()
    if before.mark_mask != ruleset.mark_mask:
        return ruleset
    return replace(
        ruleset,
        source4={**before.source4, **ruleset.source4},
        source6={**before.source6, **ruleset.source6},
        dedicated4=before.dedicated4 | ruleset.dedicated4,
        dedicated6=before.dedicated6 | ruleset.dedicated6,
    )


def _additions(desired: Desired, actual: Actual, previous: Desired | None) -> Iterator[Operation]:
    # An address on what is no longer the first outside interface moves: added there, then removed here.
    leaving = set(_leaving(desired, actual, previous))
    addresses = {held[1].ip for held in actual.held if held not in leaving}
    for held in desired.shared_addresses():
        if held[1].ip not in addresses:
            yield AddAddress(held)
    for held in desired.addresses():
        if held[1].ip not in addresses:
            yield AddAddress(held)
    for network in desired.ranges():
        if network not in actual.ranges:
            yield AddRange(network)


def _attachments(desired: Desired, actual: Actual) -> Iterator[Operation]:
    for role, direction, program in HOOKS:
        for name in getattr(desired, role):
            if name not in actual.links:
                continue
            wanted = actual.programs.get(program)
            if wanted is None or actual.hooks.get((name, direction)) != wanted:
                yield Attach(name, direction, program)


def _detachments(desired: Desired, actual: Actual) -> Iterator[Operation]:
    for name, direction in actual.hooks:
        if name not in desired.inside + desired.outside:
            yield Detach(name, direction)


def _leaving(desired: Desired, actual: Actual, previous: Desired | None) -> Iterator[Held]:
    if previous is None:
        return
    keep = {*desired.addresses(), *desired.shared_addresses()}
    for held in [*previous.addresses(), *previous.shared_addresses()]:
        if held not in keep and held in actual.held:
            yield held


def _removals(desired: Desired, previous: Desired, actual: Actual) -> Iterator[Operation]:
    for held in _leaving(desired, actual, previous):
        yield RemoveAddress(held)
    for network in previous.ranges():
        if network not in desired.ranges() and network in actual.ranges:
            yield RemoveRange(network)
    stay = desired.by_slot
    gone = tuple(egress for slot, egress in previous.by_slot.items() if slot not in stay)
    if (previous.shared4, previous.shared6) != (desired.shared4, desired.shared6):
        gone += (previous.shared,)
    if gone:
        yield EndFlows(gone)
