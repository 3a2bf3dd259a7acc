"""Which interface has which role, by index: what the programs ask of a packet's interfaces.

The file lists names; the kernel's programs know indexes. A link that was renamed keeps its role, so that what
comes by it is guarded, but nothing that is egress passes it (struct interface.unfit): the nftables table
knows it by the name in the file. So does one that has become a port of a bridge, bond or VRF, whose packets
the kernel takes for that one's.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from enforcer.datapath.maps import Map, Maps
from enforcer.gateway import attach
from enforcer.gateway.desired import Desired
from enforcer.kernel import nft_ingress
from enforcer.kernel.links import Link, below
from enforcer.kernel.nft_ingress import Devices

INSIDE, OUTSIDE, OTHER = 1, 2, 3  # enum role of bpf/maps.h
RENAMED, TAKEN = 1, 2  # enum unfit
# They send with MAC addresses of their own through the interface that they lie on.
_WITH_A_MAC = ("macvlan", "macvtap")


@dataclass(frozen=True)
class RenamedLink:
    """A link that has another name than it is listed by."""

    index: int
    present: str
    listed: str

    def __str__(self) -> str:
        return (
            f"{self.listed} is called {self.present} now: egress by it is refused; give it its name back, or "
            f"list {self.present} in `interfaces` and reload"
        )


class TakenLink(NamedTuple):
    """A listed link that is a port of another one, which the kernel takes its packets for."""

    name: str
    taker: str

    def __str__(self) -> str:
        return (
            f"{self.name} is a port of {self.taker} now, which takes its packets: egress by it is refused; "
            f"take it out (ip link set {self.name} nomaster), or list what its packets come by in "
            "`interfaces` and reload"
        )


@dataclass(frozen=True)
class LinkStatus:
    """The links as they are at present."""

    indexes: Mapping[str, int]
    """Of all links, by name."""
    renamed: frozenset[RenamedLink]
    """Inside and outside ones."""
    taken: frozenset[TakenLink] = frozenset()
    """Inside and outside ones."""
    uncertain: bool = False
    """Whether nftables' chains changed while they were read: `filtered` is as it was until the next look."""


def refresh(maps: Maps, wanted: Desired, found: Mapping[str, Link]) -> LinkStatus:
    """Writes the roles of the links that are there, and which frames others send through them.

    Does not wait while other software changes nftables.
    """
    interfaces = maps.interfaces
    before = by_index(interfaces)
    chains = nft_ingress.devices()
    filtered = {name for name in wanted.listed if name in found and _is_filtered(found[name], chains, before)}
    listed_rows = _listed(interfaces.value, wanted, found, filtered)
    rows = {found[name].index: row for name, row in listed_rows.items()}
    renamed = find_renamed(interfaces, wanted, found)
    for link in renamed:
        row = before[link.index].copy()
        _set(row, "unfit", RENAMED)
        rows[link.index] = row
    for index in before.keys() - rows.keys():
        interfaces.delete(index)
    for index, row in rows.items():
        interfaces.put(index, row)
    if "carried" in maps:
        _write_carried(maps.carried, found)
    indexes = {name: link.index for name, link in found.items()}
    return LinkStatus(indexes, renamed, find_taken(wanted, found), uncertain=chains is None)


def find_renamed(interfaces: Map, wanted: Desired, found: Mapping[str, Link]) -> frozenset[RenamedLink]:
    """The inside and outside links that were renamed since they got their role."""
    renamed = wanted.still_listed(former_names(interfaces, found))
    return frozenset(RenamedLink(found[now].index, now, listed) for now, listed in renamed.items())


def former_names(interfaces: Map, found: Mapping[str, Link]) -> dict[str, str]:
    """The names by which links got their role, by the present ones, where these differ."""
    rows = by_index(interfaces)
    names = {name: name_of(rows[link.index]) for name, link in found.items() if link.index in rows}
    return {now: before for now, before in names.items() if now != before}


def find_taken(wanted: Desired, found: Mapping[str, Link]) -> frozenset[TakenLink]:
    """The inside and outside links that are ports."""
    there = {name: found[name].port_of for name in (*wanted.inside, *wanted.outside) if name in found}
    return frozenset(TakenLink(name, taker) for name, taker in there.items() if taker is not None)


def by_index(interfaces: Map) -> dict[int, np.ndarray]:
    """What the map has."""
    indexes, rows = interfaces.items()
    return {int(index): row for index, row in zip(indexes, rows, strict=True)}


def name_of(row: np.ndarray) -> str:
    """The name that an interface is listed by; empty in an earlier version's maps."""
    return bytes(row["name"]).rstrip(b"\0").decode() if "name" in (row.dtype.names or ()) else ""


def _is_filtered(link: Link, chains: Devices | None, before: Mapping[int, np.ndarray]) -> bool:
    """Whether others look at packets as they arrive there. Of a new link it is assumed until it is known."""
    if attach.others_filter(link.index):
        return True
    if chains is not None:
        return link.name in chains
    row = before.get(link.index)
    return row is None or "filtered" not in (row.dtype.names or ()) or bool(row["filtered"])


def _listed(
    kind: np.dtype, wanted: Desired, found: Mapping[str, Link], filtered: Container[str]
) -> dict[str, np.ndarray]:
    ports = {port.name for port in find_taken(wanted, found)}
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
