"""What many messages have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from typing import TypeVar

Thing = TypeVar("Thing")


def abridged(things: Collection[Thing], shown: int = 3, text: Callable[[Thing], object] = str) -> str:
    """The first ``shown`` of some things, each as ``text`` gives it, and how many more there are."""
    more = len(things) - shown
    return ", ".join(str(text(thing)) for thing in islice(things, shown)) + (
        f" and {more:,} more" if more > 0 else ""
    )
