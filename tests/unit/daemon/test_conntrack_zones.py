"""ConntrackZones: which flows that conntrack does not find count as gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from enforcer.daemon.conntrack_zones import MANY, MOST_ZONES, ConntrackZones
from enforcer.kernel import conntrack

KEY = np.dtype(
    [
        ("client", "<u4", 4),
        ("origin", "<u4", 4),
        ("client_port", "<u2"),
        ("origin_port", "<u2"),
        ("protocol", "u1"),
    ]
)


def keys(ports: Iterable[int]) -> np.ndarray:
    found = np.zeros(len(list(ports)), dtype=KEY)
    found["client_port"] = np.array(list(ports), dtype="<u2").byteswap()
    return found


class Kernel:
    """Stands in for conntrack: client ports by zone; ``used`` is the number of entries."""

    def __init__(self, zones: dict[int, set[int]], used: int = 0):
        self.there = zones
        self.used = used
        self.sampled = 0

    def missing(self, originals: Sequence[Any], zones: Sequence[int]) -> list[int]:
        known = set().union(*(self.there.get(zone, set()) for zone in zones))
        return [place for place, one in enumerate(originals) if one.source_port not in known]

    def zones(self, sample: int) -> list[int]:
        self.sampled += 1
        return [zone for zone, ports in self.there.items() if zone and ports][:sample]

    def fill(self) -> tuple[int, int]:
        return self.used, 1 << 16


@pytest.fixture
def tracked(said: list[str]) -> ConntrackZones:
    return ConntrackZones()


def use(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> Kernel:
    for name in ("missing", "zones", "fill"):
        monkeypatch.setattr(conntrack, name, getattr(kernel, name))
    return kernel


def gone(
    tracked: ConntrackZones, unanswered: Iterable[int], idle: Iterable[int], flows: int = 1000
) -> set[int]:
    found = tracked.gone(keys(unanswered), keys(idle), flows)
    return {int(port) for port in found["client_port"].byteswap()}


def test_what_is_in_no_zone_and_what_is_nowhere(
    tracked: ConntrackZones, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = use(monkeypatch, Kernel({0: {1, 2, 3}}, used=5000))
    assert gone(tracked, [1], [2, 3]) == set()
    assert kernel.sampled == 0  # all flows are in zone 0: no zones are read
    assert gone(tracked, [1, 8], [2, 3, 9]) == {8, 9}
    assert gone(tracked, [], []) == set()
    assert said == tracked.warnings == []


def test_other_zones_are_found(tracked: ConntrackZones, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = use(monkeypatch, Kernel({0: {1}, 7: {2, 4}, 9: {3}}))
    assert gone(tracked, [4], [1, 2, 3, 5]) == {5}
    sampled = kernel.sampled
    assert gone(tracked, [4], [1, 2, 3]) == set()
    assert kernel.sampled == sampled


def test_most_of_a_sample_is_missing(
    tracked: ConntrackZones, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = range(100, 100 + MANY)
    kernel = use(monkeypatch, Kernel({0: {1, 2}}, used=1000))
    assert gone(tracked, [7], many) == set()
    assert len(said) == len(tracked.warnings) == 1
    assert gone(tracked, [8], [100, 101, 1]) == set()  # suspended until most are found again
    assert len(said) == 1
    assert gone(tracked, [], []) == set()
    assert tracked.warnings
    kernel.there[0] |= set(many)
    assert gone(tracked, [7], [*many, 3]) == {7, 3}
    assert len(said) == 2
    assert tracked.warnings == []


def test_they_are_gone_if_conntrack_has_few_entries(
    tracked: ConntrackZones, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries were flushed (`conntrack -F`), or the table was full."""
    use(monkeypatch, Kernel({}, used=500))
    many = set(range(100, 100 + MANY))
    assert gone(tracked, [], many, flows=1000) == many
    assert said == []


def test_unanswered_ones_alone_say_nothing(
    tracked: ConntrackZones, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another firewall may drop their packets, so they prove no unknown zone."""
    use(monkeypatch, Kernel({0: {1}}, used=5000))
    many = set(range(100, 300))
    assert gone(tracked, many, [1]) == many
    assert said == []


def test_more_zones_than_are_looked_in(
    tracked: ConntrackZones, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = use(monkeypatch, Kernel({zone: {zone} for zone in range(1, MOST_ZONES + 2)}))
    assert gone(tracked, [], range(1, MOST_ZONES + 2)) == set()
    assert f"more than {MOST_ZONES} zones" in tracked.warnings[0]
    kernel.there = {1: {1}}
    assert gone(tracked, [], [1, 2]) == {2}
    assert tracked.warnings == []
    assert len(said) == 2
