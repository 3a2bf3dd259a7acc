"""The named lists of a configuration file, as the language looks them up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

MAX_VALUES = 100_000
"""Of one list."""

_UUID = re.compile("[0-9a-f]{32}")


class Lists:
    """Values by name. Compared and hashed by identity, so that what was parsed with it can be cached."""

    __slots__ = ("_by_uuid", "_values")

    def __init__(self, values: Mapping[str, Sequence[str]]):
        self._values = {name: tuple(entries) for name, entries in values.items()}
        self._by_uuid = {digits: name for name in self._values if (digits := uuid(name))}

    def find(self, name: str) -> str | None:
        """Give a list's own name; a UUID is the same with and without dashes, in either case."""
        return name if name in self._values else self._by_uuid.get(uuid(name))

    def get(self, name: str) -> tuple[str, ...] | None:
        """Give a list's values; None for a name that is not there."""
        found = self.find(name)
        return None if found is None else self._values[found]

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def uuid(name: str) -> str:
    """Give a UUID's digits, however it is written; empty for any other name."""
    digits = name.lower().replace("-", "")
    return digits if _UUID.fullmatch(digits) else ""


NO_LISTS = Lists({})
