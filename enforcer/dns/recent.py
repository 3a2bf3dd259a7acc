"""What was learnt lately, so that the many answers about few names cost no change of the store."""

from __future__ import annotations

from collections.abc import Iterable

from enforcer.dns.reader import Answer
from enforcer.facts.numbers import digest

LIMIT = 16_384
"""Answers; up to 600 bytes each."""

_Key = tuple[str, bytes]
"""A name, and the digest of the client and the addresses: an answer may have 64 of them."""


class RecentAnswers:
    """An answer that would extend a name's time by less than ``slack`` seconds is as good as known."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._until: dict[_Key, float] = {}
        self._keys: dict[str, set[_Key]] = {}

    def new(self, answers: list[Answer], slack: float) -> list[Answer]:
        """Those that there is something to learn of."""
        return [one for one in answers if self._until.get(_key(one), 0.0) < one.expires - slack]

    def add(self, answers: list[Answer]) -> None:
        """These are in the store now."""
        for answer in answers:
            key = _key(answer)
            self._until.pop(key, None)
            self._until[key] = answer.expires
            self._keys.setdefault(answer.name, set()).add(key)
        while len(self._until) > self._limit:
            key = next(iter(self._until))
            del self._until[key]
            self._keys[key[0]].discard(key)
            if not self._keys[key[0]]:
                del self._keys[key[0]]

    def forget(self, names: Iterable[str]) -> None:
        """These are not in the store any more, for some client and address."""
        for name in names:
            for key in self._keys.pop(name, ()):
                del self._until[key]


def _key(answer: Answer) -> _Key:
    return answer.name, digest(b"".join((answer.client, *answer.addresses)))
