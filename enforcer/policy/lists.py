"""The named lists of a configuration file, as the language looks them up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


class Lists:
    """Values by name. Compared and hashed by identity, so that what was parsed with it can be cached."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Sequence[str]]):
        self._values = {name: tuple(entries) for name, entries in values.items()}

    def get(self, name: str) -> tuple[str, ...] | None:
        """Give a list's values; None for a name that is not there."""
        return self._values.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


NO_LISTS = Lists({})
