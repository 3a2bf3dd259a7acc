"""Whose held answer is dealt with next, so that no client waits for another one's flood.

Clients take turns as in fq_codel (RFC 8290, 4.2): deficit round robin by what answers cost, in which a client
of which nothing waited comes before those that have a backlog. What waits is bounded for each client, and so
is the share of the daemon's time that a client's answers take.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

QUANTUM = 2048
"""What a client's answers may cost at each of its turns."""
TOGETHER = 4096
"""What the answers of clients without a backlog may cost that are taken at once."""
BACKLOG = 32 << 10
"""What may wait of one client; a single answer always may."""
BACKLOG_OF_ALL = 8 << 20
SHARE = 0.75
"""Of one processor's time, for one client's answers."""
BURST = 1.0
"""Seconds of it that a client may use at once, when it has used none for a while."""

Item = TypeVar("Item")


class _Client(Generic[Item]):
    """What waits of one client."""

    def __init__(self) -> None:
        self.items: deque[tuple[Item, int]] = deque()
        self.backlog = 0
        self.deficit = 0

    def turn(self) -> list[Item]:
        """What one more quantum pays for."""
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
    """Items that wait, by client."""

    def __init__(self) -> None:
        self._fresh: OrderedDict[Hashable, _Client[Item]] = OrderedDict()
        """Clients that have not had a turn since they came."""
        self._round: OrderedDict[Hashable, _Client[Item]] = OrderedDict()
        """The others. Of some nothing waits: until the round comes to them, they are not fresh again."""
        self._was_fresh = False
        """Whether the last turn was of fresh clients."""
        self._backlog = 0

    def __bool__(self) -> bool:
        return self._backlog > 0

    def put(self, client: Hashable, item: Item, cost: int) -> bool:
        """Appends an item, unless too much waits already."""
        found = self._fresh.get(client) or self._round.get(client)
        backlog = found.backlog if found else 0
        if backlog and (backlog + cost > BACKLOG or self._backlog + cost > BACKLOG_OF_ALL):
            return False
        if found is None:
            found = self._fresh[client] = _Client()
        found.items.append((item, cost))
        found.backlog += cost
        self._backlog += cost
        return True

    def next_turn(self, may: Callable[[Hashable], bool] = lambda _: True) -> list[Item]:
        """The items whose turn it is: of some clients without a backlog, or of one with. Empty if none may.

        A client that may not keeps what waits. However many clients come, every second turn is the round's.
        """
        for fresh in (not self._was_fresh, self._was_fresh):
            taken = self._fresh_turn(may) if fresh else self._backlog_turn(may)
            if taken:
                self._was_fresh = fresh
                return taken
        return []

    def _fresh_turn(self, may: Callable[[Hashable], bool]) -> list[Item]:
        before = self._backlog
        taken: list[Item] = []
        while self._fresh and before - self._backlog < TOGETHER:
            client, found = self._fresh.popitem(last=False)
            self._round[client] = found
            if may(client):
                taken += self._turn(found)
        return taken

    def _backlog_turn(self, may: Callable[[Hashable], bool]) -> list[Item]:
        passed_over = 0
        while passed_over < len(self._round):
            client, found = self._round.popitem(last=False)
            if not found.items:
                continue
            self._round[client] = found
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
    """Seconds that each client's items have taken, against SHARE of all time."""

    def __init__(self) -> None:
        self._used: dict[Hashable, tuple[float, float]] = {}
        """Seconds used and not yet earned again, as of a time."""

    def __len__(self) -> int:
        return len(self._used)

    def has(self, client: Hashable, now: float) -> bool:
        """Whether there is any time left for this client."""
        return self._owed(client, now) < BURST

    def spend(self, shares: Iterable[tuple[Hashable, float]], seconds: float, now: float) -> None:
        """Divides the time that items took among their clients; ``shares`` are in any unit."""
        shares = list(shares)
        whole = sum(share for _, share in shares)
        for client, share in shares:
            self._used[client] = self._owed(client, now) + seconds * share / whole, now

    def expire(self, now: float) -> None:
        """Forgets clients that have all their time again."""
        self._used = {client: used for client, used in self._used.items() if self._owed(client, now) > 0.0}

    def _owed(self, client: Hashable, now: float) -> float:
        used, since = self._used.get(client, (0.0, now))
        return max(0.0, used - SHARE * (now - since))
