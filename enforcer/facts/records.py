"""Country and continent of one record of a MaxMind DB file (format 2.0, "Data Section").

Reads nothing else of a record. maxminddb's decoders read all of it, cities in eight languages, and a city
database has hundreds of thousands of records: the one in Python takes 100 µs for each, and the one in C ends
the process on some broken files.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

Region = tuple[str | None, str | None]
"""ISO 3166-1 country and continent code (AF, AN, AS, EU, NA, OC, SA), each as far as it is known."""

UNKNOWN_REGION: Region = (None, None)

_POINTER, _TEXT, _MAP, _ARRAY, _BOOLEAN, _LAST = 1, 2, 7, 11, 14, 15
_POINTER_OFFSETS = (0, 2048, 526336, 0)
_MAX_VALUES = 1 << 16  # of one record, as in the format's advice


class BrokenRecordError(ValueError):
    """What stands there is no record."""


class Records:
    """The records of an open file; ``base`` is where they begin."""

    def __init__(self, content: mmap, base: int):
        self._content = content
        self._end = len(content)
        self._base = base
        self._texts: dict[int, bytes] = {}
        self._codes: dict[tuple[int, bytes], str | None] = {}

    def region(self, offset: int) -> Region:
        """Give the region of the record that begins at ``offset`` of the file; BrokenRecordError."""
        try:
            return self._region(offset)
        except IndexError:
            raise BrokenRecordError("it ends behind the file's end") from None

    def _region(self, offset: int) -> Region:
        country: str | None = None
        continent: str | None = None
        missing = 2
        for key, at in self._items(offset):
            if key == b"country":
                country = self._code(at, b"iso_code")
                missing -= 1
            elif key == b"continent":
                continent = self._code(at, b"code")
                missing -= 1
            if not missing:
                break
        return country, continent

    def _code(self, offset: int, wanted: bytes) -> str | None:
        """The text under one key of a map; countries and continents are shared by many records."""
        _, _, at, _ = self._value(offset)
        if (at, wanted) not in self._codes:
            found = None
            for key, inner in self._items(offset):
                kind, size, start, _ = self._value(inner)
                if key == wanted and kind == _TEXT:
                    found = self._bytes(start, size).decode("utf-8", "replace")
            self._codes[at, wanted] = found or None
        return self._codes[at, wanted]

    def _items(self, offset: int) -> Iterator[tuple[bytes, int]]:
        """Yields each key of a map and where its value is; nothing of what is no map."""
        kind, size, offset, _ = self._value(offset)
        if kind != _MAP:
            return
        for _ in range(size):
            kind, length, start, offset = self._value(offset)
            if kind != _TEXT:
                raise BrokenRecordError("a key is no text")
            if start not in self._texts:
                self._texts[start] = self._bytes(start, length)
            yield self._texts[start], offset
            offset = self._behind(offset)

    def _bytes(self, start: int, size: int) -> bytes:
        if start + size > self._end:
            raise IndexError
        return self._content[start : start + size]

    def _control(self, offset: int) -> tuple[int, int, int]:
        """Type, size (a pointer's target) and where the value's own bytes begin."""
        content = self._content
        control = content[offset]
        kind, size, offset = control >> 5, control & 0x1F, offset + 1
        if kind == _POINTER:
            length = (size >> 3) + 1
            value = int.from_bytes(self._bytes(offset, length), "big")
            if length < 4:
                value |= (size & 7) << 8 * length
            return kind, self._base + value + _POINTER_OFFSETS[length - 1], offset + length
        if kind == 0:
            kind, offset = content[offset] + 7, offset + 1
            if not _MAP < kind <= _LAST:
                raise BrokenRecordError("a value is of no known type")
        if size >= 29 and kind != _BOOLEAN:
            length = size - 28
            size = (29, 285, 65821)[length - 1] + int.from_bytes(self._bytes(offset, length), "big")
            offset += length
        return kind, size, offset

    def _value(self, offset: int) -> tuple[int, int, int, int]:
        """Type, size and bytes of a value, its pointer followed, and where the next one begins.

        That is only known here of a value that a pointer leads to, and of a text.
        """
        kind, size, start = self._control(offset)
        if kind != _POINTER:
            return kind, size, start, start + size
        behind = start
        kind, size, start = self._control(size)
        if kind == _POINTER:
            raise BrokenRecordError("a pointer leads to a pointer")
        return kind, size, start, behind

    def _behind(self, offset: int) -> int:
        """Where the next value begins."""
        waiting, seen = 1, 0
        while waiting:
            kind, size, offset = self._control(offset)
            waiting -= 1
            seen += 1
            if kind == _MAP:
                waiting += 2 * size
            elif kind == _ARRAY:
                waiting += size
            elif kind not in (_POINTER, _BOOLEAN):
                offset += size
            if waiting + seen > _MAX_VALUES:
                raise BrokenRecordError("it has too many values")
        return offset
