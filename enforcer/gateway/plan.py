"""Plans the operations that lead from the actual to the desired state. Pure: decides, does nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import starmap
from typing import Literal

from enforcer.gateway.actual import Actual
from enforcer.gateway.desired import Desired, Egress, combined
from enforcer.gateway.operations import (
    AddAddress,
    AddRange,
    Attach,
    Detach,
    DetachUnknown,
    EndFlows,
    InstallTable,
    LoadPrograms,
    Operation,
    RemoveAddress,
    RemoveRange,
    SetSysctl,
    SwitchFastPath,
    SwitchTables,
    TakeMulticast,
)
from enforcer.kernel.addresses import LOOPBACK, InterfaceAddress
from enforcer.kernel.filters import Direction
from enforcer.kernel.nft.ruleset import Ruleset

# Program by hook, in the order of attaching: to_origin, which stops leaks, comes first; from_client, which
# lets traffic through, last.
HOOKS: tuple[tuple[Literal["inside", "outside"], Direction, str], ...] = (
    ("outside", "egress", "to_origin"),
    ("outside", "ingress", "from_origin"),
    ("inside", "egress", "to_client"),
    ("inside", "ingress", "from_client"),
)


def plan(
    desired: Desired,
    actual: Actual,
    previous: Desired | None,
    tables: str,
    *,
    unfinished: Desired | None = None,
    restore: Container[str] | None = None,
) -> list[Operation]:
    """The operations, in an order in which nothing leaks and no live flow is lost, wherever execution ends.

    ``previous`` is in force. ``unfinished`` is the other side of an interrupted plan; parts of it may be
    installed. ``tables`` is the digest of the desired policy bank. ``restore`` names the interfaces to which
    missing addresses are added (None: all); addresses missing on other interfaces stay unavailable. State of
    the enforcer that is in the kernel and not desired is removed.
    """
    return list(_operations(desired, actual, previous, tables, unfinished=unfinished, restore=restore))


def _operations(
    desired: Desired,
    actual: Actual,
    previous: Desired | None,
    tables: str,
    *,
    unfinished: Desired | None,
    restore: Container[str] | None,
) -> Iterator[Operation]:
    before = [each for each in (previous, unfinished) if each is not None]
    # The table keeps the gateway closed, so it comes first; it serves the former state too until that is
    # replaced. It drops traffic to removed addresses until the last of them is removed.
    until = actual.completed(_guarded(combined(*(before or [desired]), desired), actual, desired))
    since = actual.completed(_guarded(combined(desired, *before), actual, desired))
    there = actual.table is not None
    yield from _unknown(actual, previous)
    if actual.table != until.digest():
        yield InstallTable(until, there, trusted=bool(actual.table) and not _widens(desired, previous))
    # conntrack's sysctls exist once the nftables table is installed: the first one loads the module.
    yield from _sysctls(desired.sysctls, actual)
    yield from _additions(desired, actual, restore)
    if not actual.programs:
        yield LoadPrograms(first=previous is None, lost=actual.lost)
    # The maps hold interfaces and addresses too and must be filled before a program is attached.
    in_force = actual.tables == tables and actual.settings == desired.settings
    changed = previous is not None and replace(previous, fast_path=desired.fast_path) != desired
    if not actual.programs or not in_force or changed or unfinished is not None:
        yield SwitchTables()
    yield from _tables(until, since)
    yield from _attachments(desired, actual)
    if any(egress.on_link for egress in desired.ours) or _shared_is_apart(desired, actual):
        for name in desired.outside:
            if name in actual.links and not actual.links[name].allmulti:
                yield TakeMulticast(name)
    yield from starmap(SetSysctl, actual.forwarding.switch_off(desired, before, actual.links))
    yield from _detachments(desired, actual, previous)
    yield from _removals(desired, actual)
    yield from _endings(desired, before)
    yield from _tables(since, actual.completed(desired.ruleset()))
    if previous is not None:
        yield from _fast_path(desired, previous)
    yield from starmap(SetSysctl, actual.forwarding.switch_on(desired, actual.links))


def _tables(installed: Ruleset, wanted: Ruleset) -> Iterator[Operation]:
    if installed.digest() != wanted.digest():
        yield InstallTable(wanted, there=True, trusted=True)


def _sysctls(wanted: Mapping[str, str], actual: Actual) -> list[SetSysctl]:
    return [SetSysctl(name, value) for name, value in wanted.items() if actual.sysctls.get(name) != value]


def _fast_path(desired: Desired, previous: Desired) -> Iterator[Operation]:
    if previous.fast_path != desired.fast_path:
        yield SwitchFastPath(desired.fast_path)


def _widens(desired: Desired, previous: Desired | None) -> bool:
    """Whether an interface becomes inside or outside: its connections were not translated before."""
    return previous is not None and not (
        set(desired.inside) <= set(previous.inside) and set(desired.outside) <= set(previous.outside)
    )


def _guarded(serving: Desired, actual: Actual, desired: Desired) -> Ruleset:
    """The ruleset of ``serving`` that also drops unsolicited traffic to addresses being added or removed."""
    ruleset, coming = serving.ruleset(), desired.ruleset()
    shared = {serving.shared4, serving.shared6, desired.shared4, desired.shared6}
    leaving = {held[1].ip for held in _leaving(desired, actual)} - shared
    return replace(
        ruleset,
        dedicated4=ruleset.dedicated4
        | coming.dedicated4
        | {ip for ip in leaving if isinstance(ip, IPv4Address)},
        dedicated6=ruleset.dedicated6
        | coming.dedicated6
        | {IPv6Network(ip) for ip in leaving if isinstance(ip, IPv6Address)}
        | actual.our_ranges,
    )


def _shared_is_apart(desired: Desired, actual: Actual) -> bool:
    """Whether no outside interface holds the shared IPv6 address; the programs then answer solicitations."""
    staying = actual.held.difference(_leaving(desired, actual))
    return not any(name in desired.outside and address.ip == desired.shared6 for name, address in staying)


def _additions(desired: Desired, actual: Actual, restore: Container[str] | None) -> Iterator[Operation]:
    # If another interface becomes the first outside one, addresses are added there, then removed here.
    leaving = set(_leaving(desired, actual))
    addresses = {held[1].ip for held in actual.held if held not in leaving}
    for held in [*desired.shared_addresses(), *desired.addresses()]:
        there = held[0] in actual.links and (restore is None or held[0] in restore)
        if there and held[1].ip not in addresses:
            yield AddAddress(held)
    for network in desired.ranges():
        if network not in actual.ranges and (restore is None or LOOPBACK in restore):
            yield AddRange(network)


def _attachments(desired: Desired, actual: Actual) -> Iterator[Operation]:
    renamed = desired.still_listed(actual.renamed)
    for role, direction, program in HOOKS:
        listed = getattr(desired, role)
        for name in (*listed, *(now for now, before in renamed.items() if before in listed)):
            if name not in actual.links:
                continue
            wanted = actual.programs.get(program)
            if wanted is None or actual.hooks.get((name, direction)) != wanted:
                yield Attach(name, direction, program)


def _unknown(actual: Actual, previous: Desired | None) -> Iterator[Operation]:
    """Programs of ours without a state file: their slot numbers differ from those that will be assigned."""
    if previous is None:
        yield from (DetachUnknown(name, direction) for name, direction in actual.hooks)


def _detachments(desired: Desired, actual: Actual, previous: Desired | None) -> Iterator[Operation]:
    if previous is None:
        return  # _unknown detaches them
    # A renamed link keeps its programs.
    stay = {*desired.inside, *desired.outside, *desired.still_listed(actual.renamed)}
    for name, direction in actual.hooks:
        if name not in stay:
            yield Detach(name, direction)


def _leaving(desired: Desired, actual: Actual) -> list[InterfaceAddress]:
    keep, renamed = {*desired.addresses(), *desired.shared_addresses()}, desired.still_listed(actual.renamed)
    leaving = (held for held in actual.our_addresses if held not in keep and held[0] not in renamed)
    return sorted(leaving, key=lambda held: (held[0], held[1].version, held[1]))


def _removals(desired: Desired, actual: Actual) -> Iterator[Operation]:
    for held in _leaving(desired, actual):
        yield RemoveAddress(held)
    for network in sorted(actual.our_ranges.difference(desired.ranges())):
        yield RemoveRange(network)


def _endings(desired: Desired, before: Iterable[Desired]) -> Iterator[Operation]:
    """Ends the connections of removed egress IPs and of former shared addresses."""
    gone: dict[Egress, None] = {}
    for each in before:
        gone |= {egress: None for slot, egress in each.by_slot.items() if slot not in desired.by_slot}
        if (each.shared4, each.shared6) != (desired.shared4, desired.shared6):
            gone[each.shared] = None
    if gone:
        yield EndFlows(tuple(gone))
