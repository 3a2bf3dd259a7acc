"""Unanswered DNS questions: the daemon learns only from answers to them.

Limits hold for each client and in total, so the questions of one client do not displace those of others: at a
limit the oldest question (of this client, or of all) is removed, and its answer is not learnt. A client is an
IPv4 address or an IPv6 /64 (:func:`enforcer.facts.names.client_prefix`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

from enforcer.facts.names import client_prefix

LIFETIME = 10.0
"""Seconds. Resolver libraries wait for five (resolv.conf(5), timeout)."""
TOTAL = 32_768
OF_ONE_CLIENT = 4096


class QuestionKey(NamedTuple):
    """A question's client, port, resolver, protocol and DNS id."""

    client: bytes
    port: int
    server: bytes
    protocol: int
    number: int


Question = tuple[bytes, int, int]
"""Name, type and class."""


class Questions:
    """The questions. ``counts`` receives ``question-evicted`` and ``question-unanswered``."""

    def __init__(self, counts: Counter[str], total: int = TOTAL, of_one_client: int = OF_ONE_CLIENT) -> None:
        self._counts = counts
        self._total = total
        self._of_one_client = of_one_client
        self._questions: OrderedDict[QuestionKey, tuple[Question, float]] = OrderedDict()
        self._clients: dict[bytes, OrderedDict[QuestionKey, None]] = {}

    def __len__(self) -> int:
        return len(self._questions)

    def note(self, key: QuestionKey, question: Question, now: float) -> None:
        """Store a question; it replaces one with the same :class:`QuestionKey`."""
        self._remove(key)
        mine = self._clients.get(client_prefix(key.client))
        if mine is not None and len(mine) >= self._of_one_client:
            self._evict(next(iter(mine)))
        if len(self._questions) >= self._total:
            self._evict(next(iter(self._questions)))
        self._questions[key] = question, now + LIFETIME
        self._clients.setdefault(client_prefix(key.client), OrderedDict())[key] = None

    def find(self, key: QuestionKey, now: float) -> Question | None:
        """Return the question, or None if it is unknown or older than LIFETIME."""
        found = self._questions.get(key)
        return found[0] if found is not None and found[1] > now else None

    def answered(self, key: QuestionKey) -> None:
        """Remove an answered question."""
        self._remove(key)

    def expire(self, now: float) -> None:
        """Remove questions older than LIFETIME."""
        while self._questions:
            key, (_, until) = next(iter(self._questions.items()))
            if until > now:
                break
            self._counts["question-unanswered"] += 1
            self._remove(key)

    def _evict(self, key: QuestionKey) -> None:
        self._counts["question-evicted"] += 1
        self._remove(key)

    def _remove(self, key: QuestionKey) -> None:
        if self._questions.pop(key, None) is None:
            return
        client = client_prefix(key.client)
        mine = self._clients[client]
        del mine[key]
        if not mine:
            del self._clients[client]
