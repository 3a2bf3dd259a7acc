"""Questions that were seen and not answered yet: only their answers count.

Bounded in all and for each client, so that one client that asks very much takes nothing from others: at
a bound the oldest question goes (of this client, or of all), and its answer will not be learnt. A client is
an IPv4 address or an IPv6 /64 (:func:`enforcer.facts.names.client_prefix`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

from enforcer.facts.names import client_prefix

LIFETIME = 10.0
"""Seconds. Resolver libraries give up after five (resolv.conf(5), timeout)."""
TOTAL = 32_768
OF_ONE_CLIENT = 4096


class Asker(NamedTuple):
    """Where a question came from and went to, and its number."""

    client: bytes
    port: int
    server: bytes
    protocol: int
    number: int


Asked = tuple[bytes, int, int]
"""Name, type and class."""


class Questions:
    """``counts`` gets ``question-evicted`` and ``question-unanswered``."""

    def __init__(self, counts: Counter[str], total: int = TOTAL, of_one_client: int = OF_ONE_CLIENT) -> None:
        self._counts = counts
        self._total = total
        self._of_one_client = of_one_client
        self._asked: OrderedDict[Asker, tuple[Asked, float]] = OrderedDict()
        self._clients: dict[bytes, OrderedDict[Asker, None]] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def note(self, asker: Asker, asked: Asked, now: float) -> None:
        """Remembers a question; one with the same number from the same place takes its predecessor's."""
        self._remove(asker)
        mine = self._clients.get(client_prefix(asker.client))
        if mine is not None and len(mine) >= self._of_one_client:
            self._evict(next(iter(mine)))
        if len(self._asked) >= self._total:
            self._evict(next(iter(self._asked)))
        self._asked[asker] = asked, now + LIFETIME
        self._clients.setdefault(client_prefix(asker.client), OrderedDict())[asker] = None

    def asked(self, asker: Asker, now: float) -> Asked | None:
        """What was asked; None if nothing was, or too long ago."""
        found = self._asked.get(asker)
        return found[0] if found is not None and found[1] > now else None

    def answered(self, asker: Asker) -> None:
        """The question has its answer."""
        self._remove(asker)

    def expire(self, now: float) -> None:
        """Forgets what nobody has answered in time."""
        while self._asked:
            asker, (_, until) = next(iter(self._asked.items()))
            if until > now:
                break
            self._counts["question-unanswered"] += 1
            self._remove(asker)

    def _evict(self, asker: Asker) -> None:
        self._counts["question-evicted"] += 1
        self._remove(asker)

    def _remove(self, asker: Asker) -> None:
        if self._asked.pop(asker, None) is None:
            return
        client = client_prefix(asker.client)
        mine = self._clients[client]
        del mine[asker]
        if not mine:
            del self._clients[client]
