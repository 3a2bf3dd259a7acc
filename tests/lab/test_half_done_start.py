"""Tests of a first start whose applying process is killed before each of its effects."""

from __future__ import annotations

import pytest
from halfdone import Enforced, Knocking, before, check_new, enforced, knocking, watched
from snapshot import difference, snapshot

from lab.topology import SHARED, Lab

__all__ = ["enforced", "knocking"]


@pytest.mark.timeout(900)
def test_killed_between_any_two_effects_of_the_first_start(
    lab: Lab, enforced: Enforced, knocking: Knocking
) -> None:
    gateway = enforced.gateway
    gateway.write(before(lab))
    gateway.start()
    effects = enforced.effects()
    gateway.stop()
    gateway.run("down")
    untouched = snapshot(lab.gw)
    with watched(lab, knocking):
        for number, effect in enumerate(effects):
            if effect == "write" == effects[number - 1]:
                continue  # one case covers a series of kernel settings
            when = f"killed before effect {number}, {effect}, of {effects}"
            enforced.interrupt(number)
            gateway.start()
            assert enforced.interrupted, when
            enforced.healed()
            check_new(lab, (SHARED,), when)
            assert knocking.heard() == [], when
            gateway.stop()
            gateway.run("down")
            assert difference(untouched, snapshot(lab.gw)) == "", when
