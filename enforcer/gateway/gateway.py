"""One gateway's kernel state: read it, change it by a plan's operations, take it all away.

Everything here acts in the network namespace of the calling process.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enforcer import __version__
from enforcer.address import pack
from enforcer.datapath import carry, fast, loss, programs, sweep
from enforcer.datapath import pins as places
from enforcer.datapath.banks import BANK, is_crowded
from enforcer.datapath.maps import Maps
from enforcer.datapath.programs import Pins
from enforcer.errors import BusyError, EnforcerError, KernelError, LostPinError, PrivilegeError
from enforcer.facts.store import Store
from enforcer.gateway import adoption, availability, forwarding, reach, roles, undo
from enforcer.gateway import attach as hooks
from enforcer.gateway.desired import Desired, desired, united
from enforcer.gateway.plan import (
    HOOKS,
    SETTINGS,
    Actual,
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
    settings_of,
)
from enforcer.gateway.state import LOST, OTHER_SIDE, State
from enforcer.instance import Instance, not_installed
from enforcer.kernel import addresses, announce, conntrack, filters, links, nft, sysctl
from enforcer.kernel.addresses import LOOPBACK
from enforcer.kernel.filters import Direction

if TYPE_CHECKING:
    from enforcer.gateway.bank_switch import BankContents

DAEMON_PATIENCE = 15.0
"""Seconds in which a daemon completes what it has under way."""
KILLED_PATIENCE = 5.0


def source_digest() -> str:
    """Digest of the programs' sources, headers included; differs between versions of the kernel side."""
    root = Path(str(files("enforcer.bpf")))
    digest = hashlib.sha256()
    for path in sorted([*root.glob("*.[ch]"), *root.glob("include/**/*.h")]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def layout_of(wanted: Desired) -> str:
    """Digest of the maps that these sources and sizes need."""
    return programs.layout_digest(
        files("enforcer.bpf").joinpath("maps.h").read_text(), wanted.flows, wanted.origins
    )


class Gateway:
    """The gateway of this network namespace, with its state file and its pins."""

    def __init__(self, instance: Instance):
        self.instance = instance
        self.state = State.load(instance.state_file)
        bpffs = places.find_bpffs()
        self.pins = self.pins_at(bpffs) if bpffs else None

    def pins_at(self, bpffs: Path) -> Pins:
        """Where this gateway's programs and maps in force are pinned in a bpffs."""
        state = self.state or State()
        return Pins(places.directory(bpffs, self.instance.cookie), state.loaded, state.maps)

    @property
    def previous(self) -> Desired | None:
        """What is in force, or None."""
        return desired(self.state.config, self.state.slots) if self.state and self.state.config else None

    @property
    def left(self) -> Desired | None:
        """The other side of a plan that was not completed, or None."""
        half_done = self.state.half_done if self.state else None
        return desired(half_done["config"], half_done["slots"]) if half_done and half_done["config"] else None

    def is_current(self) -> bool:
        """Whether what is known here is in force, and no other process has left a plan half done."""
        current, known = State.load(self.instance.state_file), self.state
        if current is None or known is None:
            return current is known
        half_done = current.half_done
        return current.applied == known.applied and (half_done is None or half_done["pid"] == os.getpid())

    def maps(self) -> Maps:
        """The maps in force. Raises NotInstalledError; LostPinError when one is opened that isn't there."""
        if self.state is None or self.pins is None:
            raise not_installed()
        return Maps(self.pins.maps, self.state.layouts)

    def lost(self) -> list[str]:
        """Names of the maps and programs in force whose pins are gone."""
        if self.state is None or self.pins is None or not self.state.layouts:
            return []
        with self.maps() as maps:
            return loss.lost_maps(maps, self.state.layouts) + loss.lost_programs(self.pins)

    def actual(self, wanted: Desired, *, upgrade: bool = True) -> Actual:
        """Reads what the kernel holds; with ``upgrade`` programs from other sources than ours don't count."""
        found = links.links()
        noted = self.state.undo if self.state else []
        # Should two be about one setting, the first says how it was.
        was = {entry["name"]: entry["was"] for entry in reversed(undo.settings(noted, found))}
        return Actual(
            links=found,
            held=frozenset(addresses.held() - addresses.misscoped(own={wanted.shared4})),
            ranges=frozenset(addresses.ranges()),
            our_addresses=frozenset(addresses.held(ours=True)),
            our_ranges=frozenset(addresses.ranges(ours=True)),
            renamed=self.renamed(found),
            table=nft.installed(),
            hooks=self._hooked(found),
            # Interfaces go, and conntrack's settings are not there before it is loaded.
            sysctls=sysctl.found([*wanted.sysctls, *forwarding.settings(wanted, found), *was]),
            was=was,
            noted_as=undo.noted_as(noted, found),
            forgotten=LOST in noted,
            programs=self._program_ids(wanted, upgrade),
            lost=tuple(self.lost()),
            tables=self._tables(),
            settings=self._settings(),
        )

    def renamed(self, found: Mapping[str, links.Link]) -> dict[str, str]:
        """The links that have another name than when they got their role: that name by the present one."""
        if self.previous is None or self.state is None or not self.state.layouts:
            return {}
        try:
            with self.maps() as maps:
                return roles.former_names(maps.interfaces, found)
        except EnforcerError:
            return {}

    def hooked(self, wanted: Desired) -> bool:
        """Whether the pinned programs are where they belong, at the interfaces that are there."""
        found = links.links()
        there = self._hooked({name: found[name] for name in wanted.inside + wanted.outside if name in found})
        ids = self.pins.program_ids() if self.pins is not None else {}
        return all(
            there.get((name, direction)) == ids.get(program)
            for role, direction, program in HOOKS
            for name in getattr(wanted, role)
            if name in found
        )

    def _hooked(self, found: Mapping[str, links.Link]) -> dict[tuple[str, Direction], int]:
        names = {link.index: name for name, link in found.items()}
        programs = hooks.attached(self.pins, names)
        return {(names[index], direction): program for (index, direction), program in programs.items()}

    def _program_ids(self, wanted: Desired, upgrade: bool) -> dict[str, int]:
        state = self.state
        if state is None or self.pins is None:
            return {}
        if upgrade and (state.programs != source_digest() or state.layout != layout_of(wanted)):
            return {}
        return {} if self.lost() else self.pins.program_ids()

    def _tables(self) -> str:
        """The digest of the bank in force; none if it is to be made anew.

        That is when it has no room for clients and hosts that are new, or when the facts are about another.
        """
        if self.state is None or not self.state.tables:
            return ""
        try:
            with self.maps() as maps, Store(self.instance.facts_file, create=False) as store:
                settings = maps.settings.get(0)
                fits = settings is not None and store.bank == int(settings["bank"]) & BANK
                return self.state.tables if fits and not is_crowded(maps) else ""
        except EnforcerError:
            return ""

    def _settings(self) -> tuple[int, ...]:
        if self.state is None or not self.state.layouts:
            return ()
        try:
            with self.maps() as maps:
                row = maps.settings.get(0)
        except EnforcerError:
            return ()
        if row is None or not row["ready"] or not set(SETTINGS) <= set(row.dtype.names or ()):
            return ()  # an earlier version has fewer
        return tuple(int(row[name]) for name in SETTINGS)

    def apply(
        self,
        operations: Iterable[Operation],
        wanted: Desired,
        contents: BankContents | None,
        state: State,
        *,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Carries out a plan, after which ``state`` is in force; ``contents`` is needed by SwitchTables.

        The state file says what is in force at every moment: until the policies are switched what was before,
        from then on ``state``; and that a plan is under way. So a process that is killed here leaves what the
        next plan can complete or take back. Raises EnforcerError; then the caller calls :meth:`take_back`.
        ``progress`` hears of each step before it is taken.
        """
        operations = list(operations)
        self.instance.create()
        applier = _Applier(self, wanted, contents, state, progress)
        applier.begin(operations)
        for kind, group in groupby(operations, key=type):
            some = list(group)
            progress(str(some[0]))
            applier.carry_out(kind, some)
        progress("complete the plan")
        applier.complete()

    def take_back(self, before: State) -> None:
        """Makes ``before`` the state in force again; the kernel is brought to it by another plan."""
        current = State.load(self.instance.state_file) or before
        before.undo, before.half_done = current.undo, current.half_done
        if self.state is not before and current.half_done is not None:
            before.half_done = current.half_done | current.other_side()
        self.save(before)
        if self.pins is not None:
            self.pins = replace(self.pins, loaded=before.loaded, shared=before.maps)

    def _own_addresses(self) -> list[availability.Sources]:
        """The addresses that connections were translated to, with the state lost: those that are held."""
        known = [each for each in (self.previous, self.left) if each is not None]
        if known:
            return [availability.Sources(each.ours, each) for each in known]
        held = [interface.ip for _, interface in addresses.held(ours=True)]
        return [availability.Sources.of(held, addresses.ranges(ours=True))]

    def save(self, state: State) -> None:
        """Makes ``state`` the state in force."""
        state.version = __version__
        state.save(self.instance.state_file)
        self.state = state

    def down(self) -> list[str]:
        """Takes away everything that was ever installed; returns what was done.

        Goes on after a failure, and raises the first one in the end.
        """
        done: list[str] = []
        failures: list[EnforcerError] = []
        state = self.state or State()
        ours = self._own_addresses()
        if self.state is not None:
            what = state.half_done or {"since": time.time(), **State().other_side()}
            state.half_done = what | {"pid": os.getpid(), "operations": ["take everything away"]}
            state.save(self.instance.state_file)

        def step(what: str, act: Any) -> None:
            try:
                if act():
                    done.append(what)
            except EnforcerError as error:
                failures.append(error)
            except OSError as error:
                failures.append(KernelError(f"{what}: {error}"))

        # Forwarding first: where it was off before, nothing can leave by the doors that open next.
        found = links.links()
        for entry in reversed(undo.settings(state.undo, found)):
            step(f"{entry['name'].replace('/', '.')} = {entry['was']}", lambda entry=entry: _put_back(entry))
        for name, link in found.items():
            for direction in ("ingress", "egress"):
                step(
                    f"detached from {name} {direction}",
                    lambda index=link.index, direction=direction: hooks.detach(self.pins, index, direction),
                )
            if undo.of(state.undo, "clsact", link):
                step(f"removed clsact from {name}", lambda index=link.index: filters.remove_clsact(index))
            if undo.of(state.undo, "allmulti", link):
                step(f"unset allmulti on {name}", lambda name=name: links.set_allmulti(name, False))
        step("detached programs whose pins were out of reach", lambda: reach.detach_hidden(self))
        step("removed addresses", lambda: addresses.remove(addresses.held(ours=True)))
        step("removed local ranges", lambda: addresses.remove_ranges(addresses.ranges(ours=True)))
        # The table keeps the gateway's own services silent at these addresses for as long as they are there.
        step("removed nftables table inet enforcer", nft.remove)
        step(
            "forgot translated connections",
            lambda: _forget(lambda entry: any(_is_translated_to(entry, some) for some in ours)),
        )
        if self.pins is not None:
            step("removed programs and maps", self.pins.remove)
        if LOST in state.undo or (self.state is None and done):
            done.append(
                "left: kernel settings (forwarding, too), clsact qdiscs and allmulti as the enforcer set "
                "them; how they were before was in a state file that is lost"
            )
        if failures:
            # The state file stays, for another try.
            raise _together(done, failures)
        self.instance.remove()
        self.state = None
        return done


def _together(done: list[str], failures: list[EnforcerError]) -> EnforcerError:
    """One error of several; it also tells what was done."""
    first = failures[0]
    messages = [*done, *(f"not done: {failure.message}" for failure in failures)]
    error = type(first) if isinstance(first, PrivilegeError) else KernelError
    return error("not all could be taken away\n" + "\n".join(messages), first.hint)


def take_down(instance: Instance) -> list[str]:
    """Ends the daemon, if one runs, and takes everything away; returns what was done.

    A daemon that does not end and a process that does not go on with changing the gateway are killed.
    """
    done = []
    pid = instance.daemon_pid()
    if pid is not None:
        _end(instance, pid)
        done.append(f"ended the daemon (pid {pid})")
    with instance.change_lock(kill=True):
        return done + Gateway(instance).down()


def _end(instance: Instance, pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise PrivilegeError(f"cannot end the daemon (pid {pid})", "Run as root.") from error
    except ProcessLookupError:
        return
    for patience, act in ((DAEMON_PATIENCE, instance.kill_daemon), (KILLED_PATIENCE, None)):
        deadline = time.monotonic() + patience
        while instance.daemon_pid() is not None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
        if act is not None:
            act()
    raise BusyError(
        f"the daemon (pid {pid}) does not end, although it was killed", "See `ps`, then try again."
    )


def _is_untranslated(entry: conntrack.Entry) -> bool:
    return entry.original.source == entry.reply.destination


def _is_translated_to(entry: conntrack.Entry, some: availability.Sources) -> bool:
    """A client's connection, or one that an origin has opened as a helper expected.

    Others translate destinations, too (a published port of a container): such a connection is not ours.
    """
    opened_by_origin = entry.expected and entry.original.destination != entry.reply.source
    if opened_by_origin and entry.original.destination in some:
        return True
    return not _is_untranslated(entry) and entry.reply.destination in some


def _put_back(entry: dict[str, str]) -> bool:
    if sysctl.found([entry["name"]]).get(entry["name"], entry["was"]) == entry["was"]:
        return False
    sysctl.write(entry["name"], entry["was"])
    return True


def _forget(chosen: Any) -> int:
    """Deletes the connections that are chosen from conntrack."""
    return conntrack.delete_entries([entry for entry in conntrack.entries() if chosen(entry)])


class _Applier:
    """The operations of one plan, carried out in order; equal neighbours in one go."""

    def __init__(
        self,
        gateway: Gateway,
        wanted: Desired,
        contents: BankContents | None,
        state: State,
        progress: Callable[[str], None],
    ):
        self.gateway = gateway
        self.progress = progress
        self.pins = gateway.pins
        """Of what is in force, then of what was loaded."""
        self.wanted = wanted
        self.contents = contents
        self.state = state
        """What the plan puts in force."""
        self.current = State()
        """What the state file says."""
        self.serving = united(*(each for each in (gateway.previous, gateway.left, wanted) if each))
        """What is in force, and what else may be there or is about to be."""
        self.fresh_maps = False
        self.old: Maps | None = None
        """Maps of another layout, where flows may be that these don't have."""
        self.carried = True
        """Whether these have all else that is carried over."""

    def begin(self, operations: list[Operation]) -> None:
        """Notes the plan in the state file, before its first step."""
        current = State.load(self.gateway.instance.state_file) or self.gateway.state or State()
        other = current.half_done or self.state.other_side()
        self.current = current
        self._note_plan(operations, other)
        self.state.undo = current.undo
        self.old = self._maps_of(other)
        current.save(self.gateway.instance.state_file)

    def _note_plan(self, operations: list[Operation], other: Mapping[str, Any]) -> None:
        self.current.half_done = {
            "since": other.get("since", time.time()),
            "pid": os.getpid(),
            "operations": [str(operation) for operation in operations],
            **{name: other[name] for name in OTHER_SIDE},
        }

    def _maps_of(self, other: Mapping[str, Any]) -> Maps | None:
        """The other side's maps, if it has others and was attached."""
        if self.pins is None or not other["maps"] or other["maps"] == self.current.maps:
            return None
        maps = self.pins.directory / other["maps"]
        return Maps(maps, other["layouts"]) if maps.is_dir() else None

    def commit(self) -> None:
        """From here on what the plan wants is in force, and what was before is to be taken away."""
        if self.current is self.state:
            return
        half_done = self.current.half_done
        assert half_done is not None
        if self.gateway.left is None:
            half_done |= self.current.other_side()
        self.state.half_done = half_done
        self.gateway.save(self.state)
        self.gateway.pins = self.pins
        self.current = self.state
        if self.pins is not None:
            self.pins.show_in_force()

    def complete(self) -> None:
        """The end of the plan, whatever it consists of."""
        self.commit()
        self._catch_up()
        self._switch_fast_path()
        if self.pins is not None:
            self.pins.remove_others()
        self.state.undo = undo.relisted(self.state.undo, self.wanted.listed, links.links())
        self.state.half_done = None
        self.state.applied = time.time()
        self.gateway.save(self.state)

    def _catch_up(self) -> None:
        if self.old is not None:
            with self.old as old, self._maps() as maps:
                carry.catch_up(old, maps)
            self.old = None

    def carry_out(self, kind: type[Operation], operations: list[Any]) -> None:
        """Operations of one kind."""
        if not kind.prepares and kind is not SwitchTables:  # which does it at its moment
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
            # A plan ends with it, whatever it consists of.
            SwitchFastPath: lambda _: None,
        }
        steps[kind](operations)

    def _note(self, found: Mapping[str, links.Link], *entries: undo.Entry) -> None:
        """Notes how to undo the next step, before it is taken."""
        fresh = undo.fresh(self.state.undo, entries, found)
        if fresh:
            self.current.undo += fresh  # the same list as that of the state to come
            self.current.save(self.gateway.instance.state_file)

    def _install_table(self, operations: list[InstallTable]) -> None:
        nft.apply(operations[-1].ruleset)
        if not operations[0].trusted:
            # Connections from before us, or from while somebody had changed our rules, go untranslated
            # for as long as conntrack remembers them.
            local = {pack(interface.ip) for _, interface in addresses.held()}
            _forget(lambda entry: _is_untranslated(entry) and entry.original.source not in local)

    def _add_addresses(self, operations: list[AddAddress]) -> None:
        addresses.add((operation.held for operation in operations), own={self.wanted.shared4})
        by_interface: dict[str, list[Any]] = {}
        for operation in operations:
            name, address = operation.held
            # What lo holds is asked for at the interface that it is held for.
            announced_on = self.wanted.outside[0] if name == LOOPBACK else name
            by_interface.setdefault(announced_on, []).append(address.ip)
        found = links.links()
        for name, taken in by_interface.items():
            # A link that is down has nobody to tell; its neighbours ask when it is up.
            if name in found and found[name].up:
                announce.announce(name, taken)

    def _add_ranges(self, operations: list[AddRange]) -> None:
        addresses.add_ranges(operation.network for operation in operations)

    def _load(self, _: list[LoadPrograms]) -> None:
        gateway = self.gateway
        assert self.pins is not None  # enforcer/gateway/reach.py
        before = gateway.state
        self.state.layout = layout_of(self.wanted)
        old = gateway.maps() if before is not None and before.layouts else None
        self.fresh_maps = (
            old is None
            or before is None
            or before.layout != self.state.layout
            or bool(loss.lost_maps(old, before.layouts))
        )
        if self.fresh_maps:
            self.old, self.carried = old, False
        elif old is not None:
            _check_maps(old, self.state)
        places.create(self.pins.directory)
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
        from enforcer.facts.inforce import refill
        from enforcer.gateway.bank_switch import BankSwitch

        if self.contents is None:
            raise KernelError("the policies are not loaded", "Reload: enforcer reload")
        maps = self._maps()
        availability.write_timeouts(maps)
        current = maps.settings.get(0)
        bank = 1 - (int(current["bank"]) & BANK) if current is not None and current["ready"] else 0
        with Store(self.gateway.instance.facts_file) as store:
            fresh = self.fresh_maps or self.old is not None
            switch = BankSwitch(maps, bank, self.contents, store, fresh=fresh)
            # A way's address is its slot's: what is learnt must not outlive that. On again when all is done.
            fast.switch(maps, on=False)
            # What is in force until the switch is served until then.
            availability.refresh(maps, self.serving)
            if not self.carried:
                carry.carry_over(self.old, maps, lambda: adoption.adopted(maps, self.wanted))
                self.carried = True
            settings = np.zeros((), dtype=maps.settings.value)
            values = settings_of(self.wanted)
            for name, value in zip(SETTINGS, values, strict=True):
                settings[name] = value
            settings["bank"] = switch.word
            settings["ready"] = 1
            self.commit()
            try:
                with store.change() as change:
                    switch.finish(change)
                    if fresh:
                        refill(maps, store)
                    maps.settings.put(0, settings)
            except BaseException:
                # The store is about the bank before, and so must the kernel be.
                if current is not None:
                    maps.settings.put(0, current)
                raise
        # A slot that goes is refused from here on.
        availability.refresh(maps, self.wanted)
        self.fresh_maps = False

    def _switch_fast_path(self) -> None:
        """On or off, as wanted; what was learnt before these operations is stale."""
        if self.pins is not None and self.state.layouts:
            # A daemon puts back what needs no pins also while they are lost.
            with suppress(LostPinError), self._maps() as maps:
                fast.switch(maps, on=self.wanted.fast_path)

    def _attach(self, operations: list[Attach]) -> None:
        found = links.links()
        if self.pins is None:
            return
        for operation in operations:
            if operation.interface not in found:
                continue  # gone meanwhile; an event tells when it is back
            index = found[operation.interface].index
            if hooks.needs_qdisc(index):
                self._note(found, undo.done_to("clsact", found[operation.interface]))
                filters.ensure_clsact(index)
            hooks.attach(self.pins, index, operation.direction, operation.program)
        self._catch_up()

    def _detach(self, operations: list[Detach]) -> None:
        found = links.links()
        for operation in operations:
            if operation.interface not in found:
                continue
            name, index = operation.interface, found[operation.interface].index
            hooks.detach(self.pins, index, operation.direction)
            made = undo.of(self.state.undo, "clsact", found[name])
            if made and filters.remove_clsact(index):
                for entry in made:
                    self.state.undo.remove(entry)

    def _take_multicast(self, operations: list[TakeMulticast]) -> None:
        found = links.links()
        for operation in operations:
            if operation.interface not in found:
                continue
            self._note(found, undo.done_to("allmulti", found[operation.interface]))
            links.set_allmulti(operation.interface, True)

    def _remove_addresses(self, operations: list[RemoveAddress]) -> None:
        addresses.remove(operation.held for operation in operations)

    def _remove_ranges(self, operations: list[RemoveRange]) -> None:
        addresses.remove_ranges(operation.network for operation in operations)

    def _end_flows(self, operations: list[EndFlows]) -> None:
        gone = [egress for operation in operations for egress in operation.egresses]
        # An address that another egress IP has now is that one's.
        ours, stay = availability.Sources(gone), availability.Sources(self.wanted.ours, self.wanted)

        def forget(theirs: Container[conntrack.Tuple] = ()) -> None:
            _forget(
                lambda entry: (
                    entry.original in theirs
                    or (_is_translated_to(entry, ours) and not _is_translated_to(entry, stay))
                )
            )

        if self.pins is None:
            forget()
            return
        with self._maps() as maps:
            slots = {egress.slot for egress in gone}
            forget({conntrack.Tuple.of(key) for key in sweep.flows_of(maps.flows, slots)})
            sweep.end_flows(maps.flows, self.pins, slots)

    def _set_sysctls(self, operations: list[SetSysctl]) -> None:
        # Undone in reverse: a setting itself resets its followers, so it is noted after them.
        names = [
            name for operation in operations for name in [*sysctl.followers(operation.name), operation.name]
        ]
        found, values = links.links(), sysctl.found(names)
        self._note(found, *(undo.setting(name, value, found) for name, value in values.items()))
        for operation in operations:
            sysctl.write_alone(operation.name, operation.value)


def _check_maps(maps: Maps, state: State) -> None:
    """BCC opens a pinned map without a look at it: so each is compared with its description first."""
    for name in state.layouts:
        if not name.endswith("_inner"):
            getattr(maps, name)
    maps.close()
