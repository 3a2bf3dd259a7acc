"""Which interface has which role, by index: what the programs ask of a packet's interfaces.

The file lists names; the kernel's programs know indexes. A link that was renamed keeps its role, so that what
comes by it is guarded, but nothing that is egress passes it (struct interface.renamed): the nftables table
knows it by the name in the file.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np

from enforcer.datapath.maps import Map
from enforcer.gateway import attach as hooks
from enforcer.gateway.desired import Desired
from enforcer.kernel import ingress
from enforcer.kernel.ingress import Devices
from enforcer.kernel.links import Link, below

INSIDE, OUTSIDE, OTHER = 1, 2, 3  # enum role of bpf/maps.h
# They send with MAC addresses of their own through the interface that they lie on.
_WITH_A_MAC = ("macvlan", "macvtap")


@dataclass(frozen=True)
class Seen:
    """The listed links, inside and outside, as they are at present."""

    missing: frozenset[str] = frozenset()
    """Names that no link has."""
    replaced: frozenset[str] = frozenset()
    """Names that another link had before."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Links by their present name, each with the name by which it is listed."""
    uncertain: bool = False
    """Whether nftables' chains changed while they were read: `filtered` is as it was until the next look."""


def refresh(interfaces: Map, wanted: Desired, found: Mapping[str, Link]) -> Seen:
    """Writes the roles of the links that are there. Does not wait while other software changes nftables."""
    before = by_index(interfaces)
    chains = ingress.devices()
    filtered = {name for name in wanted.listed if name in found and _is_filtered(found[name], chains, before)}
    listed_rows = _listed(interfaces.value, wanted, found, filtered)
    rows = {found[name].index: row for name, row in listed_rows.items()}
    renamed = formerly(interfaces, wanted, found)
    for name in renamed:
        row = before[found[name].index].copy()
        row["renamed"] = 1
        rows[found[name].index] = row
    for index in before.keys() - rows.keys():
        interfaces.delete(index)
    for index, row in rows.items():
        interfaces.put(index, row)
    had = {name_of(row): index for index, row in before.items()}
    listed = frozenset((*wanted.inside, *wanted.outside))
    there = listed.intersection(found)
    return Seen(
        missing=listed.difference(found),
        replaced=frozenset(name for name in there if had.get(name, found[name].index) != found[name].index),
        renamed=tuple(sorted(renamed.items())),
        uncertain=chains is None,
    )


def formerly(interfaces: Map, wanted: Desired, found: Mapping[str, Link]) -> dict[str, str]:
    """The links that were renamed since they had their role: the listed name by the present one."""
    listed = {*wanted.inside, *wanted.outside}
    indexes = {link.index: name for name, link in found.items()}
    renamed = {}
    for index, row in by_index(interfaces).items():
        name, now = name_of(row), indexes.get(index)
        if now is not None and now != name and name in listed and now not in listed:
            renamed[now] = name
    return renamed


def said_of_renamed(present: str, listed: str) -> str:
    """What is to be said of a link that was renamed."""
    return (
        f"{listed} is called {present} now: egress by it is refused; give it its name back, or list "
        f"{present} in `interfaces` and reload"
    )


def by_index(interfaces: Map) -> dict[int, np.ndarray]:
    """What the map has."""
    indexes, rows = interfaces.items()
    return {int(index): row for index, row in zip(indexes, rows, strict=True)}


def name_of(row: np.ndarray) -> str:
    """The name that an interface is listed by; empty in an earlier version's maps."""
    return bytes(row["name"]).rstrip(b"\0").decode() if "name" in (row.dtype.names or ()) else ""


def _is_filtered(link: Link, chains: Devices | None, before: Mapping[int, np.ndarray]) -> bool:
    """Whether others look at packets as they arrive there. Of a new link it is assumed until it is known."""
    if hooks.others_filter(link.index):
        return True
    if chains is not None:
        return link.name in chains
    row = before.get(link.index)
    return row is None or "filtered" not in (row.dtype.names or ()) or bool(row["filtered"])


def _listed(
    kind: np.dtype, wanted: Desired, found: Mapping[str, Link], filtered: Container[str]
) -> dict[str, np.ndarray]:
    upper = [link for link in found.values() if link.kind in _WITH_A_MAC]
    carrying = {lower.name for link in upper for lower in below(link, found)}
    rows = {}
    for role, names in ((INSIDE, wanted.inside), (OUTSIDE, wanted.outside), (OTHER, wanted.other)):
        for name in names:
            if name not in found:
                continue
            row = np.zeros((), dtype=kind)
            for field, value in (
                ("role", role),
                ("mac", list(found[name].mac)),
                ("ethernet", bool(found[name].header)),
                ("any_source", name in wanted.any_source),
                ("filtered", name in filtered),
                ("carries", name in carrying),
                ("name", list(name.encode().ljust(16, b"\0"))),
            ):
                # An earlier version's maps have not all of these.
                if field in (row.dtype.names or ()):
                    row[field] = value
            rows[name] = row
    return rows
