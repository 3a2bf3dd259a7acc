"""Prepares a policy bank: tables and actions, and for every client, host and region the rules that match it.

Most of this happens while the old bank decides. Facts that change meanwhile are added within the store's
transaction that switches the banks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from enforcer.datapath import banks
from enforcer.datapath.banks import Action, RegionTable
from enforcer.datapath.maps import Maps
from enforcer.facts import kernel_facts
from enforcer.facts.regions import Database
from enforcer.facts.store import Store, Transaction
from enforcer.policy.facts import region_facts
from enforcer.policy.resolver import Bits, predicate_texts
from enforcer.policy.tables import MatchTables


@dataclass(frozen=True)
class BankContents:
    """The contents of a bank: match tables, each policy's action, private networks, the region database."""

    tables: MatchTables
    actions: Sequence[Action]
    private: Sequence[IPv4Network | IPv6Network]
    database: Database | None = None


@dataclass(frozen=True)
class _Regions:
    table: RegionTable | int
    regions: list[tuple[str | None, str | None]]
    digest: str


class BankSwitch:
    """A prepared bank; ``finish`` is called within a transaction of the store, right before the switch.

    ``fresh``: the maps are new, so no table can be reused from the former bank.
    """

    def __init__(self, maps: Maps, bank: int, contents: BankContents, store: Store, *, fresh: bool = False):
        self._maps = maps
        self._store = store
        self.word = banks.word(bank, contents.tables)
        regions = _regions(bank, contents, {} if fresh else json.loads(store.document or b"{}"))
        resolvers = contents.tables.resolvers
        self._client, self._host = resolvers["client"], resolvers["host"]
        self._sequence = store.sequence
        profiles, names = store.profiles(), store.name_sets()
        by_profile = self._client.rules_of_many([facts for _, facts in profiles])
        by_names = kernel_facts.rules_of_names(self._host, [each for _, each in names])
        self._bank = banks.write(
            maps,
            bank,
            contents.tables,
            contents.actions,
            contents.private,
            regions=regions.table,
            region_rules=_rules(contents.tables, regions.regions),
            room=banks.ROOM + 2 * len({*by_profile, *by_names}) + 2 * banks.wanted_room(maps),
        )
        self._number = bank
        kept = {"digest": regions.digest, "regions": regions.regions}
        self._document = kernel_facts.document(contents.tables, bank, kept)
        self._bank.put_profiles([number for number, _ in profiles], by_profile)
        self._bank.put_names([number for number, _ in names], by_names)

    def finish(self, transaction: Transaction) -> None:
        """Adds the facts that changed since, and records in the store which bank they are for."""
        kernel_facts.put_profiles(self._bank, self._client, self._store.profiles(self._sequence))
        kernel_facts.put_names(self._bank, self._host, self._store.name_sets(self._sequence))
        transaction.record_bank(self._document, self._number)


def _rules(tables: MatchTables, regions: Sequence[tuple[str | None, str | None]]) -> list[tuple[Bits, Bits]]:
    resolvers = tables.resolvers
    source = resolvers["source_region"].rules_of_many([region_facts("src", *region) for region in regions])
    destination = resolvers["destination_region"].rules_of_many(
        [region_facts("dst", *region) for region in regions]
    )
    return list(zip(source, destination, strict=True))


def _regions(bank: int, contents: BankContents, before: dict[str, Any]) -> _Regions:
    """The prefixes of the regions that a policy distinguishes from the rest of the world.

    ``before`` is the document of the bank in force; its table is reused if the prefixes are equal.
    """
    resolvers = contents.tables.resolvers
    source, destination = resolvers["source_region"], resolvers["destination_region"]
    if contents.database is None or (source.unused and destination.unused):
        return _Regions(banks.NO_REGIONS, [], "")

    def wanted(country: str | None, continent: str | None) -> bool:
        return (
            source.rules(region_facts("src", country, continent)) != source.unknown
            or destination.rules(region_facts("dst", country, continent)) != destination.unknown
        )

    # The predicates alone decide which regions matter: those for which one of them is true.
    asked = [
        f"{name} {predicate}"
        for name in ("source_region", "destination_region")
        for predicate in predicate_texts(contents.tables.groups[name])
    ]
    digest = hashlib.sha256(f"{contents.database.digest} {sorted(asked)}".encode()).hexdigest()
    if before.get("bank") == 1 - bank and before.get("regions", {}).get("digest") == digest:
        return _Regions(1 - bank, [tuple(region) for region in before["regions"]["regions"]], digest)
    found = contents.database.prefixes(wanted)
    return _Regions(RegionTable(found.length, found.address, found.number), list(found.regions), digest)
