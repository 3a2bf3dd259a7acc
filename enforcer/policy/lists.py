"""The named lists of a configuration file, for `in $name`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

MAX_VALUES = 100_000
"""Limit for one list."""

_UUID = re.compile("[0-9a-f]{32}")


class Lists:
    """Values by name. Equality and hash are by identity: caches of parsed expressions use it as a key."""

    __slots__ = ("_by_uuid", "_values")

    def __init__(self, values: Mapping[str, Sequence[str]]):
        self._values = {name: tuple(entries) for name, entries in values.items()}
        self._by_uuid = {digits: name for name in self._values if (digits := uuid(name))}

    def find(self, name: str) -> str | None:
        """Return a list's own name, or None. UUIDs match with and without dashes, in either case."""
        return name if name in self._values else self._by_uuid.get(uuid(name))

    def get(self, name: str) -> tuple[str, ...] | None:
        """Return a list's values, or None."""
        found = self.find(name)
        return None if found is None else self._values[found]

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def uuid(name: str) -> str:
    """Return the 32 hexadecimal digits of a UUID in lower case; empty for any other name."""
    digits = name.lower().replace("-", "")
    return digits if _UUID.fullmatch(digits) else ""


NO_LISTS = Lists({})
