"""Finds the live flows that would get another egress IP if reopened under a configuration not yet in force.

Live flows keep their egress IP; this is a forecast for `enforcer plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from enforcer.address import IPAddress, IPNetwork, unpack
from enforcer.constants import DNS_PORT, TCP
from enforcer.constants.bpf import FAMILIES
from enforcer.datapath.banks import Action
from enforcer.datapath.maps import Maps
from enforcer.facts.kernel_facts import rules_of_names
from enforcer.facts.rows import ANY_CLIENT
from enforcer.facts.store import Store
from enforcer.gateway.compiled_config import CompiledConfig
from enforcer.gateway.operations import (
    AddAddress,
    AddRange,
    Operation,
)
from enforcer.policy.facts import region_facts
from enforcer.policy.resolver import Bits


@dataclass
class Impact:
    """Live flows that would get another egress IP if reopened."""

    flows: int = 0
    clients: dict[str, int] = field(default_factory=dict)
    """Number of these flows by client, largest first."""


class FlowImpact:
    """Evaluates a compiled configuration for the live flows.

    ``operations`` are those of its plan. Without a ``store`` no client has a session and no host a name.
    """

    def __init__(
        self, compiled: CompiledConfig, operations: Sequence[Operation], maps: Maps, store: Store | None
    ):
        self._compiled = compiled
        self._tables = compiled.contents.tables
        self._maps = maps
        self._store = store
        named = store is not None and "host" in self._tables.uses
        self._names = dict(store.name_sets()) if store and named else {}
        self._hosts = dict(store.hosts()) if store and named else {}
        self._private = _by_length(compiled.contents.private)
        self._available = self._availability(operations)
        self._nearest = [self._nearest_in(family) for family in range(FAMILIES)]

    def _availability(self, operations: Sequence[Operation]) -> set[tuple[int, int]]:
        """(slot, family) of the usable addresses: available, added by the operations, or new."""
        added: set[object] = {each.held[1].ip for each in operations if isinstance(each, AddAddress)}
        added |= {each.network for each in operations if isinstance(each, AddRange)}
        known = self._maps.egresses
        found = set()
        for egress in self._compiled.wanted.ours:
            row = known.get(egress.slot)
            for family, address in enumerate((egress.ipv4, egress.ipv6)):
                new = row is None or not row["address"]["local"][family]
                if new or address in added or (row is not None and row["address"]["available"][family]):
                    found.add((egress.slot, family))
        return found

    def _nearest_in(self, family: int) -> frozenset[int]:
        slots = {egress.name: egress.slot for egress in self._compiled.wanted.egresses}
        nearest = {slots[name] for name in self._compiled.wanted.nearest}
        return frozenset(slot for slot in nearest if (slot, family) in self._available)

    def of_flows(self) -> Impact:
        """Compares every live flow's slot with the slots that it would get."""
        counts: dict[bytes, int] = {}
        for every_key, every_flow in self._maps.flows.chunks():
            live = every_flow["counted"] == 1
            keys, flows = every_key[live], every_flow[live]
            for client, number in self._differing(keys, flows):
                counts[client] = counts.get(client, 0) + number
        ordered = sorted(counts.items(), key=lambda each: -each[1])
        clients = {str(unpack(np.frombuffer(client, dtype="<u4"))): number for client, number in ordered}
        return Impact(sum(counts.values()), clients)

    def _differing(self, keys: np.ndarray, flows: np.ndarray) -> Iterator[tuple[bytes, int]]:
        """(client, number of differing flows); flows that policies cannot distinguish are decided once."""
        alike = np.zeros(
            len(keys), dtype=[("ends", "V32"), ("ports", "<u4", 2), ("protocol", "<u4"), ("now", "<u4")]
        )
        ends = np.concatenate([keys["client"], keys["origin"]], axis=1)
        alike["ends"] = np.ascontiguousarray(ends).view("V32").reshape(-1)
        alike["ports"][:, 0] = self._port_class(self._tables.source_ports, keys["client_port"])
        alike["ports"][:, 1] = self._port_class(self._tables.ports, keys["origin_port"])
        alike["protocol"] = keys["protocol"]
        alike["now"] = flows["slot"]
        distinct, counts = np.unique(alike.view(f"V{alike.itemsize}"), return_counts=True)
        for row, number in zip(distinct.view(alike.dtype), counts, strict=True):
            both = bytes(row["ends"])
            if int(row["now"]) not in self._outcome(both[:16], both[16:], row["ports"], int(row["protocol"])):
                yield both[:16], int(number)

    @staticmethod
    def _port_class(table: Sequence[tuple[int, int, int]], ports: np.ndarray) -> np.ndarray:
        """The first port of each port's range in the match table; DNS_PORT is a class of its own."""
        host = ports.byteswap()
        firsts = np.array([first for first, _, _ in table], dtype="<u4")
        classes = firsts[np.searchsorted(firsts, host, side="right") - 1] | _CLASS
        return np.where(host == DNS_PORT, DNS_PORT, classes)

    def _outcome(self, client: bytes, origin: bytes, ports: np.ndarray, protocol: int) -> frozenset[int]:
        """The slots that a flow may get; empty: it would be refused."""
        wanted = self._compiled.wanted
        proxied = wanted.settings.proxy_tcp if protocol == TCP else wanted.settings.proxy_udp
        destination = _address(origin)
        family = 0 if destination.version == 4 else 1
        if not proxied or int(ports[1]) == DNS_PORT or self._is_private(destination):
            return _SHARED
        rules = self._rules(client, origin, [int(each) & ~_CLASS for each in ports], protocol)
        if not rules:
            return self._nearest[family]
        index = self._tables.rules[(rules & -rules).bit_length() - 1]
        return self._slots(self._compiled.contents.actions[index], family)

    def _rules(self, client: bytes, origin: bytes, ports: list[int], protocol: int) -> Bits:
        tables, resolvers = self._tables, self._tables.resolvers
        source, destination = (_address(each) for each in (client, origin))
        rules = tables.by_addresses(source, destination) & tables.by_ports(*ports)
        rules &= tables.sets[tables.protocols[protocol]]
        if rules and "client" in tables.uses:
            session = self._store.session(client) if self._store else None
            rules &= resolvers["client"].rules(session.facts if session else {})
        if rules and "host" in tables.uses:
            number = self._hosts.get((client, origin)) or self._hosts.get((ANY_CLIENT, origin), 0)
            names = self._names.get(number, ())
            host = resolvers["host"]
            rules &= rules_of_names(host, [names])[0] if names else host.unknown
        database = self._compiled.contents.database
        if rules and database is not None:
            rules &= resolvers["source_region"].rules(region_facts("src", *database.find(source)))
            rules &= resolvers["destination_region"].rules(region_facts("dst", *database.find(destination)))
        return rules

    def _is_private(self, origin: IPAddress) -> bool:
        value = int(origin)
        return any(
            version == origin.version and value >> shift in found
            for (version, shift), found in self._private.items()
        )

    def _slots(self, action: Action, family: int) -> frozenset[int]:
        for slot in (action.slot[family], action.fallback[family]):
            if slot == 0 or (slot, family) in self._available:
                return frozenset((slot,))
        return frozenset()


_SHARED = frozenset((0,))
_CLASS = 1 << 31  # flag of a port number that represents its range


def _by_length(networks: Iterable[IPNetwork]) -> dict[tuple[int, int], set[int]]:
    """The networks' prefix bits, by (IP version, number of host bits)."""
    found: dict[tuple[int, int], set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        found.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
    return found


def _address(raw: bytes) -> IPAddress:
    return unpack(np.frombuffer(raw, dtype="<u4"))
