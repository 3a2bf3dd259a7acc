"""Which interface has which role, by index: what the programs ask of a packet's interfaces.

The file lists names; the kernel's programs know indexes. A link that was renamed keeps its role, so that what
comes by it is guarded, but nothing that is egress passes it (struct interface.unfit): the nftables table
knows it by the name in the file. So does one that has become a port of a bridge, bond or VRF, whose packets
the kernel takes for that one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from enforcer.datapath.maps import Map, Maps
from enforcer.gateway import attach as hooks
from enforcer.gateway.desired import Desired
from enforcer.kernel import ingress
from enforcer.kernel.links import Link, below

INSIDE, OUTSIDE, OTHER = 1, 2, 3  # enum role of bpf/maps.h
RENAMED, TAKEN = 1, 2  # enum unfit
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
    taken: tuple[tuple[str, str], ...] = ()
    """Links that are ports, each with what takes their packets."""


def refresh(maps: Maps, wanted: Desired, found: Mapping[str, Link]) -> Seen:
    """Writes the roles of the links that are there, and which frames others send through them."""
    interfaces = maps.interfaces
    before = by_index(interfaces)
    rows = {found[name].index: row for name, row in _listed(interfaces.value, wanted, found).items()}
    renamed = formerly(interfaces, wanted, found)
    for name in renamed:
        row = before[found[name].index].copy()
        _set(row, "unfit", RENAMED)
        rows[found[name].index] = row
    for index in before.keys() - rows.keys():
        interfaces.delete(index)
    for index, row in rows.items():
        interfaces.put(index, row)
    if "carried" in maps:
        _write_carried(maps.carried, found)
    had = {name_of(row): index for index, row in before.items()}
    listed = frozenset((*wanted.inside, *wanted.outside))
    there = listed.intersection(found)
    return Seen(
        missing=listed.difference(found),
        replaced=frozenset(name for name in there if had.get(name, found[name].index) != found[name].index),
        renamed=tuple(sorted(renamed.items())),
        taken=tuple(sorted(taken(wanted, found).items())),
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


def rename(present: str, listed: str) -> str:
    """What is to be said of a link that was renamed."""
    return (
        f"{listed} is called {present} now: egress by it is refused; give it its name back, or list "
        f"{present} in `interfaces` and reload"
    )


def taken(wanted: Desired, found: Mapping[str, Link]) -> dict[str, str]:
    """The links, inside and outside, that are ports: what takes their packets by their name."""
    there = {name: found[name].port_of for name in (*wanted.inside, *wanted.outside) if name in found}
    return {name: taker for name, taker in there.items() if taker is not None}


def take(name: str, taker: str) -> str:
    """What is to be said of a link that has become a port."""
    return (
        f"{name} is a port of {taker} now, which takes its packets: egress by it is refused; take it out "
        f"(ip link set {name} nomaster), or list what its packets come by in `interfaces` and reload"
    )


def by_index(interfaces: Map) -> dict[int, np.ndarray]:
    """What the map has."""
    indexes, rows = interfaces.items()
    return {int(index): row for index, row in zip(indexes, rows, strict=True)}


def name_of(row: np.ndarray) -> str:
    """The name that an interface is listed by; empty in an earlier version's maps."""
    return bytes(row["name"]).rstrip(b"\0").decode() if "name" in (row.dtype.names or ()) else ""


def _listed(kind: np.dtype, wanted: Desired, found: Mapping[str, Link]) -> dict[str, np.ndarray]:
    chains, ports = ingress.devices(), taken(wanted, found)
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
                ("filtered", name in chains or hooks.others_filter(found[name].index)),
                ("unfit", TAKEN if name in ports else 0),
                ("name", list(name.encode().ljust(16, b"\0"))),
            ):
                _set(row, field, value)
            rows[name] = row
    return rows


def _set(row: np.ndarray, field: str, value: object) -> None:
    """An earlier version's maps have not all fields."""
    if field in (row.dtype.names or ()):
        row[field] = value


def _write_carried(carried: Map, found: Mapping[str, Link]) -> None:
    """The MAC addresses of interfaces on top of others; one that has the lower one's own tells nothing."""
    upper = [link for link in found.values() if link.kind in _WITH_A_MAC]
    senders = {
        (lower.index, link.mac) for link in upper for lower in below(link, found) if link.mac != lower.mac
    }
    keys = np.zeros(len(senders), dtype=carried.key)
    for key, (index, mac) in zip(keys, sorted(senders), strict=True):
        key["ifindex"], key["mac"] = index, list(mac)
    wanted = {key.tobytes() for key in keys}
    for key in carried.items()[0]:
        if key.tobytes() not in wanted:
            carried.delete(key)
    for key in keys:
        carried.put(key, 1)
