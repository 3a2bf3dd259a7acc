"""Sets of rules that are added to a bank in force: shared by processes, and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from enforcer.apply import planned, target
from enforcer.config import load
from enforcer.datapath.banks import BANK, ROOM, Bank, FullTableError, is_crowded
from enforcer.facts.inforce import InForce
from enforcer.facts.rows import COMMAND, NewSession
from enforcer.facts.store import Store
from enforcer.gateway import Gateway
from enforcer.plan import SwitchTables

from .box import Box


def in_force(box: Box) -> int:
    settings = box.maps.settings.get(0)
    assert settings is not None
    return int(settings["bank"]) & BANK


def test_processes_add_sets_without_a_clash(box: Box) -> None:
    number = in_force(box)
    one, other = Bank(box.maps, number), Bank(box.maps, number)
    room = one.room
    first = one.numbers_of([0b101, 0b110])
    second = other.numbers_of([0b111, 0b1000])
    assert len({*first, *second}) == 4
    assert one.numbers_of([0b110, 0b1001])[0] == first[1]
    assert one.room == other.room == room - 5


def test_a_bank_without_room_refuses_and_is_made_anew(box: Box) -> None:
    bank = Bank(box.maps, in_force(box))
    assert not is_crowded(box.maps)
    file = Path(box.directory / "enforcer.yaml")
    aim = target(load(file), str(file), box.gateway.state)
    assert not any(isinstance(each, SwitchTables) for each in planned(Gateway(box.instance), aim))
    bank.numbers_of([1 << 20 | each for each in range(bank.room - ROOM // 8)])
    assert is_crowded(box.maps)
    before = bank.room
    with pytest.raises(FullTableError, match=r"more sets of rules are needed, \d+ have room"):
        bank.numbers_of([1 << 21 | each for each in range(before + 1)])
    assert bank.room == before
    # A reload of the same file makes room.
    assert any(isinstance(each, SwitchTables) for each in planned(Gateway(box.instance), aim))
    box.apply(box.config)
    assert not is_crowded(box.maps)


def test_what_has_no_room_is_neither_stored_nor_in_force(box: Box) -> None:
    rule = {"name": "ann", "precedence": 1, "identity": 'identity.email == "ann"', "egress": "default"}
    kept = box.config
    box.apply({**kept, "policies": [rule]})
    try:
        new = NewSession(bytes(10) + b"\xff\xff\x0a\x01\x00\x07", {"identity.email": ("ann",)}, None)
        with Store(box.instance.facts_file) as store:
            current = InForce(box.maps, store)
            bank = Bank(box.maps, in_force(box))
            bank.numbers_of([1 << 13 | each for each in range(bank.room)])
            with pytest.raises(FullTableError), store.change() as change:
                current.put(change.put_sessions([new], COMMAND))
            assert store.session(new.client) is None
            assert not len(box.maps.sessions.items()[0])
            # Room is made by applying the same file again.
            box.apply(box.config)
            with store.change() as change:
                InForce(box.maps, store).put(change.put_sessions([new], COMMAND))
            assert len(box.maps.sessions.items()[0]) == 1
    finally:
        box.apply(kept)
