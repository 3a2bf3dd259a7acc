"""Interface roles by index: maintains the map `interfaces`, where the programs find a packet's interface.

The configuration lists names, the programs use indexes. A renamed link keeps its role, so that its packets
are checked, but new egress flows are refused (struct interface.unfit), because nftables rules match the
listed name. The same holds for a link that has become a port of a bridge, bond or VRF: the kernel attributes
its packets to the master.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from enforcer.constants.bpf import Role, Unfit
from enforcer.datapath.maps import Map, Maps
from enforcer.gateway import attach
from enforcer.gateway.desired import Desired
from enforcer.kernel import nft_ingress
from enforcer.kernel.links import Link, below, links
from enforcer.kernel.nft_ingress import Devices

# Kinds of links that send with their own MAC address through their lower interface.
_WITH_A_MAC = ("macvlan", "macvtap")


@dataclass(frozen=True)
class RenamedLink:
    """A link whose name differs from its listed name."""

    index: int
    present: str
    listed: str

    def __str__(self) -> str:
        return (
            f"{self.listed} is called {self.present} now: egress by it is refused; give it its name back, or "
            f"list {self.present} in `interfaces` and reload"
        )


class TakenLink(NamedTuple):
    """A listed link that is a port of another one, to which the kernel attributes its packets."""

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
    """The present links and their deviations from the configuration."""

    indexes: Mapping[str, int]
    """Index of every link by name."""
    renamed: frozenset[RenamedLink]
    """Inside and outside ones."""
    taken: frozenset[TakenLink] = frozenset()
    """Inside and outside ones."""
    uncertain: bool = False
    """Whether nftables chains changed while they were read: `filtered` keeps its value then."""


def refresh(maps: Maps, wanted: Desired, found: Mapping[str, Link]) -> LinkStatus:
    """Writes the roles of the existing links and the MAC addresses of links on top of them.

    Does not block while other software changes nftables.
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
        _set(row, "unfit", Unfit.RENAMED)
        rows[link.index] = row
    for index in before.keys() - rows.keys():
        interfaces.delete(index)
    for index, row in rows.items():
        interfaces.put(index, row)
    if "upper_macs" in maps:
        _write_upper_macs(maps.upper_macs, found)
    indexes = {name: link.index for name, link in found.items()}
    return LinkStatus(indexes, renamed, find_taken(wanted, found), uncertain=chains is None)


def find_renamed(interfaces: Map, wanted: Desired, found: Mapping[str, Link]) -> frozenset[RenamedLink]:
    """The inside and outside links that were renamed after they got their role."""
    renamed = wanted.still_listed(former_names(interfaces, wanted, found))
    return frozenset(RenamedLink(found[now].index, now, listed) for now, listed in renamed.items())


def former_names(interfaces: Map, wanted: Desired, found: Mapping[str, Link]) -> dict[str, str]:
    """The former name, by which a link got its role, of each renamed link, by present name.

    An earlier version's map has no names. Its unlisted links then get, in the order of their indexes, the
    listed names of their role that none of its links has.
    """
    rows = by_index(interfaces)
    there = {name: rows[link.index] for name, link in found.items() if link.index in rows}
    if "name" in (interfaces.value.names or ()):
        names = {name: name_of(row) for name, row in there.items()}
    else:
        left = {
            role: [name for name in listed if name not in there] for role, listed in _by_role(wanted).items()
        }
        unlisted = sorted(there.keys() - set(wanted.listed), key=lambda name: found[name].index)
        pairs = ((name, left.get(Role(int(there[name]["role"])), [])) for name in unlisted)
        names = {name: those.pop(0) for name, those in pairs if those}
    return {now: before for now, before in names.items() if now != before}


def carry_over(old: Map, new: Map, wanted: Desired) -> None:
    """Enters renamed links into a new map, so that they keep their role and their former name."""
    found = links()
    rows = by_index(old)
    for now, before in wanted.still_listed(former_names(old, wanted, found)).items():
        row = np.zeros((), dtype=new.value)
        for field in old.value.names or ():
            _set(row, field, rows[found[now].index][field])
        _set(row, "name", _padded(before))
        new.put(found[now].index, row)


def find_taken(wanted: Desired, found: Mapping[str, Link]) -> frozenset[TakenLink]:
    """The inside and outside links that are ports of another link."""
    there = {name: found[name].port_of for name in (*wanted.inside, *wanted.outside) if name in found}
    return frozenset(TakenLink(name, taker) for name, taker in there.items() if taker is not None)


def by_index(interfaces: Map) -> dict[int, np.ndarray]:
    """The rows of the map `interfaces` by link index."""
    indexes, rows = interfaces.items()
    return {int(index): row for index, row in zip(indexes, rows, strict=True)}


def name_of(row: np.ndarray) -> str:
    """The listed name in a row of `interfaces`; empty in an earlier version's maps."""
    return bytes(row["name"]).rstrip(b"\0").decode() if "name" in (row.dtype.names or ()) else ""


def _is_filtered(link: Link, chains: Devices | None, before: Mapping[int, np.ndarray]) -> bool:
    """Whether other software filters packets on arrival; assumed of a new link while chains are unknown."""
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
    for role, names in _by_role(wanted).items():
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
                ("unfit", Unfit.TAKEN if name in ports else Unfit.FIT),
                ("name", _padded(name)),
            ):
                _set(row, field, value)
            rows[name] = row
    return rows


def _by_role(wanted: Desired) -> dict[Role, tuple[str, ...]]:
    return {Role.INSIDE: wanted.inside, Role.OUTSIDE: wanted.outside, Role.OTHER: wanted.other}


def _padded(name: str) -> list[int]:
    return list(name.encode().ljust(16, b"\0"))


def _set(row: np.ndarray, field: str, value: object) -> None:
    """Sets a field, if the map's layout has it: maps of earlier versions lack some."""
    if field in (row.dtype.names or ()):
        row[field] = value


def _write_upper_macs(upper_macs: Map, found: Mapping[str, Link]) -> None:
    """Writes (lower interface, MAC address) of macvlans; one with the lower link's address is left out."""
    upper = [link for link in found.values() if link.kind in _WITH_A_MAC]
    senders = {
        (lower.index, link.mac) for link in upper for lower in below(link, found) if link.mac != lower.mac
    }
    keys = np.zeros(len(senders), dtype=upper_macs.key)
    for key, (index, mac) in zip(keys, sorted(senders), strict=True):
        key["ifindex"], key["mac"] = index, list(mac)
    wanted = {key.tobytes() for key in keys}
    for key in upper_macs.items()[0]:
        if key.tobytes() not in wanted:
            upper_macs.delete(key)
    for key in keys:
        upper_macs.put(key, 1)
