"""Reads the facts behind decisions: clients' sessions, hosts' names, regions of addresses."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from enforcer.address import IPAddress, pack
from enforcer.facts.rows import ANY_CLIENT
from enforcer.facts.store import Store
from enforcer.gateway.reader import GatewayReader
from enforcer.policy.facts import NOTHING, Connection, Facts, host_facts, region_facts

EMAIL = "identity.email"


class FactsReader:
    """The facts of a gateway's store and region database."""

    def __init__(self, reader: GatewayReader):
        self._reader = reader
        self.store = Store(reader.instance.facts_file, create=False)

    def client(self, address: IPAddress) -> Facts:
        """The facts of a client's session; empty without one."""
        session = self.store.session(pack(address))
        return session.facts if session else NOTHING

    def person(self, email: str) -> Facts | None:
        """The facts of any session with this email, or None."""
        for session in self.store.sessions():
            if session.facts.get(EMAIL) == (email,):
                return session.facts
        return None

    def names(self, client: IPAddress, address: IPAddress) -> tuple[str, ...]:
        """The names of an address: from the client's own DNS answers, else from those of all clients."""
        packed = pack(address)
        return self.store.names_at(pack(client), packed) or self.store.names_at(ANY_CLIENT, packed)

    @cached_property
    def _database(self) -> Any:
        from enforcer.facts.regions import Database

        path = self._reader.config["geoip"]["database"]
        return Database(Path(path)) if path else None

    def region(self, address: IPAddress) -> tuple[str | None, str | None]:
        """(country, continent) by the database file."""
        return self._database.find(address) if self._database is not None else (None, None)

    def connection(self, packet: Connection, client: Facts, names: tuple[str, ...]) -> Connection:
        """The connection with its regions, the client's facts and the origin's names."""
        return packet._replace(
            source_region=region_facts("src", *self.region(packet.src)),
            destination_region=region_facts("dst", *self.region(packet.dst)),
            client=client,
            hosts=tuple(map(host_facts, names)),
        )


def rules_in_force(reader: GatewayReader) -> list[Any]:
    """The policies in force, with the fields of enforcer.policy.reference.PolicyLike."""
    return [SimpleNamespace(**policy) for policy in reader.config["policies"]]
