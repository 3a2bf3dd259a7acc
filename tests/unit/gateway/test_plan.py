"""The order of a plan's operations, over random configurations and states of the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from itertools import takewhile
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plain import PLAIN
from somelinks import some_links

from enforcer.datapath.settings import Settings
from enforcer.gateway.actual import Actual
from enforcer.gateway.desired import Desired, Egress
from enforcer.gateway.forwarding import DEFAULT, FOR_ALL, accept_ra, accept_redirects, forwards
from enforcer.gateway.operations import (
    AddAddress,
    AddRange,
    Attach,
    Detach,
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
from enforcer.gateway.plan import (
    HOOKS,
    plan,
)
from enforcer.kernel.filters import Direction
from enforcer.kernel.links import Link

INTERFACES = ("in0", "in1", "any0", "out0", "out1")
CONNTRACK = ("net/netfilter/nf_conntrack_udp_timeout", "net/netfilter/nf_conntrack_icmp_timeout")
PROGRAMS = tuple(program for _, _, program in HOOKS)
POOL = tuple(
    Egress(
        name=f"e{slot}",
        slot=slot,
        location="here",
        ipv4=IPv4Address("203.0.113.0") + slot,
        ipv6=IPv6Network((f"2001:db8:{slot:x}::", 64)),
        on_link=False,
        here=True,
    )
    for slot in range(1, 5)
)


@st.composite
def wanted(draw: st.DrawFn) -> Desired:
    """A configuration with some egress IPs of the pool, here or elsewhere, and some of the interfaces."""
    names = draw(st.permutations(INTERFACES))
    inside = draw(st.integers(1, 3))
    outside = draw(st.integers(1, 2))
    egresses = tuple(
        replace(egress, here=draw(st.booleans()), on_link=draw(st.booleans()))
        for egress in POOL
        if draw(st.booleans())
    )
    return Desired(
        inside=tuple(names[:inside]),
        outside=tuple(names[inside : inside + outside]),
        other=tuple(names[inside + outside :]) if draw(st.booleans()) else (),
        shared4=IPv4Address(draw(st.sampled_from(("198.51.100.1", "198.51.100.2")))),
        shared6=IPv6Address(draw(st.sampled_from(("2001:db8:ffff::1", "2001:db8:ffff::2")))),
        egresses=egresses,
        nearest=(),
        settings=Settings(
            mark_mask=draw(st.sampled_from((0xFFFF, 0xFF0000))),
            limit=draw(st.integers(1, 3)),
            flows_per_client=512,
            unanswered_per_client=draw(st.integers(1, 3)),
            proxy_tcp=draw(st.booleans()),
            proxy_udp=draw(st.booleans()),
        ),
        flows=1024,
        origins=1024,
        fast_path=draw(st.booleans()),
        sysctls={name: draw(st.sampled_from(("60", "65"))) for name in CONNTRACK},
    )


NOTHING_HELD: dict[str, Any] = dict.fromkeys(("held", "ranges", "our_addresses", "our_ranges"), frozenset())


@st.composite
def untouched(draw: st.DrawFn) -> Actual:
    """A kernel without anything of the enforcer, with other addresses, ranges and settings."""
    present = draw(st.lists(st.sampled_from(INTERFACES), unique=True))
    held = {("out0", IPv4Interface("198.51.100.1/24"))} if draw(st.booleans()) else set()
    if draw(st.booleans()):
        held.add(("out0", IPv4Interface("203.0.113.1/32")))
    # The conntrack module may be missing yet.
    settings = dict.fromkeys(CONNTRACK if draw(st.booleans()) else (), ("0", "1", "60"))
    settings |= dict.fromkeys(FOR_ALL.values(), ("0", "1"))
    for name in (*present, DEFAULT):
        settings |= dict.fromkeys((forwards(4, name), forwards(6, name)), ("0", "1"))
        settings |= {accept_ra(name): ("0", "1", "2"), accept_redirects(name): ("0", "1")}
    return Actual(
        links={
            name: Link(name, number, 14, True, 1500, draw(st.booleans()), ())
            for number, name in enumerate([*present, "lo"])
        },
        held=frozenset(held),
        ranges=frozenset({IPv6Network("2001:db8:1::/64")} if draw(st.booleans()) else ()),
        table=None,
        hooks={},
        sysctls={name: draw(st.sampled_from(values)) for name, values in settings.items()},
    )


def carry_out(actual: Actual, operation: Operation, desired: Desired, tables: str) -> Actual:
    """The state of the kernel after one operation."""
    match operation:
        case InstallTable(ruleset=ruleset):
            return replace(actual, table=ruleset.digest())
        case AddAddress(held):
            ours = actual.our_addresses | {held}
            return replace(actual, held=actual.held | {held}, our_addresses=ours)
        case RemoveAddress(held):
            assert held in actual.our_addresses
            ours = actual.our_addresses - {held}
            return replace(actual, held=actual.held - {held}, our_addresses=ours)
        case AddRange(network):
            ranges = actual.our_ranges | {network}
            return replace(actual, ranges=actual.ranges | {network}, our_ranges=ranges)
        case RemoveRange(network):
            assert network in actual.our_ranges
            ranges = actual.our_ranges - {network}
            return replace(actual, ranges=actual.ranges - {network}, our_ranges=ranges)
        case LoadPrograms():
            first = max(actual.programs.values(), default=0) + 1
            return replace(actual, programs={name: first + i for i, name in enumerate(PROGRAMS)})
        case SwitchTables():
            return replace(actual, tables=tables, settings=desired.settings)
        case Attach(interface, direction, program):
            assert interface in actual.links
            made = {(interface, direction): actual.programs[program]}
            return replace(actual, hooks={**actual.hooks, **made})
        case Detach(interface, direction):
            kept = {key: one for key, one in actual.hooks.items() if key != (interface, direction)}
            assert len(kept) == len(actual.hooks) - 1
            return replace(actual, hooks=kept)
        case TakeMulticast(interface):
            link = replace(actual.links[interface], allmulti=True)
            return replace(actual, links={**actual.links, interface: link})
        case SetSysctl(name, value):
            was = {name: actual.sysctls[name], **actual.was} if name in actual.sysctls else actual.was
            return replace(actual, sysctls={**actual.sysctls, name: value}, was=was)
        case EndFlows() | SwitchFastPath():
            return actual
    raise AssertionError(operation)


def apply(actual: Actual, operations: Iterable[Operation], desired: Desired, tables: str) -> Actual:
    """The state of the kernel after all operations."""
    for operation in operations:
        actual = carry_out(actual, operation, desired, tables)
    return actual


@dataclass(frozen=True)
class Change:
    """A change of a gateway: the actual, the applied and the desired state."""

    actual: Actual
    previous: Desired | None
    desired: Desired
    tables: str

    @property
    def operations(self) -> list[Operation]:
        return plan(self.desired, self.actual, self.previous, self.tables)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A first start, a reload, a restart after changes by other software, or an upgrade."""
    actual, desired = draw(untouched()), draw(wanted())
    if draw(st.booleans()):
        return Change(actual, None, desired, "new")
    previous = draw(wanted())
    actual = apply(actual, plan(previous, actual, None, "old"), previous, "old")
    if draw(st.booleans()):  # an upgrade: the pinned programs are of another version
        actual = replace(actual, programs={})
    if draw(st.booleans()):
        actual = replace(actual, table=draw(st.sampled_from((None, ""))))
    if draw(st.booleans()):
        gone = draw(st.sets(st.sampled_from(sorted(actual.hooks)))) if actual.hooks else set()
        kept = {key: one for key, one in actual.hooks.items() if key not in gone}
        actual = replace(actual, hooks=kept)
    if draw(st.booleans()):
        actual = replace(actual, **NOTHING_HELD)
    return Change(actual, previous, desired, draw(st.sampled_from(("old", "new"))))


def positions(operations: list[Operation], *kinds: type[Operation]) -> list[int]:
    return [number for number, operation in enumerate(operations) if isinstance(operation, kinds)]


@given(changes())
def test_what_was_planned_holds(change: Change) -> None:
    """After the operations the kernel is in the desired state, and another plan is empty."""
    after = apply(change.actual, change.operations, change.desired, change.tables)
    assert plan(change.desired, after, change.desired, change.tables) == []
    desired = change.desired
    assert after.table == after.completed(desired.ruleset()).digest()
    held = {interface.ip for _, interface in after.held}
    assert desired.shared6 in held
    if desired.outside[0] in after.links:
        assert {desired.shared4, *(egress.ipv4 for egress in desired.ours)} <= held
    assert after.ranges >= {egress.ipv6 for egress in desired.ours}
    expected = {
        (name, direction): after.programs[program]
        for role, direction, program in HOOKS
        for name in getattr(desired, role)
        if name in after.links
    }
    assert after.hooks == expected
    assert desired.sysctls.items() <= after.sysctls.items()


@given(changes())
def test_the_table_comes_first(change: Change) -> None:
    """The table closes the gateway: unless the former one is intact, it is installed before anything else."""
    operations = change.operations
    tables = positions(operations, InstallTable)
    if tables and tables[0]:
        # The former table is intact and has the slots that are removed.
        assert change.previous is not None
        ruleset = change.actual.completed(change.previous.ruleset())
        assert change.actual.table == ruleset.digest()
    if change.actual.table is None:
        assert isinstance(operations[0], InstallTable)
        assert not operations[0].there


@given(changes())
def test_what_lets_traffic_through_comes_last(change: Change) -> None:
    """Programs of clients' traffic are attached last; forwarding is switched on after everything else."""
    operations = change.operations
    attached = [operation.program for operation in operations if isinstance(operation, Attach)]
    assert attached == sorted(attached, key=PROGRAMS.index)
    assert PROGRAMS[0] == "to_origin"
    assert PROGRAMS[-1] == "from_client"
    switch = positions(operations, SwitchTables)
    last = takewhile(lambda operation: isinstance(operation, SetSysctl), reversed(operations))
    end = len(operations) - len(list(last))
    for number in positions(operations, SetSysctl):
        name, value = cast(SetSysctl, operations[number]).name, cast(SetSysctl, operations[number]).value
        if name in CONNTRACK:  # the maps have the timers too
            assert not switch or number < switch[0]
        elif name.endswith("forward") or (name.endswith("forwarding") and value == "1"):
            assert number >= end
        elif number < end:  # forwarding that is switched off
            assert switch and switch[0] < number
            assert all(number < detached for detached in positions(operations, Detach))
    for number in positions(operations, Attach):
        assert not switch or switch[0] < number
    assert len(switch) <= 1
    load = positions(operations, LoadPrograms)
    assert not load or load[0] < switch[0]


@given(changes())
def test_nothing_is_taken_away_that_is_still_in_use(change: Change) -> None:
    """Until the switch the policies use the former slots, which keep their translations and addresses."""
    operations = change.operations
    switch = positions(operations, SwitchTables)
    assume(change.previous is not None)
    assert change.previous is not None
    same_mask = change.previous.settings.mark_mask == change.desired.settings.mark_mask
    for number in positions(operations, RemoveAddress, RemoveRange, EndFlows, Detach):
        assert not switch or switch[0] < number
    for number in positions(operations, InstallTable):
        operation = operations[number]
        assert isinstance(operation, InstallTable)
        slots = set(operation.ruleset.source4)
        before_switch = bool(switch) and number < switch[0]
        if not before_switch or same_mask:
            assert slots >= {change.desired.settings.mark(slot) for slot in change.desired.by_slot}
        if before_switch:
            assert slots >= {change.previous.settings.mark(slot) for slot in change.previous.by_slot}
    if switch:
        for number in positions(operations, AddAddress, AddRange):
            assert number < switch[0]


@given(changes())
def test_what_is_held_is_guarded(change: Change) -> None:
    """At no step does a service of the gateway answer at an egress address that is held."""
    actual = change.actual
    ruleset = change.previous.ruleset() if change.previous and actual.table else None
    shared = {each.shared4 for each in (change.previous, change.desired) if each is not None}
    for operation in change.operations:
        actual = carry_out(actual, operation, change.desired, change.tables)
        if isinstance(operation, InstallTable):
            ruleset = operation.ruleset
        if ruleset is None or isinstance(operation, LoadPrograms):
            continue
        if change.actual.table != "":
            held = {held[1].ip for held in actual.our_addresses if held[1].version == 4} - shared
            assert ruleset.dedicated4 >= held, operation
            assert ruleset.dedicated6 >= actual.our_ranges, operation


@given(changes(), st.data())
def test_a_plan_that_ends_anywhere_is_healed(change: Change, data: st.DataObject) -> None:
    """Healing restores the former state before the switch, and completes the desired state after it."""
    operations = change.operations
    end = data.draw(st.integers(0, len(operations)))
    done = operations[:end]
    actual = apply(change.actual, done, change.desired, change.tables)
    committed = any(not operation.prepares for operation in done)
    desired, unfinished = (
        (change.desired, change.previous) if committed else (change.previous, change.desired)
    )
    if desired is None:
        desired, unfinished, in_force = change.desired, change.desired, None
    else:
        in_force = desired
    healing = plan(desired, actual, in_force, "healed", unfinished=unfinished)
    after = apply(actual, healing, desired, "healed")
    assert any(isinstance(operation, SwitchTables) for operation in healing)
    assert plan(desired, after, desired, "healed") == []
    assert after.table == after.completed(desired.ruleset()).digest()
    assert after.our_addresses <= {*desired.addresses(), *desired.shared_addresses()}
    assert after.our_ranges <= set(desired.ranges())
    assert {name for name, _ in after.hooks} <= {*desired.inside, *desired.outside}


@given(changes())
def test_only_what_we_added_is_taken_away(change: Change) -> None:
    """Only addresses and ranges that the kernel shows as the enforcer's are removed."""
    for operation in change.operations:
        if isinstance(operation, RemoveAddress):
            assert operation.held in change.actual.our_addresses
        if isinstance(operation, RemoveRange):
            assert operation.network in change.actual.our_ranges


@given(changes())
def test_addresses_that_others_took_away_stay_away_while_keeping(change: Change) -> None:
    """The daemon restores everything else; these egress IPs are unavailable from that moment."""
    after = apply(change.actual, change.operations, change.desired, change.tables)
    lost = replace(after, **NOTHING_HELD, table=None, hooks={})
    operations = plan(change.desired, lost, change.desired, change.tables, restore=())
    assert positions(operations, AddAddress, AddRange, LoadPrograms, SwitchTables) == []
    assert positions(operations, InstallTable) == [0]


@given(changes())
def test_what_went_with_its_link_comes_back_with_it(change: Change) -> None:
    after = apply(change.actual, change.operations, change.desired, change.tables)
    first = change.desired.outside[0]
    lost = replace(after, **NOTHING_HELD)
    operations = plan(change.desired, lost, change.desired, change.tables, restore={first})
    added = {one.held for one in operations if isinstance(one, AddAddress)}
    every = (
        {*change.desired.shared_addresses(), *change.desired.addresses()} if first in after.links else set()
    )
    assert added == {held for held in every if held[0] == first}
    assert positions(operations, AddRange) == []


def test_a_shared_ipv6_address_of_ours_moves_to_lo() -> None:
    """Earlier versions held it on the outside interface: it is added to lo, then removed from there."""
    desired = desired_with(1)
    actual = apply(clean(), plan(desired, clean(), None, "x"), desired, "x")
    lo, out0 = (
        ("lo", IPv6Interface((desired.shared6, 128))),
        ("out0", IPv6Interface((desired.shared6, 128))),
    )
    before = replace(
        actual, held=actual.held - {lo} | {out0}, our_addresses=actual.our_addresses - {lo} | {out0}
    )
    operations = plan(desired, before, desired, "x")
    moved = [one for one in operations if isinstance(one, AddAddress | RemoveAddress)]
    assert moved == [AddAddress(lo), RemoveAddress(out0)]
    # An address of the host itself stays and suffices.
    own = replace(actual, held=actual.held - {lo} | {out0}, our_addresses=actual.our_addresses - {lo})
    assert plan(desired, own, desired, "x") == []


def after_a_rename(actual: Actual, before: str, after: str) -> Actual:
    """A link with another name; its role and its noted settings have the former one."""

    def called(name: str) -> str:
        return after if name == before else name

    def moved(settings: Mapping[str, str]) -> dict[str, str]:
        return {name.replace(f"/{before}/", f"/{after}/"): value for name, value in settings.items()}

    return replace(
        actual,
        links={called(name): replace(link, name=called(name)) for name, link in actual.links.items()},
        held=frozenset((called(name), address) for name, address in actual.held),
        our_addresses=frozenset((called(name), address) for name, address in actual.our_addresses),
        hooks={(called(name), direction): number for (name, direction), number in actual.hooks.items()},
        sysctls=moved(actual.sysctls),
        was=moved(actual.was),
        renamed={after: before},
        noted_as=((after, before),),
    )


def test_a_renamed_link_keeps_its_guard_and_what_is_on_it() -> None:
    desired = desired_with(1)
    actual = apply(clean(), plan(desired, clean(), None, "x"), desired, "x")
    elsewhere = after_a_rename(actual, "out0", "wan0")
    # Only the table is replaced: it drops from wan0 what it dropped from out0.
    assert [type(one) for one in plan(desired, elsewhere, desired, "x", restore=())] == [InstallTable]
    elsewhere = replace(elsewhere, table=elsewhere.completed(desired.ruleset()).digest())
    assert plan(desired, elsewhere, desired, "x", restore=()) == []
    assert [type(one) for one in plan(desired, replace(elsewhere, renamed={}), desired, "x", restore=())] == [
        Detach,
        Detach,
        RemoveAddress,
        RemoveAddress,
    ]


def test_a_renamed_link_gets_new_programs() -> None:
    desired = desired_with(1)
    actual = apply(clean(), plan(desired, clean(), None, "x"), desired, "x")
    elsewhere = after_a_rename(actual, "out0", "wan0")
    elsewhere = replace(elsewhere, table=elsewhere.completed(desired.ruleset()).digest())
    newer = replace(elsewhere, programs={name: number + 100 for name, number in actual.programs.items()})
    attached = [one for one in plan(desired, newer, desired, "x", restore=()) if isinstance(one, Attach)]
    assert {(one.interface, one.program) for one in attached} >= {
        ("wan0", "to_origin"),
        ("wan0", "from_origin"),
    }
    assert not {one.interface for one in attached} - newer.links.keys()


@given(changes(), st.sampled_from(INTERFACES))
def test_a_renamed_link_that_leaves_the_file(change: Change, name: str) -> None:
    """No address or hook stays on it, and the first outside interface gets its addresses."""
    desired = change.desired
    after = apply(change.actual, change.operations, desired, change.tables)
    assume(name in after.links)
    renamed = after_a_rename(after, name, "old0")
    rest = tuple(other for other in INTERFACES if other != name)
    other = replace(desired, inside=rest[:1], outside=rest[1:2], other=())
    done = apply(renamed, plan(other, renamed, desired, "other"), other, "other")
    assert "old0" not in {where for where, _ in (*done.our_addresses, *done.hooks)}
    if rest[1] in done.links:
        assert {interface.ip for _, interface in done.held} >= {each.ipv4 for each in other.ours}
    for family in FOR_ALL:
        if done.forwarding.is_ours(family):
            setting = forwards(family, "old0")
            assert done.sysctls[setting] == done.was.get(setting, done.sysctls[setting])
    assert plan(other, done, other, "other") == []


@given(changes())
def test_an_unchanged_file_ends_no_flow(change: Change) -> None:
    actual = apply(change.actual, change.operations, change.desired, change.tables)
    lost = replace(actual, table=None, hooks={}, programs={}, tables="")
    operations = plan(change.desired, lost, change.desired, change.tables)
    assert positions(operations, EndFlows, RemoveAddress, RemoveRange) == []


@given(changes())
def test_the_fast_path_is_switched_where_the_file_says_otherwise(change: Change) -> None:
    found = [operation.on for operation in change.operations if isinstance(operation, SwitchFastPath)]
    before = change.previous
    different = before is not None and before.fast_path != change.desired.fast_path
    assert found == ([change.desired.fast_path] if different else [])


@pytest.mark.parametrize("on", [True, False])
def test_a_switch_of_the_fast_path_touches_nothing_else(on: bool) -> None:
    before = replace(desired_with(1, 2), fast_path=not on)
    actual = apply(clean(), plan(before, clean(), None, "x"), before, "x")
    operations = plan(replace(before, fast_path=on), actual, before, "x")
    assert [str(operation) for operation in operations] == [f"switch the fast path {'on' if on else 'off'}"]


def desired_with(*slots: int) -> Desired:
    return replace(PLAIN, egresses=tuple(POOL[slot - 1] for slot in slots))


def clean() -> Actual:
    links = some_links("lo", *INTERFACES)
    settings = {**dict.fromkeys(FOR_ALL.values(), "0"), **dict.fromkeys(map(accept_ra, INTERFACES), "1")}
    settings |= dict.fromkeys((forwards(family, name) for family in FOR_ALL for name in INTERFACES), "0")
    settings |= dict.fromkeys(map(accept_redirects, INTERFACES), "1")
    return Actual(links, frozenset(), frozenset(), None, {}, settings)


def test_a_first_start_in_words() -> None:
    assert [str(operation) for operation in plan(desired_with(1), clean(), None, "x")] == [
        "install nftables table inet enforcer (1 egress IPs)",
        "add address 198.51.100.1/32 to out0",
        "add address 2001:db8:ffff::1/128 to lo",
        "add address 203.0.113.1/32 to out0",
        "add local range 2001:db8:1::/64",
        "load BPF programs",
        "switch policies and settings",
        "attach to_origin to out0 egress",
        "attach from_origin to out0 ingress",
        "attach to_client to in0 egress",
        "attach from_client to in0 ingress",
        "set allmulti on out0",
        # Other interfaces continue to accept advertisements too.
        "set net.ipv6.conf.in1.accept_ra = 2",
        "set net.ipv6.conf.any0.accept_ra = 2",
        "set net.ipv6.conf.out0.accept_ra = 2",
        "set net.ipv6.conf.out1.accept_ra = 2",
        "set net.ipv6.conf.all.forwarding = 1",
        "set net.ipv6.conf.in0.forwarding = 1",
        "set net.ipv6.conf.out0.forwarding = 1",
        "set net.ipv4.conf.in0.accept_redirects = 0",
        "set net.ipv4.conf.in0.forwarding = 1",
        "set net.ipv4.conf.out0.accept_redirects = 0",
        "set net.ipv4.conf.out0.forwarding = 1",
    ]


def test_an_exchanged_egress_ip_in_words() -> None:
    before, desired = desired_with(1), desired_with(2)
    actual = apply(clean(), plan(before, clean(), None, "x"), before, "x")
    words = [str(operation) for operation in plan(desired, actual, before, "y")]
    assert words[:-1] == [
        "replace nftables table inet enforcer (2 egress IPs)",
        "add address 203.0.113.2/32 to out0",
        "add local range 2001:db8:2::/64",
        "switch policies and settings",
        "remove address 203.0.113.1/32 from out0",
        "remove local range 2001:db8:1::/64",
        "end the connections of e1",
    ]
    # Last, so that no service answers at the address while it is held.
    assert words[-1] == "replace nftables table inet enforcer (1 egress IPs)"


def test_a_new_inside_interface_is_in_the_maps_before_it_has_a_filter() -> None:
    before, desired = desired_with(1), replace(desired_with(1), inside=("in0", "in1"))
    actual = apply(clean(), plan(before, clean(), None, "x"), before, "x")
    operations = plan(desired, actual, before, "x")
    table = operations[0]
    # Its old connections are not translated, so their conntrack entries must be deleted.
    assert isinstance(table, InstallTable)
    assert not table.trusted
    kinds = [type(operation) for operation in operations]
    assert kinds.index(SwitchTables) < kinds.index(Attach)


@pytest.mark.parametrize(
    "change", [{"shared4": IPv4Address("198.51.100.9")}, {"shared6": IPv6Address("2001:db8::9")}]
)
def test_another_shared_address_ends_the_connections_of_the_old_one(change: dict[str, object]) -> None:
    before = desired_with(1)
    desired = replace(before, **change)  # type: ignore[arg-type]
    actual = apply(clean(), plan(before, clean(), None, "x"), before, "x")
    ended = [one for one in plan(desired, actual, before, "x") if isinstance(one, EndFlows)]
    assert [egress.slot for one in ended for egress in one.egresses] == [0]


def test_an_outside_interface_that_is_another() -> None:
    before, desired = desired_with(1), replace(desired_with(1), outside=("out1",))
    actual = apply(clean(), plan(before, clean(), None, "x"), before, "x")
    operations = plan(desired, actual, before, "x")
    after = apply(actual, operations, desired, "x")
    assert {name for name, _ in after.held} == {"out1", "lo"}
    assert {name for name, _ in after.hooks} == {"in0", "out1"}


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_one_lost_filter_is_one_operation(direction: Direction) -> None:
    desired = desired_with(1)
    actual = apply(clean(), plan(desired, clean(), None, "x"), desired, "x")
    lost = {key: one for key, one in actual.hooks.items() if key != ("out0", direction)}
    (operation,) = plan(desired, replace(actual, hooks=lost), desired, "x")
    assert isinstance(operation, Attach)
    assert (operation.interface, operation.direction) == ("out0", direction)


def test_a_setting_that_somebody_changed_is_one_operation() -> None:
    name = CONNTRACK[0]
    desired = replace(desired_with(1), sysctls={name: "305"})
    actual = apply(clean(), plan(desired, clean(), None, "x"), desired, "x")
    (operation,) = plan(desired, replace(actual, sysctls={**actual.sysctls, name: "30"}), desired, "x")
    assert str(operation) == "set net.netfilter.nf_conntrack_udp_timeout = 305"


def every_operation() -> Iterator[type[Operation]]:
    yield from Operation.__subclasses__()


def test_each_operation_says_what_it_does() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Operation()  # type: ignore[abstract]
    assert all(kind.__str__ is not Operation.__str__ for kind in every_operation())
