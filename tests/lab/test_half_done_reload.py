"""Tests of a reload whose applying process is killed before each of its effects: what was in force stays."""

from __future__ import annotations

import pytest
from halfdone import Enforced, Knocking, enforced, kill_at_every_effect, knocking

from lab.topology import Lab

__all__ = ["enforced", "knocking"]


@pytest.mark.timeout(900)
def test_killed_between_any_two_effects_of_a_reload(lab: Lab, enforced: Enforced, knocking: Knocking) -> None:
    kill_at_every_effect(lab, enforced, knocking, {})
