"""A fair queue of held answers: no client waits for the flood of another one.

Clients take turns as in fq_codel (RFC 8290, 4.2): deficit round robin by the cost of answers, where a new
client (without waiting answers) comes before clients with a backlog. Limits bound each client's backlog and
the share of the daemon's time that its answers take.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

QUANTUM = 2048
"""Cost that a client may spend in each turn."""
QUANTUM_OF_NEW = 4096
"""Cost that new clients may spend together in one turn."""
BACKLOG = 32 << 10
"""Limit for one client's waiting answers, in cost; a single answer is always accepted."""
BACKLOG_OF_ALL = 8 << 20
SHARE = 0.75
"""Share of one processor's time for the answers of one client."""
BURST = 1.0
"""Seconds of processor time that a client may use at once after a pause."""

Item = TypeVar("Item")


class _Client(Generic[Item]):
    """The waiting items of one client."""

    def __init__(self) -> None:
        self.items: deque[tuple[Item, int]] = deque()
        self.backlog = 0
        self.deficit = 0

    def turn(self) -> list[Item]:
        """Return the items that one more quantum pays for."""
        taken = []
        self.deficit += QUANTUM
        while self.items and self.items[0][1] <= self.deficit:
            item, cost = self.items.popleft()
            taken.append(item)
            self.deficit -= cost
            self.backlog -= cost
        if not self.items:
            self.deficit = 0
        return taken


class FairQueue(Generic[Item]):
    """Waiting items by client."""

    def __init__(self) -> None:
        self._new_clients: OrderedDict[Hashable, _Client[Item]] = OrderedDict()
        """New clients, which have had no turn yet."""
        self._old_clients: OrderedDict[Hashable, _Client[Item]] = OrderedDict()
        """All other clients. An empty one stays, so that it is not new again, until its next turn."""
        self._served_new = False
        """Whether the last turn was for new clients."""
        self._backlog = 0

    def __bool__(self) -> bool:
        return self._backlog > 0

    def put(self, client: Hashable, item: Item, cost: int) -> bool:
        """Append an item; return False if a limit refuses it."""
        found = self._new_clients.get(client) or self._old_clients.get(client)
        backlog = found.backlog if found else 0
        if backlog and (backlog + cost > BACKLOG or self._backlog + cost > BACKLOG_OF_ALL):
            return False
        if found is None:
            found = self._new_clients[client] = _Client()
        found.items.append((item, cost))
        found.backlog += cost
        self._backlog += cost
        return True

    def next_turn(self, may: Callable[[Hashable], bool] = lambda _: True) -> list[Item]:
        """Return the items of the next turn: of several new clients, or of one client with a backlog.

        A client for which ``may`` is false keeps its items; the result is empty if it is false for all. Every
        second turn is for clients with a backlog.
        """
        for new in (not self._served_new, self._served_new):
            taken = self._turn_of_new(may) if new else self._turn_of_old(may)
            if taken:
                self._served_new = new
                return taken
        return []

    def _turn_of_new(self, may: Callable[[Hashable], bool]) -> list[Item]:
        before = self._backlog
        taken: list[Item] = []
        while self._new_clients and before - self._backlog < QUANTUM_OF_NEW:
            client, found = self._new_clients.popitem(last=False)
            self._old_clients[client] = found
            if may(client):
                taken += self._turn(found)
        return taken

    def _turn_of_old(self, may: Callable[[Hashable], bool]) -> list[Item]:
        passed_over = 0
        while passed_over < len(self._old_clients):
            client, found = self._old_clients.popitem(last=False)
            if not found.items:
                continue
            self._old_clients[client] = found
            if not may(client):
                passed_over += 1
                continue
            passed_over = 0
            if taken := self._turn(found):
                return taken
        return []

    def _turn(self, client: _Client[Item]) -> list[Item]:
        before = client.backlog
        taken = client.turn()
        self._backlog -= before - client.backlog
        return taken


class TimeBudget:
    """The processor time that each client's items have taken, limited to SHARE of elapsed time."""

    def __init__(self) -> None:
        self._used: dict[Hashable, tuple[float, float]] = {}
        """Seconds used beyond the share, and the time at which that was computed."""

    def __len__(self) -> int:
        return len(self._used)

    def has(self, client: Hashable, now: float) -> bool:
        """Return whether the client has time left."""
        return self._owed(client, now) < BURST

    def spend(self, shares: Iterable[tuple[Hashable, float]], seconds: float, now: float) -> None:
        """Divide the seconds that items took among their clients, in proportion to ``shares``."""
        shares = list(shares)
        whole = sum(share for _, share in shares)
        for client, share in shares:
            self._used[client] = self._owed(client, now) + seconds * share / whole, now

    def expire(self, now: float) -> None:
        """Remove clients that have their full budget again."""
        self._used = {client: used for client, used in self._used.items() if self._owed(client, now) > 0.0}

    def _owed(self, client: Hashable, now: float) -> float:
        used, since = self._used.get(client, (0.0, now))
        return max(0.0, used - SHARE * (now - since))
