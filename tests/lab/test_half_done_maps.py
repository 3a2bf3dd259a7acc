"""Tests of a reload with new maps that is killed before its effects: live flows are carried over."""

from __future__ import annotations

import pytest
from halfdone import Enforced, Knocking, enforced, kill_at_every_effect, knocking

from lab.topology import Lab

__all__ = ["enforced", "knocking"]


@pytest.mark.timeout(900)
def test_killed_between_any_two_effects_with_other_maps(
    lab: Lab, enforced: Enforced, knocking: Knocking
) -> None:
    kill_at_every_effect(lab, enforced, knocking, {"flows": 4096})
