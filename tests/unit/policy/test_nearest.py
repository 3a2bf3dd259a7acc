"""The nearest location, and the distribution of clients over its egress IPs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from effort import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.config import Location
from enforcer.policy.nearest import buckets, distance, nearest, nearest_of


def place(latitude: float, longitude: float) -> Location:
    return Location(city="x", country="US", latitude=latitude, longitude=longitude)


LAX, NYC, LON = place(33.94, -118.41), place(40.64, -73.78), place(51.47, -0.45)


def test_distances_are_those_of_the_globe() -> None:
    assert distance(LAX, NYC) == pytest.approx(3974, rel=0.005)
    assert distance(NYC, LON) == pytest.approx(5540, rel=0.005)
    assert distance(LAX, LAX) == 0
    assert distance(place(90, 0), place(-90, 0)) == pytest.approx(20015, rel=0.001)
    assert distance(place(0, 179.5), place(0, -179.5)) == pytest.approx(111.2, rel=0.01)


def test_the_nearest_comes_first_and_equals_by_name() -> None:
    candidates = {"lon": LON, "nyc": NYC, "lax": LAX, "aaa": NYC}
    assert nearest(LAX, candidates) == ["lax", "aaa", "nyc", "lon"]
    assert nearest(LON, candidates) == ["lon", "aaa", "nyc", "lax"]
    assert nearest(LON, {}) == []


def test_the_nearest_location_that_is_used() -> None:
    locations = {"lon": LON, "nyc": NYC, "lax": LAX, "aaa": LAX}
    assert nearest_of({"lon", "nyc"}, "lax", locations) == "nyc"
    assert nearest_of({"lax", "aaa"}, "lax", locations) == "lax"
    assert nearest_of({"aaa", "lon"}, "lax", locations) == "aaa"


NAMES = st.lists(st.text("abc-0123", min_size=1, max_size=6), min_size=2, max_size=12, unique=True)


@given(NAMES, st.data())
@settings(max_examples=100, deadline=None)
def test_one_that_goes_away_moves_its_own_buckets_only(names: list[str], data: st.DataObject) -> None:
    before = [names[index] for index in buckets(names, 256)]
    gone = data.draw(st.sampled_from(names))
    left = [name for name in names if name != gone]
    after = [left[index] for index in buckets(left, 256)]
    assert all(old in (new, gone) for old, new in zip(before, after, strict=True))


@given(NAMES, st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_names_does_not_matter(names: list[str], source: object) -> None:
    shuffled = sorted(names, key=lambda _: source.random())  # type: ignore[attr-defined]
    one = [names[index] for index in buckets(names, 128)]
    two = [shuffled[index] for index in buckets(shuffled, 128)]
    assert one == two


def test_buckets_are_shared_evenly() -> None:
    shares = Counter(buckets([f"lax-{i}" for i in range(8)], 1024))
    assert len(shares) == 8
    assert all(90 < share < 170 for share in shares.values()), shares


def test_every_run_comes_to_the_same_buckets() -> None:
    code = "from enforcer.policy.nearest import buckets; print(buckets(['a', 'b', 'c'], 64))"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert runs == {f"{buckets(['a', 'b', 'c'], 64)}\n"}


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_must_be_distinct_and_some(names: list[str]) -> None:
    with pytest.raises(ValueError, match="distinct"):
        buckets(names, 8)


def test_a_bucket_costs_the_same_whatever_names_there_are() -> None:
    """All names are handled in one step: a step per name and bucket would be four million."""
    names = [f"egress-{i}" for i in range(4000)]
    assert len(buckets(names, 1024)) == 1024
    assert calls(lambda: buckets(names, 1024)) < 50_000
