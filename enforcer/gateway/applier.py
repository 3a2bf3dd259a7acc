"""Executes a plan: its operations in order, each noted in the undo list before it changes anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from enforcer.address import pack
from enforcer.datapath import bpffs, carry, fast_path, lost_pins, programs, settings, sweep
from enforcer.datapath.maps import Maps
from enforcer.errors import KernelError, LostPinError
from enforcer.facts.store import Store
from enforcer.gateway import adoption, attach, availability, roles, undo_list
from enforcer.gateway.desired import Desired, combined
from enforcer.gateway.installed import Installed, layout_of, source_digest
from enforcer.gateway.nat_connections import clients, delete_matching, is_translated_to, is_untranslated
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
from enforcer.gateway.state import OTHER_SIDE, State
from enforcer.kernel import addresses, announce, conntrack, filters, links, nft, sysctl
from enforcer.kernel.addresses import LOOPBACK

if TYPE_CHECKING:
    from enforcer.gateway.bank_switch import BankContents


def apply(
    installed: Installed,
    operations: Iterable[Operation],
    wanted: Desired,
    contents: BankContents | None,
    state: State,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Executes a plan, after which ``state`` is in force. SwitchTables needs ``contents``.

    The state file names at every moment what is in force (the former state until the policies are switched,
    then ``state``) and the plan under way. So the next plan can complete or revert what a killed process has
    left. Raises EnforcerError; the caller then calls :meth:`Installed.revert_to`. ``progress`` is called
    with each step's text before the step.
    """
    operations = list(operations)
    installed.instance.create()
    applier = _Applier(installed, wanted, contents, state, progress)
    applier.begin(operations)
    for kind, group in groupby(operations, key=type):
        some = list(group)
        progress(str(some[0]))
        applier.carry_out(kind, some)
    progress("complete the plan")
    applier.complete()


class _Applier:
    """The execution of one plan; consecutive operations of one type are one call."""

    def __init__(
        self,
        installed: Installed,
        wanted: Desired,
        contents: BankContents | None,
        state: State,
        progress: Callable[[str], None],
    ):
        self.installed = installed
        self.progress = progress
        self.pins = installed.pins
        """Pins of what is in force; after LoadPrograms those of the new load."""
        self.wanted = wanted
        self.contents = contents
        self.state = state
        """The state that the plan puts in force."""
        self.current = State()
        """The content of the state file."""
        self.serving = combined(
            *(each for each in (installed.previous, installed.unfinished, wanted) if each)
        )
        """The union of the states in force, unfinished and wanted: all that packets may meet meanwhile."""
        self.fresh_maps = False
        self.old: Maps | None = None
        """Maps of the former layout, which may hold flows that the new maps lack."""
        self.carried = True
        """Whether the new maps have received the former maps' contents."""

    def begin(self, operations: list[Operation]) -> None:
        """Notes the plan in the state file before its first step."""
        current = State.load(self.installed.instance.state_file) or self.installed.state or State()
        other = current.half_done or self.state.other_side()
        self.current = current
        self._note_plan(operations, other)
        self.state.undo = current.undo
        self.old = self._maps_of(other)
        current.save(self.installed.instance.state_file)

    def _note_plan(self, operations: list[Operation], other: Mapping[str, Any]) -> None:
        self.current.half_done = {
            "since": other.get("since", time.time()),
            "pid": os.getpid(),
            "operations": [str(operation) for operation in operations],
            **{name: other[name] for name in OTHER_SIDE},
        }

    def _maps_of(self, other: Mapping[str, Any]) -> Maps | None:
        """The maps of the plan's other side, if they are other maps and pinned."""
        if self.pins is None or not other["maps"] or other["maps"] == self.current.maps:
            return None
        maps = self.pins.directory / other["maps"]
        return Maps(maps, other["layouts"]) if maps.is_dir() else None

    def commit(self) -> None:
        """Puts the plan's state in force; the former state becomes the side to remove."""
        if self.current is self.state:
            return
        half_done = self.current.half_done
        assert half_done is not None
        if self.installed.unfinished is None:
            half_done |= self.current.other_side()
        self.state.half_done = half_done
        self.installed.save(self.state)
        self.installed.pins = self.pins
        self.current = self.state
        if self.pins is not None:
            self.pins.show_in_force()

    def complete(self) -> None:
        """Ends the plan: commits it, copies late flows, switches the fast path, removes former pins."""
        self.commit()
        self._catch_up()
        self._switch_fast_path()
        if self.pins is not None:
            self.pins.remove_others()
        self.state.undo = undo_list.relisted(self.state.undo, self.wanted.listed, links.links())
        self.state.half_done = None
        self.state.applied = time.time()
        self.installed.save(self.state)

    def _catch_up(self) -> None:
        if self.old is not None:
            with self.old as old, self._maps() as maps:
                carry.catch_up(old, maps)
            self.old = None

    def carry_out(self, kind: type[Operation], operations: list[Any]) -> None:
        """Executes consecutive operations of one type."""
        if not kind.prepares and kind is not SwitchTables:  # SwitchTables commits itself
            self.commit()
        steps: dict[type[Operation], Callable[[list[Any]], None]] = {
            InstallTable: self._install_table,
            AddAddress: self._add_addresses,
            AddRange: self._add_ranges,
            LoadPrograms: self._load,
            SwitchTables: self._switch,
            Attach: self._attach,
            Detach: self._detach,
            DetachUnknown: self._detach,
            TakeMulticast: self._take_multicast,
            RemoveAddress: self._remove_addresses,
            RemoveRange: self._remove_ranges,
            EndFlows: self._end_flows,
            SetSysctl: self._set_sysctls,
            # complete() ends every plan with it.
            SwitchFastPath: lambda _: None,
        }
        steps[kind](operations)

    def _note(self, found: Mapping[str, links.Link], *entries: undo_list.Entry) -> None:
        """Notes in the undo list how to undo the next step."""
        fresh = undo_list.fresh(self.state.undo, entries, found)
        if fresh:
            self.current.undo += fresh  # self.state.undo is the same list
            self.current.save(self.installed.instance.state_file)

    def _install_table(self, operations: list[InstallTable]) -> None:
        nft.apply(operations[-1].ruleset)
        if not operations[0].trusted:
            # conntrack would leave connections that were opened without our rules untranslated to their end.
            local = {pack(interface.ip) for _, interface in addresses.held()}
            delete_matching(lambda entry: is_untranslated(entry) and entry.original.source not in local)

    def _add_addresses(self, operations: list[AddAddress]) -> None:
        addresses.add((operation.held for operation in operations), own={self.wanted.shared4})
        by_interface: dict[str, list[Any]] = {}
        for operation in operations:
            name, address = operation.held
            # Neighbours ask for an address on lo at the first outside interface.
            announced_on = self.wanted.outside[0] if name == LOOPBACK else name
            by_interface.setdefault(announced_on, []).append(address.ip)
        found = links.links()
        for name, taken in by_interface.items():
            # A link that is down reaches no neighbour; LinkWatch reports when it comes up.
            if name in found and found[name].up:
                announce.announce(name, taken)

    def _add_ranges(self, operations: list[AddRange]) -> None:
        addresses.add_ranges(operation.network for operation in operations)

    def _load(self, _: list[LoadPrograms]) -> None:
        installed = self.installed
        assert self.pins is not None  # repin.ensure_reachable has mounted a bpffs
        before = installed.state
        self.state.layout = layout_of(self.wanted)
        old = installed.maps() if before is not None and before.layouts else None
        self.fresh_maps = (
            old is None
            or before is None
            or before.layout != self.state.layout
            or bool(lost_pins.lost_maps(old))
        )
        if self.fresh_maps:
            self.old, self.carried = old, False
        elif old is not None:
            _check_maps(old)
        bpffs.create(self.pins.directory)
        loaded = programs.load(
            self.pins,
            self.wanted.flows,
            self.wanted.origins,
            fresh_maps=self.fresh_maps,
            progress=self.progress,
        )
        self.pins = loaded.pins
        self.state.layouts, self.state.programs = loaded.layouts, source_digest()
        self.state.loaded, self.state.maps = self.pins.loaded, self.pins.shared
        self.state.program_ids = self.pins.program_ids()

    def _maps(self) -> Maps:
        if self.pins is None:
            raise KernelError(
                "the BPF file system is gone", "Mount it: mount -t bpf -o mode=700 bpf /sys/fs/bpf"
            )
        return Maps(self.pins.maps, self.state.layouts)

    def _switch(self, operations: list[SwitchTables]) -> None:
        from enforcer.facts.kernel_facts import refill
        from enforcer.gateway.bank_switch import BankSwitch

        if self.contents is None:
            raise KernelError("the policies are not loaded", "Reload: enforcer reload")
        maps = self._maps()
        availability.write_timeouts(maps)
        current = settings.read(maps)
        bank = 1 - current.bank_number if current.ready else 0
        with Store(self.installed.instance.facts_file) as store:
            fresh = self.fresh_maps or self.old is not None
            switch = BankSwitch(maps, bank, self.contents, store, fresh=fresh)
            # Fast-path entries hold a slot's address: none may be valid while slots change their address.
            # complete() switches the fast path on again.
            fast_path.set_enabled(maps, on=False)
            if not self.carried and self.old is not None:
                with suppress(LostPinError):
                    roles.carry_over(self.old.interfaces, maps.interfaces, self.serving)
            # The former state is served until the switch.
            availability.refresh(maps, self.serving)
            if not self.carried:
                carry.carry_over(self.old, maps, lambda: adoption.adopted(maps, self.wanted))
                self.carried = True
            self.commit()
            try:
                with store.transaction() as transaction:
                    switch.finish(transaction)
                    if fresh:
                        refill(maps, store)
                    settings.write(maps, replace(self.wanted.settings, bank=switch.word, ready=True))
            except BaseException:
                # The store's transaction was rolled back to the former bank; so is the kernel.
                settings.write(maps, current)
                raise
        # From here on the flows of removed slots are refused.
        availability.refresh(maps, self.wanted)
        self.fresh_maps = False

    def _switch_fast_path(self) -> None:
        """Switches the fast path on or off as wanted; invalidates the entries of before the plan."""
        if self.pins is not None and self.state.layouts:
            # While pins are lost, the daemon still executes plans that need none.
            with suppress(LostPinError), self._maps() as maps:
                fast_path.set_enabled(maps, on=self.wanted.fast_path)

    def _attach(self, operations: list[Attach]) -> None:
        found = links.links()
        if self.pins is None:
            return
        for operation in operations:
            if operation.interface not in found:
                continue  # removed meanwhile; an event reports its return
            index = found[operation.interface].index
            if attach.needs_qdisc(index):
                self._note(found, undo_list.done_to("clsact", found[operation.interface]))
                filters.ensure_clsact(index)
            attach.attach(self.pins, index, operation.direction, operation.program)
        self._catch_up()

    def _detach(self, operations: list[Detach]) -> None:
        found = links.links()
        for operation in operations:
            if operation.interface not in found:
                continue
            name, index = operation.interface, found[operation.interface].index
            attach.detach(self.pins, index, operation.direction)
            made = undo_list.of(self.state.undo, "clsact", found[name])
            if made and filters.remove_clsact(index):
                for entry in made:
                    self.state.undo.remove(entry)

    def _take_multicast(self, operations: list[TakeMulticast]) -> None:
        found = links.links()
        for operation in operations:
            if operation.interface not in found:
                continue
            self._note(found, undo_list.done_to("allmulti", found[operation.interface]))
            links.set_allmulti(operation.interface, True)

    def _remove_addresses(self, operations: list[RemoveAddress]) -> None:
        addresses.remove(operation.held for operation in operations)

    def _remove_ranges(self, operations: list[RemoveRange]) -> None:
        addresses.remove_ranges(operation.network for operation in operations)

    def _end_flows(self, operations: list[EndFlows]) -> None:
        gone = [egress for operation in operations for egress in operation.egresses]
        # Connections to an address that another egress IP has received stay.
        ours, stay = availability.AddressSet(gone), availability.AddressSet(self.wanted.ours, self.wanted)

        shared = [egress for egress in gone if egress.slot == self.wanted.shared.slot]

        def forget_gone(flows: Container[conntrack.Tuple] = (), maps: Maps | None = None) -> None:
            delete_matching(
                lambda entry: (
                    entry.original in flows
                    or (is_translated_to(entry, ours) and not is_translated_to(entry, stay))
                ),
                clients(shared, flows, [self.serving], maps),
            )

        if self.pins is None:
            forget_gone()
            return
        with self._maps() as maps:
            slots = {egress.slot for egress in gone}
            forget_gone({conntrack.Tuple.of(key) for key in sweep.flows_of(maps.flows, slots)}, maps)
            sweep.end_flows(maps.flows, self.pins, slots)

    def _set_sysctls(self, operations: list[SetSysctl]) -> None:
        # `down` undoes the list in reverse. Writing a sysctl resets its followers, so it is noted after them.
        names = [
            name for operation in operations for name in [*sysctl.followers(operation.name), operation.name]
        ]
        found, values = links.links(), sysctl.found(names)
        self._note(found, *(undo_list.setting(name, value, found) for name, value in values.items()))
        for operation in operations:
            sysctl.write_alone(operation.name, operation.value)


def _check_maps(maps: Maps) -> None:
    """Compares each pinned map with its description (LayoutError): BCC opens a pinned map unchecked."""
    for name in maps.names():
        getattr(maps, name)
    maps.close()
