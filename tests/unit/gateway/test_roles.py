"""Rows of the map `interfaces` while other software changes nftables: known values stay."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from plain import PLAIN
from somelinks import some_links

from enforcer.constants.bpf import Role
from enforcer.datapath import syscall
from enforcer.datapath.maps import Map
from enforcer.gateway import attach, roles
from enforcer.kernel import nft_ingress
from enforcer.kernel.nft_ingress import Devices

# The fields of struct interface in bpf/maps.h.
ROW = np.dtype(
    [
        ("role", "<u4"),
        ("mac", "u1", 6),
        ("ethernet", "<u2"),
        ("any_source", "<u4"),
        ("filtered", "<u4"),
        ("unfit", "<u4"),
        ("name", "u1", 16),
    ]
)
LINKS = some_links("lo", "in0", "out0")


class Maps(dict[str, Map]):
    """Maps with only the map `interfaces`."""

    @property
    def interfaces(self) -> Map:
        return self["interfaces"]


@pytest.fixture
def maps() -> Iterator[Maps]:
    try:
        fd = syscall.create_map(syscall.HASH, 4, ROW.itemsize, 8, 0)
    except OSError as error:
        pytest.skip(f"maps cannot be made here: {error}")
    yield Maps(interfaces=Map(fd, np.dtype("<u4"), ROW, "interfaces"))
    os.close(fd)


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[Devices | None]:
    """The results of the next looks at the chains, in order."""
    found: list[Devices | None] = []
    monkeypatch.setattr(nft_ingress, "devices", lambda: found.pop(0))
    monkeypatch.setattr(attach, "others_filter", lambda _: False)
    return found


def filtered(maps: Maps) -> dict[str, bool]:
    return {roles.name_of(row): bool(row["filtered"]) for row in roles.by_index(maps.interfaces).values()}


def test_chains_that_change_while_they_are_read(maps: Maps, chains: list[Devices | None]) -> None:
    chains += [Devices(frozenset({"in0"})), None, Devices(prefixes=("ou",))]
    assert not roles.refresh(maps, PLAIN, LINKS).uncertain
    assert filtered(maps) == {"in0": True, "out0": False}
    assert roles.refresh(maps, PLAIN, LINKS).uncertain
    assert filtered(maps) == {"in0": True, "out0": False}
    assert not roles.refresh(maps, PLAIN, LINKS).uncertain
    assert filtered(maps) == {"in0": False, "out0": True}


def test_a_link_that_appears_meanwhile(maps: Maps, chains: list[Devices | None]) -> None:
    """A new link counts as filtered until the chains are read: the fast path must not bypass filters."""
    chains += [None, Devices()]
    assert roles.refresh(maps, PLAIN, LINKS).uncertain
    assert filtered(maps) == {"in0": True, "out0": True}
    roles.refresh(maps, PLAIN, LINKS)
    assert filtered(maps) == {"in0": False, "out0": False}


# --- former names, in the map of a version that had none there

WITHOUT_NAMES = np.dtype([(name, ROW.fields[name][0]) for name in ROW.names[:-1]])  # type: ignore[index]


@pytest.fixture
def old_map() -> Iterator[Map]:
    try:
        fd = syscall.create_map(syscall.HASH, 4, WITHOUT_NAMES.itemsize, 8, 0)
    except OSError as error:
        pytest.skip(f"maps cannot be made here: {error}")
    yield Map(fd, np.dtype("<u4"), WITHOUT_NAMES, "interfaces")
    os.close(fd)


@pytest.mark.parametrize(
    ("present", "former"),
    [
        ({2: "in0", 3: "out0"}, {}),
        ({2: "in0", 3: "wan0"}, {"wan0": "out0"}),
        ({2: "lan0", 3: "wan0"}, {"lan0": "in0", "wan0": "out0"}),
        ({2: "in0", 3: "wan0", 9: "out0"}, {"wan0": "out0"}),  # another link has the name
        ({2: "out0", 3: "in0"}, {}),  # both names are listed
        ({3: "out0"}, {}),
    ],
)
def test_names_before_the_map_had_them(
    monkeypatch: pytest.MonkeyPatch, maps: Maps, old_map: Map, present: dict[int, str], former: dict[str, str]
) -> None:
    for index, role in ((2, Role.INSIDE), (3, Role.OUTSIDE)):
        row = np.zeros((), dtype=WITHOUT_NAMES)
        row["role"] = role
        old_map.put(index, row)
    found = some_links(**{name: {"index": index} for index, name in present.items()})
    assert roles.former_names(old_map, PLAIN, found) == former
    monkeypatch.setattr(roles, "links", lambda: found)
    roles.carry_over(old_map, maps.interfaces, PLAIN)
    rows = roles.by_index(maps.interfaces)
    assert {found[now].index: before for now, before in former.items()} == {
        index: roles.name_of(row) for index, row in rows.items()
    }
    assert all(row["role"] == {2: Role.INSIDE, 3: Role.OUTSIDE}[index] for index, row in rows.items())
