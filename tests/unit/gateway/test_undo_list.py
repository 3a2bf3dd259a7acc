"""The undo list: entries about a link follow it when its name changes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from somelinks import some_links

from enforcer.gateway import undo_list
from enforcer.gateway.undo_list import Entry
from enforcer.kernel.links import Link

BEFORE = some_links("lo", "in0", "out0")


def called(**names: str) -> dict[str, Link]:
    """The links of ``BEFORE``, some renamed; a link with an empty name is removed."""
    links = {names.get(name, name): link for name, link in BEFORE.items()}
    return {name: Link(**(vars(link) | {"name": name})) for name, link in links.items() if name}


def noted(found: Mapping[str, Link] = BEFORE, interface: str = "out0", was: str = "0") -> list[Entry]:
    """Entries of an interface's setting, of a general setting, and of two other changes of a link."""
    settings = (f"net/ipv4/conf/{interface}/forwarding", "net/ipv6/conf/default/forwarding")
    entries = [undo_list.setting(name, was, found) for name in settings]
    return [
        *entries,
        undo_list.done_to("clsact", found[interface]),
        undo_list.done_to("allmulti", found[interface]),
    ]


def names(entries: list[Entry]) -> list[str]:
    return [entry.get("name") or entry["interface"] for entry in entries]


def test_a_renamed_link() -> None:
    entries, found = noted(), called(out0="wan0")
    assert names(undo_list.at_present(entries, found)) == [
        "net/ipv4/conf/wan0/forwarding",
        "net/ipv6/conf/default/forwarding",
        "wan0",
        "wan0",
    ]
    assert undo_list.sysctls(entries, found) == undo_list.at_present(entries, found)[:2]
    assert undo_list.noted_as(entries, found) == (("wan0", "out0"),)
    assert undo_list.of(entries, "clsact", found["wan0"]) == [entries[2]]
    assert undo_list.fresh(entries, noted(found, "wan0", was="1"), found) == []


def test_another_link_under_the_name() -> None:
    """Entries of the first link do not apply to it, and changes of it get new entries."""
    entries, found = noted(), called(out0="wan0", in0="out0")
    assert names(undo_list.at_present(entries, found))[0] == "net/ipv4/conf/wan0/forwarding"
    assert undo_list.of(entries, "clsact", found["out0"]) == []
    more = noted(found)
    assert undo_list.fresh(entries, more, found) == [more[0], more[2], more[3]]


def test_a_link_that_is_gone() -> None:
    """A new link of this name gets new entries."""
    entries, gone = noted(), called(out0="")
    assert names(undo_list.at_present(entries, gone)) == ["net/ipv6/conf/default/forwarding"]
    assert undo_list.relisted(entries, ["out0"], gone) == entries[1:2]
    again = called(out0="", in0="out0")
    more = noted(again)
    assert undo_list.fresh(entries, more, again) == [more[0], more[2], more[3]]


def test_a_name_lasts_while_the_link_may_be_listed_by_it() -> None:
    entries, found = noted(), called(out0="wan0")
    assert undo_list.relisted(entries, ["in0", "out0"], found) == entries
    listed = undo_list.relisted(entries, ["in0", "wan0"], found)
    assert undo_list.noted_as(listed, called(out0="lan0")) == (("lan0", "wan0"),)


def test_what_an_earlier_version_noted_is_known_by_name() -> None:
    entries = [{key: entry[key] for key in entry if key != "index"} for entry in noted()]
    found = called(out0="wan0", in0="out0")
    assert undo_list.at_present(entries, found) == undo_list.relisted(entries, ["out0"], found) == entries
    assert undo_list.fresh(entries, noted(), BEFORE) == []
    assert undo_list.noted_as(entries, found) == ()
    assert undo_list.of(entries, "clsact", found["out0"]) == [entries[2]]
    assert undo_list.of(entries, "clsact", found["wan0"]) == []


@pytest.mark.parametrize(
    ("name", "interface"),
    [
        ("net/ipv4/conf/eth0.5/forwarding", "eth0.5"),
        ("net/ipv6/neigh/eth0/retrans_time_ms", "eth0"),
        ("net/ipv6/conf/all/forwarding", None),
        ("net/ipv6/conf/default/forwarding", None),
        ("net/ipv4/ip_forward", None),
    ],
)
def test_whose_setting_it_is(name: str, interface: str | None) -> None:
    found = some_links("lo", interface or "eth0")
    entry = undo_list.setting(name, "1", found)
    assert entry.get("index") == (str(found[interface].index) if interface else None)
    renamed = {"new0": Link(**(vars(found[interface or "eth0"]) | {"name": "new0"}))}
    expected = name.replace(f"/{interface}/", "/new0/")
    assert names(undo_list.at_present([entry], renamed)) == [expected]
