"""What the kernel holds of sessions and names, for the policy bank in force.

Used within a change of the store, by whoever changes it: what is added is in the kernel before the change
ends, and a bank is not switched meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from enforcer.datapath.banks import Bank
from enforcer.datapath.maps import Map, Maps
from enforcer.errors import KernelError
from enforcer.facts.store import Names, Sessions, Store
from enforcer.policy.facts import Facts, host_facts
from enforcer.policy.resolver import Bits, Resolver, dump, load

if TYPE_CHECKING:  # the language, and with it the parser, is not needed here
    from enforcer.policy.tables import MatchTables


FORMAT = 1
"""Of the document; part of the digest that says whether a bank has to be made anew."""


def document(tables: MatchTables, bank: int, regions: dict[str, Any]) -> bytes:
    """Serialise what :class:`KernelFacts` needs of a bank's tables and regions; the store keeps it."""
    groups = {name: dump(tables.groups[name]) for name in ("client", "host")}
    return json.dumps({"bank": bank, "regions": regions, **groups}).encode()


def rules_of_names(resolver: Resolver, sets: Sequence[tuple[str, ...]]) -> list[Bits]:
    """Which rules match an address that goes by any of these names, for each set of names."""
    names = list(dict.fromkeys(name for names in sets for name in names))
    found = dict(zip(names, resolver.rules_of_many([host_facts(name) for name in names]), strict=True))
    united = []
    for each in sets:
        rules = 0
        for name in each:
            rules |= found[name]
        united.append(rules)
    return united


class KernelFacts:
    """Writes what changes in the store to the kernel's maps; FullTableError, KernelError.

    A change that is taken back leaves what it wrote in the maps. The next one begins with mending that:
    before a number is given to other facts, nobody has it by mistake.
    """

    def __init__(self, maps: Maps, store: Store):
        self._maps = maps
        self._store = store
        self._generation = -1
        self._undone = store.undone
        self._begun = store.begun
        self._clients: set[bytes] = set()
        """Whom this change has written, or the last one."""
        self._hosts: set[tuple[bytes, bytes]] = set()

    def refresh(self) -> None:
        """Takes up the bank in force, if it was switched. KernelError: the store knows another one."""
        generation = self._store.generation
        if generation != self._generation:
            self._generation = -1
            try:
                content = json.loads(self._store.document or b"{}")
                self._client = Resolver(load(content["client"]))
                self._host = Resolver(load(content["host"]))
            except (KeyError, TypeError, ValueError):  # none, or another version's
                raise _mismatch() from None
            self._bank = Bank(self._maps, content["bank"])
            self._generation = generation
        if not self._bank.is_in_force:
            self._generation = -1
            raise _mismatch()

    @property
    def fits(self) -> bool:
        """Whether what the store knows of policies is what decides."""
        try:
            self.refresh()
        except KernelError:
            return False
        return True

    def rules_of_client(self, facts: Facts) -> Bits:
        """Which rules would match a client with these facts."""
        self.refresh()
        return self._client.rules(facts)

    def rules_of_host(self, names: tuple[str, ...]) -> Bits:
        """Which rules would match an address that goes by these names."""
        self.refresh()
        return rules_of_names(self._host, [names])[0] if names else self._host.unknown

    def put(self, sessions: Sessions) -> None:
        """Sessions that are new or changed."""
        self.refresh()
        self._begin()
        self._clients.update(client for client, _ in sessions.clients)
        put_profiles(self._bank, self._client, sessions.profiles)
        write_sessions(self._maps, sessions.clients)

    def removed(self, clients: Iterable[bytes]) -> None:
        """Sessions that ended."""
        self._begin()
        for client in clients:
            self._clients.add(client)
            self._maps.sessions.delete(_row(self._maps.sessions, client))

    def named(self, names: Names) -> None:
        """Hosts whose names changed; number 0: one that has none any more."""
        self.refresh()
        self._begin()
        self._hosts.update(host for host, _ in names.hosts)
        put_names(self._bank, self._host, names.sets)
        write_hosts(self._maps, [host for host in names.hosts if host[1]])
        for (client, address), number in names.hosts:
            if not number:
                self._maps.hosts.delete(_row(self._maps.hosts, client + address))

    def _begin(self) -> None:
        """The first of a change: whom the one before wrote, if it was taken back, has what the store says."""
        if self._store.begun == self._begun:
            return
        self._begun = self._store.begun
        if self._store.undone != self._undone:
            for client in self._clients:
                session = self._store.session(client)
                _set(self._maps.sessions, client, session.profile if session else 0)
            for client, address in self._hosts:
                _set(self._maps.hosts, client + address, self._store.name_set_of(client, address))
            self._undone = self._store.undone
        self._clients.clear()
        self._hosts.clear()


def _set(table: Map, raw: bytes, number: int) -> None:
    if number:
        table.put(_row(table, raw), number)
    else:
        table.delete(_row(table, raw))


def _mismatch() -> KernelError:
    return KernelError("the policies in force are not those of the facts", "Reload: enforcer reload")


def put_profiles(bank: Bank, resolver: Resolver, profiles: Sequence[tuple[int, Facts]]) -> None:
    """Which rules match each profile."""
    rules = resolver.rules_of_many([facts for _, facts in profiles])
    bank.put_profiles([number for number, _ in profiles], rules)


def put_names(bank: Bank, resolver: Resolver, sets: Sequence[tuple[int, tuple[str, ...]]]) -> None:
    """Which rules match each set of names."""
    bank.put_names([number for number, _ in sets], rules_of_names(resolver, [names for _, names in sets]))


def write_sessions(maps: Maps, clients: Sequence[tuple[bytes, int]]) -> None:
    """Which profile each client has."""
    _put_rows(maps.sessions, [client for client, _ in clients], [number for _, number in clients])


def write_hosts(maps: Maps, hosts: Sequence[tuple[tuple[bytes, bytes], int]]) -> None:
    """Which set of names each host has."""
    rows = [client + address for (client, address), _ in hosts]
    _put_rows(maps.hosts, rows, [number for _, number in hosts])


def refill(maps: Maps, store: Store) -> None:
    """Makes the maps what the store says: new maps, or such as somebody else may have written for nothing."""
    sessions, names = store.session_profiles(), store.hosts()
    _keep_only(maps.sessions, {client for client, _ in sessions})
    _keep_only(maps.hosts, {client + address for (client, address), _ in names})
    write_sessions(maps, sessions)
    write_hosts(maps, names)


def _keep_only(table: Map, keys: Collection[bytes]) -> None:
    """Deletes what is not in the store any more."""
    for key in table.items()[0]:
        if key.tobytes() not in keys:
            table.delete(key)


def _row(table: Map, raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, dtype=table.key)[0]


def _put_rows(table: Map, rows: Sequence[bytes], numbers: Sequence[int]) -> None:
    if rows:
        table.put_many(np.frombuffer(b"".join(rows), dtype=table.key), np.array(numbers, dtype=table.value))
