"""Tests of rule sets that are added to the bank in force: processes share them, their number is bounded."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_network
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from enforcer.config import load
from enforcer.datapath import settings
from enforcer.datapath.banks import ROOM, Bank, FullTableError, is_crowded, with_private
from enforcer.facts.kernel_facts import KernelFacts
from enforcer.facts.rows import COMMAND, NewSession
from enforcer.facts.store import Store
from enforcer.gateway.compiled_config import compile_config
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.operations import (
    SwitchTables,
)
from enforcer.gateway.preview import planned

from .box import Box

IPV4, IPV6 = IPv6Network("::ffff:0:0/96"), IPv6Network("::/0")


def in_force(box: Box) -> int:
    return settings.read(box.maps).bank_number


def test_processes_add_sets_without_a_clash(box: Box) -> None:
    number = in_force(box)
    one, other = Bank(box.maps, number), Bank(box.maps, number)
    room = one.room
    first = one.numbers_of([0b101 << 900, 0b110 << 900])
    second = other.numbers_of([0b111 << 900, 0b1000 << 900])
    assert len({*first, *second}) == 4
    assert one.numbers_of([0b110 << 900, 0b1001 << 900])[0] == first[1]
    assert one.room == other.room == room - 5
    # Another process finds the existing sets.
    assert Bank(box.maps, number).numbers_of([0b111 << 900, 0b101 << 900]) == [second[0], first[0]]
    assert one.room == room - 5


def test_a_bank_without_room_refuses_and_is_made_anew(box: Box) -> None:
    bank = Bank(box.maps, in_force(box))
    assert not is_crowded(box.maps)
    file = Path(box.directory / "enforcer.yaml")
    compiled = compile_config(load(file), str(file), box.gateway.state)
    assert not any(isinstance(each, SwitchTables) for each in planned(Gateway(box.instance), compiled))
    bank.numbers_of([1 << 20 | each for each in range(bank.room - ROOM // 8)])
    assert is_crowded(box.maps)
    before = bank.room
    with pytest.raises(FullTableError, match=r"more sets of rules are needed, \d+ have room"):
        bank.numbers_of([1 << 21 | each for each in range(before + 1)])
    assert bank.room == before
    # A reload of the same file makes room.
    assert any(isinstance(each, SwitchTables) for each in planned(Gateway(box.instance), compiled))
    box.apply(box.config)
    assert not is_crowded(box.maps)


def test_what_has_no_room_is_neither_stored_nor_in_force(box: Box) -> None:
    rules = [
        {"name": name, "precedence": number, "identity": text, "egress": "default"}
        for number, (name, text) in enumerate(
            {"ann": 'identity.email == "ann"', "bob": 'identity.email == "bob"'}.items()
        )
    ]
    kept = box.config
    box.apply({**kept, "policies": rules})
    try:
        new = NewSession(bytes(10) + b"\xff\xff\x0a\x01\x00\x07", {"identity.email": ("ann",)}, None)
        with Store(box.instance.facts_file) as store:
            current = KernelFacts(box.maps, store)
            bank = Bank(box.maps, in_force(box))
            bank.numbers_of([1 << 13 | each for each in range(bank.room)])
            with pytest.raises(FullTableError), store.transaction() as transaction:
                current.put_sessions(transaction.put_sessions([new], COMMAND))
            assert store.session(new.client) is None
            assert not len(box.maps.sessions.items()[0])
            # Applying the same file again makes room.
            box.apply(box.config)
            again = KernelFacts(box.maps, store)
            with store.transaction() as transaction:
                again.put_sessions(transaction.put_sessions([new], COMMAND))
            assert len(box.maps.sessions.items()[0]) == 1
            with store.transaction() as transaction:
                again.remove_sessions(transaction.remove_sessions([new.client]))
    finally:
        box.apply(kept)


def test_what_a_change_wrote_that_was_taken_back_is_nobodys(box: Box) -> None:
    """A rolled-back session leaves no row under its number, which other facts get next."""
    rules = [{"name": "ann", "precedence": 1, "identity": 'identity.email == "ann"', "egress": "default"}]
    kept = box.config
    box.apply({**kept, "policies": rules})
    try:
        one, other = (bytes(10) + b"\xff\xff\x0a\x01\x00" + bytes([last]) for last in (8, 9))
        with Store(box.instance.facts_file) as store:
            current = KernelFacts(box.maps, store)
            with pytest.raises(KeyboardInterrupt), store.transaction() as transaction:
                current.put_sessions(
                    transaction.put_sessions([NewSession(one, {"identity.email": ("eve",)}, None)], COMMAND)
                )
                raise KeyboardInterrupt
            assert len(box.maps.sessions.items()[0]) == 1
            with store.transaction() as transaction:
                current.put_sessions(
                    transaction.put_sessions([NewSession(other, {"identity.email": ("ann",)}, None)], COMMAND)
                )
            (key,) = box.maps.sessions.items()[0]
            assert key.tobytes() == other
            with store.transaction() as transaction:
                current.remove_sessions(transaction.remove_sessions([other]))
        assert not len(box.maps.sessions.items()[0])
    finally:
        box.apply(kept)


def test_new_maps_take_no_places_over(box: Box, tmp_path: Path) -> None:
    """A changed limit makes new maps, in which the former bank has no table of addresses."""
    database = tmp_path / "regions.mmdb"
    writer = MMDBWriter(6, "GeoLite2-Country", ipv4_compatible=True)
    writer.insert_network(IPSet(["198.18.0.0/15"]), {"country": {"iso_code": "DE"}})
    writer.to_db_file(str(database))
    kept = box.config
    rule = {"name": "de", "precedence": 1, "traffic": 'net.dst.geo.country == "DE"', "egress": "default"}
    config = {**kept, "policies": [rule], "geoip": {"database": str(database)}}
    box.apply(config)
    try:
        limits = {"connections_per_origin": 40000, "flows": 131072}
        box.apply({**config, "limits": limits})
        box.apply({**config, "limits": {**limits, "flows": 65536}})
    finally:
        box.apply(kept)


@pytest.mark.parametrize("network", ["::/0", "::/64"])
def test_an_ipv6_private_network_has_no_ipv4_address(network: str) -> None:
    merged = {
        str(each): flag for each, _, flag in with_private([(IPV6, 1), (IPV4, 2)], [ip_network(network)])
    }
    assert merged["::ffff:0:0/96"] == 0
    assert merged[network] == 1
