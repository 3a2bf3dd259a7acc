"""What a changed file would decide otherwise: its policies, and the live flows if they were opened again.

Live flows keep what they have, whatever the file says; this is for the person who is about to apply it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from enforcer.datapath.address import IPAddress, mapped, pack, unpack
from enforcer.datapath.banks import NO_SLOT, Action
from enforcer.datapath.maps import Maps
from enforcer.datapath.reasons import by_name
from enforcer.facts.inforce import rules_of_names
from enforcer.facts.rows import ANYBODY
from enforcer.facts.store import Store
from enforcer.policy.facts import place_facts
from enforcer.policy.resolver import Bits

if TYPE_CHECKING:
    from enforcer.apply import Target

NEAREST, REFUSED = -1, -2
"""Outcomes besides slots: whichever egress is nearest, and none."""

DNS, TCP, UDP = 53, 6, 17
_FAMILIES = 2


@dataclass(frozen=True)
class Change:
    """Something of the policies that the file changes."""

    kind: str
    """appears, goes or changes."""
    what: str
    """``policy bank``, ``list offices``."""
    fields: tuple[str, ...] = ()
    """What of a policy changes."""

    def __str__(self) -> str:
        fields = f": {', '.join(self.fields)}" if self.fields else ""
        return f"{self.what} {self.kind}{fields}"


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Between two configurations in their JSON form; a policy is known by its name."""
    return [
        *_compared("policy", _by_name(before), _by_name(after)),
        *_compared("list", before.get("lists", {}), after.get("lists", {})),
    ]


def _by_name(config: dict[str, Any]) -> dict[str, Any]:
    return {policy["name"]: policy for policy in config.get("policies", ())}


def _compared(noun: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for name, entry in after.items():
        if name not in before:
            yield Change("appears", f"{noun} {name}")
        elif entry != before[name]:
            fields = [key for key in entry if entry[key] != before[name].get(key)] if noun == "policy" else []
            yield Change("changes", f"{noun} {name}", tuple(fields))
    for name in before:
        if name not in after:
            yield Change("goes", f"{noun} {name}")


@dataclass
class Redecided:
    """Live flows that would leave otherwise if they were opened again."""

    flows: int = 0
    clients: dict[str, int] = field(default_factory=dict)
    """How many of them each client has, most first."""


class Redecision:
    """The decisions of a configuration that is not in force yet."""

    def __init__(self, aim: Target, maps: Maps, store: Store):
        self._aim = aim
        self._tables = aim.contents.tables
        self._maps = maps
        self._store = store
        self._names = dict(store.name_sets())
        self._hosts = dict(store.hosts()) if "host" in self._tables.uses else {}
        self._private = [mapped(network) for network in aim.contents.private]
        self._available = self._availability()

    def _availability(self) -> set[tuple[int, int]]:
        """(slot, family) of what can be used; an egress IP that is new will be there."""
        known = self._maps.egresses
        found = set()
        for egress in self._aim.wanted.ours:
            row = known.get(egress.slot)
            for family in range(_FAMILIES):
                if row is None or not row["source"]["planned"][family] or row["source"]["available"][family]:
                    found.add((egress.slot, family))
        return found

    def of_flows(self) -> Redecided:
        """Compare with what every live flow has."""
        counts: dict[bytes, int] = {}
        for every_key, every_flow in self._maps.flows.chunks():
            live = every_flow["counted"] == 1
            keys, flows = every_key[live], every_flow[live]
            for client, number in self._differing(keys, flows):
                counts[client] = counts.get(client, 0) + number
        ordered = sorted(counts.items(), key=lambda each: -each[1])
        clients = {str(unpack(np.frombuffer(client, dtype="<u4"))): number for client, number in ordered}
        return Redecided(sum(counts.values()), clients)

    def _differing(self, keys: np.ndarray, flows: np.ndarray) -> Iterator[tuple[bytes, int]]:
        """Per client; flows that policies cannot tell apart are decided once."""
        alike = np.zeros(
            len(keys), dtype=[("ends", "V32"), ("ports", "<u4", 2), ("protocol", "<u4"), ("now", "<i4")]
        )
        ends = np.concatenate([keys["client"], keys["origin"]], axis=1)
        alike["ends"] = np.ascontiguousarray(ends).view("V32").reshape(-1)
        alike["ports"][:, 0] = self._port_class(self._tables.source_ports, keys["client_port"])
        alike["ports"][:, 1] = self._port_class(self._tables.ports, keys["origin_port"])
        alike["protocol"] = keys["protocol"]
        nearest = flows["reason"] == by_name()["nearest"].number
        alike["now"] = np.where(nearest, NEAREST, flows["slot"].astype("<i4"))
        distinct, counts = np.unique(alike.view(f"V{alike.itemsize}"), return_counts=True)
        for row, number in zip(distinct.view(alike.dtype), counts, strict=True):
            both = bytes(row["ends"])
            if self._outcome(both[:16], both[16:], row["ports"], int(row["protocol"])) != int(row["now"]):
                yield both[:16], int(number)

    @staticmethod
    def _port_class(table: Sequence[tuple[int, int, int]], ports: np.ndarray) -> np.ndarray:
        """The first port of the range that policies do not tell apart; DNS is one of its own."""
        host = ports.byteswap()
        firsts = np.array([first for first, _, _ in table], dtype="<u4")
        return np.where(host == DNS, DNS, firsts[np.searchsorted(firsts, host, side="right") - 1] | _CLASS)

    def _outcome(self, client: bytes, origin: bytes, ports: np.ndarray, protocol: int) -> int:
        """A slot, NEAREST or REFUSED."""
        wanted = self._aim.wanted
        proxied = wanted.proxy_tcp if protocol == TCP else wanted.proxy_udp
        if not proxied or int(ports[1]) == DNS or self._is_private(origin):
            return 0
        rules = self._rules(client, origin, [int(each) & ~_CLASS for each in ports], protocol)
        if not rules:
            return NEAREST
        index = self._tables.rules[(rules & -rules).bit_length() - 1]
        return self._slot(self._aim.contents.actions[index], family=0 if origin[:12] == _MAPPED else 1)

    def _rules(self, client: bytes, origin: bytes, ports: list[int], protocol: int) -> Bits:
        tables, resolvers = self._tables, self._tables.resolvers
        source, destination = (_address(each) for each in (client, origin))
        rules = tables.by_addresses(source, destination) & tables.by_ports(*ports)
        rules &= tables.sets[tables.protocols[protocol]]
        if rules and "client" in tables.uses:
            session = self._store.session(client)
            rules &= resolvers["client"].rules(session.facts if session else {})
        if rules and "host" in tables.uses:
            number = self._hosts.get((client, origin)) or self._hosts.get((ANYBODY, origin), 0)
            names = self._names.get(number, ())
            host = resolvers["host"]
            rules &= rules_of_names(host, [names])[0] if names else host.unknown
        database = self._aim.contents.database
        if rules and database is not None:
            rules &= resolvers["source_place"].rules(place_facts("src", *database.find(source)))
            rules &= resolvers["destination_place"].rules(place_facts("dst", *database.find(destination)))
        return rules

    def _is_private(self, origin: bytes) -> bool:
        value = int.from_bytes(origin, "big")
        return any(
            value >> (128 - network.prefixlen) == int(network.network_address) >> (128 - network.prefixlen)
            for network in self._private
        )

    def _slot(self, action: Action, family: int) -> int:
        primary, fallback = action.slot[family], action.fallback[family]
        for slot in (primary, fallback):
            if slot == 0 or (slot, family) in self._available:
                return slot
            if slot == NO_SLOT:
                return REFUSED
        return REFUSED


_MAPPED = pack(unpack([0, 0, 0xFFFF0000, 0]))[:12]
_CLASS = 1 << 31  # marks a port that stands for its range


def _address(raw: bytes) -> IPAddress:
    return unpack(np.frombuffer(raw, dtype="<u4"))
