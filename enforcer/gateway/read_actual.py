"""Reads the actual state of a gateway from the kernel."""

from __future__ import annotations

from collections.abc import Mapping

from enforcer.datapath import settings
from enforcer.datapath.banks import is_crowded
from enforcer.datapath.settings import Settings
from enforcer.errors import EnforcerError
from enforcer.facts.store import Store
from enforcer.gateway import attach, forwarding, roles, undo_list
from enforcer.gateway.actual import Actual
from enforcer.gateway.desired import Desired
from enforcer.gateway.installed import Installed, layout_of, source_digest
from enforcer.gateway.plan import HOOKS
from enforcer.gateway.state import LOST
from enforcer.kernel import addresses, links, nft, sysctl
from enforcer.kernel.filters import Direction


def read_actual(installed: Installed, wanted: Desired, *, upgrade: bool = True) -> Actual:
    """Reads the kernel's state. With ``upgrade``, programs compiled from other sources count as missing."""
    found = links.links()
    noted = installed.state.undo if installed.state else []
    # If two entries name one sysctl, the first has the original value.
    was = {entry["name"]: entry["was"] for entry in reversed(undo_list.sysctls(noted, found))}
    return Actual(
        links=found,
        held=frozenset(addresses.held() - addresses.wrong_scope(own={wanted.shared4})),
        ranges=frozenset(addresses.ranges()),
        our_addresses=frozenset(addresses.held(ours=True)),
        our_ranges=frozenset(addresses.ranges(ours=True)),
        renamed=renamed(installed, found),
        table=nft.installed(),
        hooks=_hooks(installed, found),
        # Some may not exist: interfaces disappear, and conntrack's sysctls come with its module.
        sysctls=sysctl.found([*wanted.sysctls, *forwarding.sysctls(wanted, found), *was]),
        was=was,
        noted_as=undo_list.noted_as(noted, found),
        forgotten=LOST in noted,
        programs=_program_ids(installed, wanted, upgrade),
        lost=tuple(installed.lost()),
        tables=_tables(installed),
        settings=_settings(installed),
    )


def renamed(installed: Installed, found: Mapping[str, links.Link]) -> dict[str, str]:
    """Listed name by present name, for links that were renamed after they got their role."""
    if installed.previous is None or installed.state is None or not installed.state.layouts:
        return {}
    try:
        with installed.maps() as maps:
            return roles.former_names(maps.interfaces, installed.previous, found)
    except EnforcerError:
        return {}


def is_hooked(installed: Installed, wanted: Desired) -> bool:
    """Whether the pinned programs are attached to the interfaces that exist."""
    found = links.links()
    there = _hooks(installed, {name: found[name] for name in wanted.inside + wanted.outside if name in found})
    ids = installed.pins.program_ids() if installed.pins is not None else {}
    return all(
        there.get((name, direction)) == ids.get(program)
        for role, direction, program in HOOKS
        for name in getattr(wanted, role)
        if name in found
    )


def _hooks(installed: Installed, found: Mapping[str, links.Link]) -> dict[tuple[str, Direction], int]:
    names = {link.index: name for name, link in found.items()}
    programs = attach.attached(installed.pins, names)
    return {(names[index], direction): program for (index, direction), program in programs.items()}


def _program_ids(installed: Installed, wanted: Desired, upgrade: bool) -> dict[str, int]:
    state = installed.state
    if state is None or installed.pins is None:
        return {}
    if upgrade and (state.programs != source_digest() or state.layout != layout_of(wanted)):
        return {}
    return {} if installed.lost() else installed.pins.program_ids()


def _tables(installed: Installed) -> str:
    """The digest of the bank in force; empty if the bank has to be rebuilt.

    That is so when it has no room for new clients and hosts, or when the store's facts refer to another bank.
    """
    if installed.state is None or not installed.state.tables:
        return ""
    try:
        with installed.maps() as maps, Store(installed.instance.facts_file, create=False) as store:
            fits = store.bank == settings.read(maps).bank_number
            return installed.state.tables if fits and not is_crowded(maps) else ""
    except EnforcerError:
        return ""


def _settings(installed: Installed) -> Settings | None:
    if installed.state is None or not installed.state.layouts:
        return None
    try:
        with installed.maps() as maps:
            found = settings.read(maps)
    except EnforcerError:
        return None
    return found if found.ready else None
