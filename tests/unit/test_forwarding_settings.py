"""Which settings forwarding takes, for whom the table is closed, and that others' are left alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from enforcer.desired import Desired
from enforcer.forwarding import (
    BRIDGED6,
    DEFAULT,
    FOR_ALL,
    Forwarding,
    accept_ra,
    accept_redirects,
    forwards,
    settings,
)

INTERFACES = ("lo", "in0", "in1", "out0", "ra0")
WANTED = Desired(
    inside=("in0",),
    outside=("out0",),
    shared4=IPv4Address("198.51.100.1"),
    shared6=IPv6Address("2001:db8:ffff::1"),
    egresses=(),
    nearest=(),
    mark_mask=0xFFFF,
    limit=40000,
    flows_per_client=512,
    unanswered_per_client=256,
    proxy_tcp=True,
    proxy_udp=False,
    flows=1024,
    origins=1024,
)
WIDER = replace(WANTED, other=("in1",))
families = pytest.mark.parametrize("family", [4, 6])


def kernel(*on: str, off: Iterable[str] = ()) -> dict[str, str]:
    """A kernel's settings as it begins, but for these."""
    found = dict.fromkeys(settings(WIDER, INTERFACES), "0")
    believed = {name: "1" for name in found if name.endswith(("accept_ra", "accept_redirects"))}
    return found | believed | dict.fromkeys(on, "1") | dict.fromkeys(off, "0")


def everything_on(family: int) -> list[str]:
    return [FOR_ALL[family], *(forwards(family, name) for name in (*INTERFACES, DEFAULT))]


def written(found: Forwarding, steps: Iterable[tuple[str, str]]) -> Forwarding:
    """What becomes of the settings; each has to be one that is there and another value."""
    now, was = dict(found.now), dict(found.was)
    for name, value in steps:
        assert now[name] != value
        was.setdefault(name, now[name])
        now[name] = value
    return Forwarding(now, was)


def entered(found: Forwarding, wanted: Desired = WANTED) -> Forwarding:
    return written(found, found.enter(wanted, INTERFACES))


def test_the_listed_interfaces_alone() -> None:
    found = Forwarding(kernel())
    after = entered(found)
    assert {name for name in after.was if "forward" in name} == {
        FOR_ALL[6],
        *(forwards(family, name) for family in (4, 6) for name in ("in0", "out0", "lo")),
    }
    assert list(after.enter(WANTED, INTERFACES)) == []
    assert list(after.leave(WANTED, [WANTED], INTERFACES)) == []


def test_advertisements_are_believed_before_and_after() -> None:
    """Except inside. Before anything is switched: the kernel forgets them at that moment."""
    steps = list(Forwarding(kernel()).enter(WANTED, INTERFACES))
    first = [step for step in steps if step[0].endswith("accept_ra")]
    assert first == [(accept_ra(name), "2") for name in ("in1", "out0", "ra0")]
    assert steps[: len(first)] == first


def test_routers_that_believed_none_believe_none() -> None:
    found = Forwarding(kernel(forwards(6, "ra0"), off=[accept_ra("in1")]))
    names = {name for name, _ in found.enter(WANTED, INTERFACES)}
    assert not names & {accept_ra("ra0"), accept_ra("in1")}


@families
def test_what_was_on_for_all_is_left_alone(family: int) -> None:
    found = Forwarding(kernel(*everything_on(family)))
    assert not [name for name, _ in found.enter(WANTED, INTERFACES) if f"ipv{family}" in name]
    ruleset = found.closed(WANTED.ruleset())
    assert (bool(ruleset.opened4), ruleset.closed6) == (family == 6, family == 4)


@families
def test_an_interface_that_is_made_again(family: int) -> None:
    after = entered(Forwarding(kernel()))
    begun = {forwards(family, "out0"): "0", accept_ra("out0"): "1", accept_redirects("out0"): "1"}
    again = Forwarding({**after.now, **begun}, after.was)
    steps = list(again.enter(WANTED, INTERFACES))
    # Both settings of the other family, whose flag it has kept here.
    assert steps.index((forwards(family, "out0"), "1")) > steps.index((accept_ra("out0"), "2"))
    assert written(again, steps).now == after.now
    assert again.closed(WANTED.ruleset()) == after.closed(WANTED.ruleset())


def test_an_interface_that_is_not_there() -> None:
    there = {name: value for name, value in kernel().items() if "/out0/" not in name}
    interfaces = [name for name in INTERFACES if name != "out0"]
    found = Forwarding(there)
    after = written(found, found.enter(WIDER, interfaces))
    assert list(after.enter(WIDER, interfaces)) == []
    gone = Forwarding({name: value for name, value in after.now.items() if "/in1/" not in name}, after.was)
    assert list(gone.leave(WANTED, [WIDER], [name for name in interfaces if name != "in1"])) == []


def test_an_interface_that_leaves_the_lists() -> None:
    after = entered(Forwarding(kernel()), WIDER)
    left = written(after, after.leave(WANTED, [WIDER, WANTED], INTERFACES))
    assert {name for name in left.now if left.now[name] != after.now[name]} == {
        forwards(4, "in1"),
        forwards(6, "in1"),
        accept_redirects("in1"),
    }
    assert entered(left, WIDER).now == after.now


def test_what_an_administrator_had_on_stays_on() -> None:
    """IPv4's per interface. From there it also goes where it went."""
    found = Forwarding(kernel(forwards(4, "in1"), forwards(4, "out0")))
    after = entered(found, WIDER)
    assert list(after.leave(WANTED, [WIDER], INTERFACES)) == [(forwards(6, "in1"), "0")]
    assert after.closed(WIDER.ruleset()).opened4 == ("in0",)


def test_an_uplink_that_becomes_an_inside_interface_believes_no_advertisements() -> None:
    after = entered(Forwarding(kernel()))
    inward = replace(WANTED, inside=("in0", "out0"), outside=("in1",))
    assert (accept_ra("out0"), "1") in list(after.enter(inward, INTERFACES))


def test_an_interface_that_others_make_a_routers_believes_no_advertisements() -> None:
    """A bridge of containers, say: what is behind it must not become the gateway's router."""
    after = entered(Forwarding(kernel()))
    theirs = Forwarding({**after.now, forwards(6, "ra0"): "1"}, after.was)
    assert list(theirs.enter(WANTED, INTERFACES)) == [(accept_ra("ra0"), "1")]
    late = Forwarding({**after.now, forwards(6, "br0"): "1", accept_ra("br0"): "1"}, after.was)
    assert list(late.enter(WANTED, [*INTERFACES, "br0"])) == []


def test_ip_forward_is_others() -> None:
    """Switched on by another program, all of it is that program's until it is off again."""
    after = entered(Forwarding(kernel()))
    theirs = Forwarding(after.now | dict.fromkeys(everything_on(4), "1"), after.was)
    assert list(theirs.enter(WANTED, INTERFACES)) == list(theirs.leave(WANTED, [WIDER], INTERFACES)) == []
    assert theirs.closed(WANTED.ruleset()).opened4 == ()
    off = Forwarding(after.now | dict.fromkeys(everything_on(4), "0"), after.was)
    assert entered(off).now == after.now


@families
def test_an_earlier_version_left_everything_on(family: int) -> None:
    on = everything_on(family)
    found = Forwarding(kernel(*on), dict.fromkeys(on, "0"))
    late = replace(found, now={**found.now, forwards(family, "late0"): "1", accept_ra("late0"): "1"})
    interfaces = [*INTERFACES, "late0"]
    after = written(late, late.leave(WANTED, [WANTED], interfaces))
    kept = {name for name in after.now if name in [*on, forwards(family, "late0")] and after.now[name] == "1"}
    assert kept == {FOR_ALL[family], *(forwards(family, name) for name in ("in0", "out0", "lo"))}
    assert list(after.leave(WANTED, [WANTED], interfaces)) == []
    ruleset = found.closed(WANTED.ruleset())
    assert ruleset == after.closed(WANTED.ruleset())
    assert ruleset.opened4 == ("in0", "out0")
    assert ruleset.closed6


def test_what_a_bridge_passes_is_not_forwarded() -> None:
    found = Forwarding(kernel(BRIDGED6), bridges=("br0", "in1"))
    assert found.closed(WIDER.ruleset()).bridged6 == ("br0",)
    assert found.closed(WANTED.ruleset()).bridged6 == ("br0", "in1")
    for other in (kernel(), kernel(BRIDGED6, *everything_on(6))):
        assert replace(found, now=other).closed(WANTED.ruleset()).bridged6 == ()


def test_a_lost_state_opens_nothing() -> None:
    after = entered(Forwarding(kernel()))
    lost = Forwarding(after.now, {}, forgotten=True)
    assert lost.closed(WANTED.ruleset()) == after.closed(WANTED.ruleset())
    assert list(lost.enter(WANTED, INTERFACES)) == list(lost.leave(WANTED, [WANTED], INTERFACES)) == []
