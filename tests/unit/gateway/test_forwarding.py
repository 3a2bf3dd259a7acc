"""The sysctls of forwarding, the interfaces that the table closes, and sysctls that stay unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from plain import PLAIN

from enforcer.gateway.desired import Desired
from enforcer.gateway.forwarding import (
    DEFAULT,
    FOR_ALL,
    Forwarding,
    accept_ra,
    accept_redirects,
    forwards,
    sysctls,
)

INTERFACES = ("lo", "in0", "in1", "out0", "ra0")
WIDER = replace(PLAIN, other=("in1",))
families = pytest.mark.parametrize("family", [4, 6])


def kernel(*on: str, off: Iterable[str] = ()) -> dict[str, str]:
    """The sysctls' defaults, with ``on`` set to 1 and ``off`` to 0."""
    found = dict.fromkeys(sysctls(WIDER, INTERFACES), "0")
    believed = {name: "1" for name in found if name.endswith(("accept_ra", "accept_redirects"))}
    return found | believed | dict.fromkeys(on, "1") | dict.fromkeys(off, "0")


def everything_on(family: int) -> list[str]:
    return [FOR_ALL[family], *(forwards(family, name) for name in (*INTERFACES, DEFAULT))]


def written(found: Forwarding, steps: Iterable[tuple[str, str]]) -> Forwarding:
    """The sysctls after the steps, each of which must change an existing one."""
    now, was = dict(found.now), dict(found.was)
    for name, value in steps:
        assert now[name] != value
        was.setdefault(name, now[name])
        now[name] = value
    return Forwarding(now, was)


def entered(found: Forwarding, wanted: Desired = PLAIN) -> Forwarding:
    return written(found, found.switch_on(wanted, INTERFACES))


def test_the_listed_interfaces_alone() -> None:
    found = Forwarding(kernel())
    after = entered(found)
    assert {name for name in after.was if "forward" in name} == {
        FOR_ALL[6],
        *(forwards(family, name) for family in (4, 6) for name in ("in0", "out0", "lo")),
    }
    assert list(after.switch_on(PLAIN, INTERFACES)) == []
    assert list(after.switch_off(PLAIN, [PLAIN], INTERFACES)) == []


def test_advertisements_are_believed_before_and_after() -> None:
    """Not on inside interfaces. accept_ra comes first: switching forwarding on removes accepted routes."""
    steps = list(Forwarding(kernel()).switch_on(PLAIN, INTERFACES))
    first = [step for step in steps if step[0].endswith("accept_ra")]
    assert first == [(accept_ra(name), "2") for name in ("in1", "out0", "ra0")]
    assert steps[: len(first)] == first


def test_routers_that_believed_none_believe_none() -> None:
    found = Forwarding(kernel(forwards(6, "ra0"), off=[accept_ra("in1")]))
    names = {name for name, _ in found.switch_on(PLAIN, INTERFACES)}
    assert not names & {accept_ra("ra0"), accept_ra("in1")}


@families
def test_what_was_on_for_all_is_left_alone(family: int) -> None:
    found = Forwarding(kernel(*everything_on(family)))
    assert not [name for name, _ in found.switch_on(PLAIN, INTERFACES) if f"ipv{family}" in name]
    ruleset = found.with_forward_drops(PLAIN.ruleset())
    assert (bool(ruleset.opened4), ruleset.closed6) == (family == 6, family == 4)


@families
def test_an_interface_that_is_made_again(family: int) -> None:
    after = entered(Forwarding(kernel()))
    begun = {forwards(family, "out0"): "0", accept_ra("out0"): "1", accept_redirects("out0"): "1"}
    again = Forwarding({**after.now, **begun}, after.was)
    steps = list(again.switch_on(PLAIN, INTERFACES))
    # accept_ra is written first, also if only IPv4's forwarding flag was reset.
    assert steps.index((forwards(family, "out0"), "1")) > steps.index((accept_ra("out0"), "2"))
    assert written(again, steps).now == after.now
    assert again.with_forward_drops(PLAIN.ruleset()) == after.with_forward_drops(PLAIN.ruleset())


def test_an_interface_that_is_not_there() -> None:
    there = {name: value for name, value in kernel().items() if "/out0/" not in name}
    interfaces = [name for name in INTERFACES if name != "out0"]
    found = Forwarding(there)
    after = written(found, found.switch_on(WIDER, interfaces))
    assert list(after.switch_on(WIDER, interfaces)) == []
    gone = Forwarding({name: value for name, value in after.now.items() if "/in1/" not in name}, after.was)
    assert list(gone.switch_off(PLAIN, [WIDER], [name for name in interfaces if name != "in1"])) == []


def called(found: Forwarding, before: str, after: str) -> Forwarding:
    """The same interface and its sysctls, under another name."""

    def moved(sysctls: Mapping[str, str]) -> dict[str, str]:
        return {name.replace(f"/{before}/", f"/{after}/"): value for name, value in sysctls.items()}

    return replace(found, now=moved(found.now), was=moved(found.was), noted_as=((after, before),))


def test_a_renamed_interface_stays_as_it_is() -> None:
    """It is still an interface of the file: closed in the table, forwarding, accepting advertisements."""
    interfaces = ["wan0" if name == "out0" else name for name in INTERFACES]
    after = called(entered(Forwarding(kernel())), "out0", "wan0")
    assert after.now[accept_ra("wan0")] == "2"
    assert (
        list(after.switch_on(PLAIN, interfaces)) == list(after.switch_off(PLAIN, [PLAIN], interfaces)) == []
    )
    assert after.with_forward_drops(PLAIN.ruleset()).opened4 == ("in0", "out0", "wan0")
    assert after.with_forward_drops(replace(PLAIN, outside=("wan0",)).ruleset()).opened4 == ("in0", "wan0")


def test_a_renamed_interface_that_leaves_the_lists() -> None:
    interfaces = ["old0" if name == "out0" else name for name in INTERFACES]
    after = called(entered(Forwarding(kernel())), "out0", "old0")
    other = replace(PLAIN, outside=("in1",))
    steps = dict(after.switch_off(other, [PLAIN], interfaces))
    assert steps == {forwards(4, "old0"): "0", forwards(6, "old0"): "0", accept_redirects("old0"): "1"}


def test_an_interface_that_leaves_the_lists() -> None:
    after = entered(Forwarding(kernel()), WIDER)
    left = written(after, after.switch_off(PLAIN, [WIDER, PLAIN], INTERFACES))
    assert {name for name in left.now if left.now[name] != after.now[name]} == {
        forwards(4, "in1"),
        forwards(6, "in1"),
        accept_redirects("in1"),
    }
    assert entered(left, WIDER).now == after.now


def test_what_an_administrator_had_on_stays_on() -> None:
    """IPv4 forwarding that was on stays on per interface, and the table does not drop its packets."""
    found = Forwarding(kernel(forwards(4, "in1"), forwards(4, "out0")))
    after = entered(found, WIDER)
    assert list(after.switch_off(PLAIN, [WIDER], INTERFACES)) == [(forwards(6, "in1"), "0")]
    assert after.with_forward_drops(WIDER.ruleset()).opened4 == ("in0",)


def test_an_uplink_that_becomes_an_inside_interface_believes_no_advertisements() -> None:
    after = entered(Forwarding(kernel()))
    inward = replace(PLAIN, inside=("in0", "out0"), outside=("in1",))
    assert (accept_ra("out0"), "1") in list(after.switch_on(inward, INTERFACES))


def test_an_interface_that_others_make_a_routers_believes_no_advertisements() -> None:
    """For example a container bridge: a host behind it must not become the gateway's router."""
    after = entered(Forwarding(kernel()))
    theirs = Forwarding({**after.now, forwards(6, "ra0"): "1"}, after.was)
    assert list(theirs.switch_on(PLAIN, INTERFACES)) == [(accept_ra("ra0"), "1")]
    late = Forwarding({**after.now, forwards(6, "br0"): "1", accept_ra("br0"): "1"}, after.was)
    assert list(late.switch_on(PLAIN, [*INTERFACES, "br0"])) == []


def test_ip_forward_is_others() -> None:
    """Forwarding that another program switched on belongs to that program until it is off again."""
    after = entered(Forwarding(kernel()))
    theirs = Forwarding(after.now | dict.fromkeys(everything_on(4), "1"), after.was)
    assert (
        list(theirs.switch_on(PLAIN, INTERFACES)) == list(theirs.switch_off(PLAIN, [WIDER], INTERFACES)) == []
    )
    assert theirs.with_forward_drops(PLAIN.ruleset()).opened4 == ()
    off = Forwarding(after.now | dict.fromkeys(everything_on(4), "0"), after.was)
    assert entered(off).now == after.now


@families
def test_an_earlier_version_left_everything_on(family: int) -> None:
    on = everything_on(family)
    found = Forwarding(kernel(*on), dict.fromkeys(on, "0"))
    late = replace(found, now={**found.now, forwards(family, "late0"): "1", accept_ra("late0"): "1"})
    interfaces = [*INTERFACES, "late0"]
    after = written(late, late.switch_off(PLAIN, [PLAIN], interfaces))
    kept = {name for name in after.now if name in [*on, forwards(family, "late0")] and after.now[name] == "1"}
    assert kept == {FOR_ALL[family], *(forwards(family, name) for name in ("in0", "out0", "lo"))}
    assert list(after.switch_off(PLAIN, [PLAIN], interfaces)) == []
    ruleset = found.with_forward_drops(PLAIN.ruleset())
    assert ruleset == after.with_forward_drops(PLAIN.ruleset())
    assert ruleset.opened4 == ("in0", "out0")
    assert ruleset.closed6


def test_what_a_bridge_passes_is_not_forwarded() -> None:
    found = Forwarding(kernel(), bridges=("br0", "in1"))
    assert found.with_forward_drops(WIDER.ruleset()).bridged6 == ("br0",)
    assert found.with_forward_drops(PLAIN.ruleset()).bridged6 == ("br0", "in1")
    open_before = replace(found, now=kernel(*everything_on(6)))
    assert open_before.with_forward_drops(PLAIN.ruleset()).bridged6 == ()


def test_a_lost_state_opens_nothing() -> None:
    after = entered(Forwarding(kernel()))
    lost = Forwarding(after.now, {}, forgotten=True)
    assert lost.with_forward_drops(PLAIN.ruleset()) == after.with_forward_drops(PLAIN.ruleset())
    assert list(lost.switch_on(PLAIN, INTERFACES)) == list(lost.switch_off(PLAIN, [PLAIN], INTERFACES)) == []
