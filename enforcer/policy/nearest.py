"""Which egress IP serves traffic that no policy matches: the nearest location, and by client within it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2s
from typing import Protocol

EARTH_RADIUS = 6371.0  # km, mean


class Coordinates(Protocol):
    """Coordinates in degrees; :class:`enforcer.config.Location` has them."""

    @property
    def latitude(self) -> float:
        """Degrees north."""

    @property
    def longitude(self) -> float:
        """Degrees east."""


def distance(here: Coordinates, there: Coordinates) -> float:
    """Give the great-circle distance in km (haversine formula)."""
    latitude1, latitude2 = math.radians(here.latitude), math.radians(there.latitude)
    turn = math.radians(there.longitude - here.longitude)
    half_chord = (
        math.sin((latitude2 - latitude1) / 2) ** 2
        + math.cos(latitude1) * math.cos(latitude2) * math.sin(turn / 2) ** 2
    )
    # Rounding can push antipodes past 1, where asin is undefined.
    return 2 * EARTH_RADIUS * math.asin(math.sqrt(min(1.0, half_chord)))


def nearest(here: Coordinates, candidates: Mapping[str, Coordinates]) -> list[str]:
    """Name the candidates from the nearest to the farthest; equally far ones by name."""
    return sorted(candidates, key=lambda name: (distance(here, candidates[name]), name))


def nearest_of(used: Collection[str], here: str, locations: Mapping[str, Coordinates]) -> str:
    """Name the location of ``used`` that is nearest to ``here``, one of all ``locations`` by name."""
    if here in used:  # another location may have the same coordinates
        return here
    return nearest(locations[here], {name: locations[name] for name in used})[0]


def buckets(names: Sequence[str], count: int) -> list[int]:
    """Give each of ``count`` buckets of clients one of ``names``, by its index.

    Rendezvous hashing: a bucket goes to the name with the highest score, and a score depends on nothing but
    the name and the bucket. So a name that goes away moves its own buckets only, one that is added takes
    only what becomes its own, and every run and gateway comes to the same result. ValueError for no names or
    equal ones.
    """
    import numpy

    if not names or len(set(names)) != len(names):
        raise ValueError("names must be distinct, and at least one")
    seeds = numpy.array([_seed(name.encode()) for name in names], dtype=numpy.uint64)
    chosen = []
    for bucket in range(count):
        score = seeds ^ numpy.uint64(_seed(bucket.to_bytes(8, "little")))
        # The finaliser of SplitMix64: every bit of the sum of name and bucket changes half of the score's.
        score ^= score >> numpy.uint64(30)
        score *= numpy.uint64(0xBF58476D1CE4E5B9)
        score ^= score >> numpy.uint64(27)
        score *= numpy.uint64(0x94D049BB133111EB)
        score ^= score >> numpy.uint64(31)
        chosen.append(int(score.argmax()))
    return chosen


def _seed(data: bytes) -> int:
    return int.from_bytes(blake2s(data, digest_size=8).digest(), "little")
