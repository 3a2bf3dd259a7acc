"""Chooses egress IPs for traffic without a matching policy: nearest location, then one per client bucket."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2s
from typing import Protocol

EARTH_RADIUS = 6371.0  # km, mean


class Coordinates(Protocol):
    """Coordinates of a location; :class:`enforcer.config.Location` has them."""

    @property
    def latitude(self) -> float:
        """Degrees north."""

    @property
    def longitude(self) -> float:
        """Degrees east."""


def distance(here: Coordinates, there: Coordinates) -> float:
    """Return the great-circle distance in km (haversine formula)."""
    latitude1, latitude2 = math.radians(here.latitude), math.radians(there.latitude)
    turn = math.radians(there.longitude - here.longitude)
    half_chord = (
        math.sin((latitude2 - latitude1) / 2) ** 2
        + math.cos(latitude1) * math.cos(latitude2) * math.sin(turn / 2) ** 2
    )
    # Rounding can push antipodes past 1, where asin is undefined.
    return 2 * EARTH_RADIUS * math.asin(math.sqrt(min(1.0, half_chord)))


def nearest(here: Coordinates, candidates: Mapping[str, Coordinates]) -> list[str]:
    """Return the candidates' names from the nearest to the farthest; ties are in order of name."""
    return sorted(candidates, key=lambda name: (distance(here, candidates[name]), name))


def nearest_of(used: Collection[str], here: str, locations: Mapping[str, Coordinates]) -> str:
    """Return the location in ``used`` nearest to ``here``; ``locations`` has the coordinates of all."""
    if here in used:  # another location may have the same coordinates
        return here
    return nearest(locations[here], {name: locations[name] for name in used})[0]


def buckets(names: Sequence[str], count: int) -> list[int]:
    """Assign each of ``count`` client buckets to one of ``names``; return the index of each bucket's name.

    Rendezvous hashing: a bucket belongs to the name with the highest score, and a score depends on the name
    and the bucket only. So removing a name moves its own buckets only, adding a name moves only the buckets
    that it gets, and every run on every gateway gives the same result. ValueError for an empty list or
    duplicate names.
    """
    import numpy

    if not names or len(set(names)) != len(names):
        raise ValueError("names must be distinct, and at least one")
    seeds = numpy.array([_seed(name.encode()) for name in names], dtype=numpy.uint64)
    chosen = []
    for bucket in range(count):
        score = seeds ^ numpy.uint64(_seed(bucket.to_bytes(8, "little")))
        # The finaliser of SplitMix64: each input bit changes half of the output bits.
        score ^= score >> numpy.uint64(30)
        score *= numpy.uint64(0xBF58476D1CE4E5B9)
        score ^= score >> numpy.uint64(27)
        score *= numpy.uint64(0x94D049BB133111EB)
        score ^= score >> numpy.uint64(31)
        chosen.append(int(score.argmax()))
    return chosen


def _seed(data: bytes) -> int:
    return int.from_bytes(blake2s(data, digest_size=8).digest(), "little")
