"""Where live connections go: their names are kept past their time."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np

from enforcer.datapath.maps import Map

_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)


class Alive(NamedTuple):
    """Of all flows that are not over."""

    origins: Container[bytes]
    """Addresses, 16 bytes each."""
    pairs: Container[bytes]
    """A client's address and an origin's behind it, 32 bytes each."""


class _Rows(Container[bytes]):
    """Rows by a word each: a set of a million rows would take five times as long, and 130 MB.

    That another row is taken for one of a million is ~1e-13; its name would live on for a while.
    """

    def __init__(self, words: Any):
        self._words = np.sort(words)

    def __contains__(self, row: object) -> bool:
        assert isinstance(row, bytes)
        (word,) = _mixed(np.frombuffer(row, dtype="<u8").reshape(1, -1))
        index = int(np.searchsorted(self._words, word))
        return index < len(self._words) and bool(self._words[index] == word)


def destinations(flows: Map) -> Alive:
    """Who goes where; 0.3 s for a million flows."""
    origins, pairs = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
    for every, values in flows.chunks():
        keys = every[values["counted"] == 1]
        both = np.concatenate([_halves(keys["client"]), _halves(keys["origin"])], axis=1)
        origins.append(np.unique(_mixed(both[:, 2:])))
        pairs.append(_mixed(both))
    return Alive(_Rows(np.concatenate(origins)), _Rows(np.concatenate(pairs)))


def _halves(addresses: Any) -> Any:
    return np.ascontiguousarray(addresses).view("<u8").reshape(-1, 2)


def _mixed(rows: Any) -> Any:
    """A word for each row."""
    mixed = np.zeros(len(rows), dtype=np.uint64)
    for column, factor in zip(rows.T, _MIX, strict=False):
        mixed = (mixed ^ (column * np.uint64(factor))) * np.uint64(_MIX[0])
        mixed ^= mixed >> np.uint64(32)
    return mixed
