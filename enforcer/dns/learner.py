"""Learning the names of addresses from DNS answers, before their clients have them.

The kernel copies questions and holds answers (:mod:`enforcer.kernel.nft.messages`). An answer that belongs to
a question that was seen is learnt: stored, and written to the kernel's map. Only then it is let go. So the
first connection made on an answer is already decided by the rules about its name.

Clients take turns (:mod:`enforcer.dns.fair`). What is above a client's share goes on at once without being
learnt, or is dropped with ``when_down: drop``; everything else that is not learnt goes on as it came. All of
it is counted by name (:mod:`enforcer.dns.counts`).
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol, Self

from enforcer.dns import packet
from enforcer.dns.alive import Alive
from enforcer.dns.counts import COUNTS
from enforcer.dns.fair import FairQueue, TimeBudget
from enforcer.dns.reader import Answer, Reader, learning_config
from enforcer.dns.recent import RecentAnswers
from enforcer.dns.watchdog import Watchdog
from enforcer.errors import BusyError, EnforcerError, KernelError
from enforcer.facts.names import FIRST, ExpiryCursor, client_prefix
from enforcer.facts.rows import Names
from enforcer.facts.store import Store
from enforcer.kernel import nfqueue, nft
from enforcer.kernel.nflog import Log
from enforcer.kernel.nfqueue import Queue
from enforcer.kernel.nft.ruleset import DNS_ANSWERS_OVER, DNS_QUESTIONS_OVER, DNS_QUEUE

OVERHEAD = 64
"""Cost of an answer besides its bytes."""
AT_ONCE = nfqueue.LENGTH
"""Packets read at once: all that the kernel holds."""
# All copies of questions that came before the held answers must be read before these. The socket's buffer
# holds about 16,384; more may come while they are read, and answers must not wait for ever.
_COPIES_AT_MOST = 32_768
_COPIES_AT_ONCE = 1024
COPIES_OF_CLIENT = 512
"""Questions of one client that are looked at of those that have come since the last turn."""
_COPIES_TIME = 0.25
# Seconds until clients that have used their share of the time are looked at again.
_PAUSE = 0.005
# Seconds that the loop waits for another change of the store: less than an answer may be held.
_PATIENCE = 0.2
# Seconds in which a store or table that has refused one answer is not asked again.
_REFUSED = 1.0
# Names looked at in one turn, when their time is over.
_NAMES_AT_ONCE = 1000
_TICK = 1.0
_SAY_EVERY = 60.0
# What live flows keep past its time is looked at again after this; reading a million flows takes 0.2 s.
_LOOK_AGAIN = 10.0
_REST = 50
_SLACK = 5.0


class Tables(Protocol):
    """The kernel's side: :class:`enforcer.facts.kernel_facts.KernelFacts`."""

    def refresh(self) -> None:
        """Take up the bank in force."""

    def named(self, names: Names) -> None:
        """Write what changed."""


class _Held(NamedTuple):
    """An answer that waits for its turn."""

    packet: nfqueue.Packet
    client: bytes
    cost: int


class _Round(NamedTuple):
    """One look at all names whose time is over, some at a turn."""

    began: float
    alive: Alive
    cursor: ExpiryCursor


class Learner:
    """The daemon's part: reads, learns, lets go. A context manager; raises BusyError, KernelError.

    ``say`` receives lines for the journal. ``alive`` gives the destinations of live flows
    (:func:`enforcer.dns.alive.destinations`). After it is made, and after :meth:`use`, :meth:`drain` is to be
    called once: what came meanwhile has been read.
    """

    def __init__(
        self,
        store: Store,
        tables: Tables,
        config: Mapping[str, Any],
        *,
        say: Callable[[str], None],
        alive: Callable[[], Alive],
    ) -> None:
        self._store = store
        self._tables = tables
        self._say = say
        self._alive = alive
        self._reader = Reader(learning_config(config))
        self.counts = self._reader.counts
        self._recent = RecentAnswers()
        self._waiting: FairQueue[_Held] = FairQueue()
        self._budget = TimeBudget()
        self._said = -_SAY_EVERY
        self._look = 0.0
        self._round: _Round | None = None
        self._refused: tuple[float, EnforcerError] | None = None
        passes = self._reader.config.fail_open
        with ExitStack() as stack:
            # Questions first: an answer that is held must have its question.
            self._log = Log(DNS_QUEUE)
            stack.callback(self._log.close)
            self._queue = Queue(DNS_QUEUE, fail_open=passes)
            stack.callback(self._queue.close)
            self._watchdog = Watchdog(self._queue, fail_open=passes, say=say)
            # It lets go what is held, before the queue is closed.
            stack.callback(self._watchdog.close)
            self._poll = select.epoll()
            stack.callback(self._poll.close)
            for source in (self._log, self._queue):
                self._poll.register(source, select.EPOLLIN)
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it."""
        self._closing.close()

    def use(self, store: Store, tables: Tables, config: Mapping[str, Any]) -> None:
        """Another configuration: questions and streams stay, and the queue is not let go."""
        self._store, self._tables = store, tables
        self._recent = RecentAnswers()
        self._round = self._refused = None
        before = self._reader.config.fail_open
        self._reader.configure(learning_config(config))
        passes = self._reader.config.fail_open
        if passes != before:
            self._queue.fail_open(passes)
            self._watchdog.fail_open(passes)

    def fileno(self) -> int:
        """Readable when :meth:`drain` has something to do."""
        return self._poll.fileno()

    def drain(self) -> float | None:
        """Reads what has come, and learns some of it and lets it go; never waits for packets.

        Returns in how many seconds to come again for what waits for its turn, if anything does.
        """
        now = time.monotonic()
        self._take_in()
        turn = self._waiting.take(lambda client: self._budget.has(client, now))
        if turn:
            self._do(turn, now)
        else:
            self._note(_COPIES_AT_ONCE, now, Counter())
        if not self._waiting:
            return None
        return 0.0 if turn else _PAUSE

    def _do(self, turn: list[_Held], now: float) -> None:
        began = time.thread_time()
        try:
            self._note_all(now)
            time_of_day = time.time()
            self._learn([answer for held in turn for answer in self._read(held.packet, now, time_of_day)])
        finally:
            self._queue.accept([held.packet.number for held in turn])
            costs = [(held.client, held.cost) for held in turn]
            self._budget.spend(costs, time.thread_time() - began, now)

    def _take_in(self) -> None:
        """Lines up what is held, by client; what is above a client's share is not learnt."""
        over = []
        for held in self._queue.receive(AT_ONCE):
            client = client_prefix(packet.destination(held.data))
            cost = OVERHEAD + len(held.data)
            if not self._waiting.put(client, _Held(held, client, cost), cost):
                self.counts["answer-backlog"] += 1
                over.append(held.number)
        if self._reader.config.fail_open:
            self._queue.accept(over)
        else:
            self._queue.drop(over)

    def _note_all(self, now: float) -> None:
        """Notes the questions that came before the answers that are held, within reason."""
        left = _COPIES_AT_MOST
        askers: Counter[bytes] = Counter()
        while left > 0 and (noted := self._note(min(left, _COPIES_AT_ONCE), now, askers)):
            left -= noted
            if time.monotonic() - now > _COPIES_TIME:
                break

    def _note(self, most: int, now: float, askers: Counter[bytes]) -> int:
        """Notes the questions among the next copies; ``askers`` counts each client's of this turn."""
        copies = self._log.receive(most)
        for copy in copies:
            client = client_prefix(packet.source(copy))
            askers[client] += 1
            if askers[client] <= COPIES_OF_CLIENT:
                self._reader.question(copy, now)
            else:
                self.counts["question-backlog"] += 1
        return len(copies)

    def _read(self, held: nfqueue.Packet, now: float, time_of_day: float) -> list[Answer]:
        if not held.whole:
            self.counts["packet-strange"] += 1
            return []
        return self._reader.answers(held.data, now, time_of_day)

    def _learn(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.counts["learnt"] += 1
            self.counts["addresses"] += len(answer.addresses)
        new = self._recent.new(answers, min(_SLACK, self._reader.config.grace / 2))
        if new:
            self._store_names(new)

    def _store_names(self, answers: list[Answer]) -> None:
        if self._refused is not None and time.monotonic() < self._refused[0]:
            self._fail(answers, self._refused[1])
            return
        try:
            self._put(answers)
        except BusyError as error:
            self._fail(answers, error)
        except EnforcerError as error:
            half = len(answers) // 2
            if not half:
                self._refused = time.monotonic() + _REFUSED, error
                self._fail(answers, error)
                return
            # One that there is no room for must not take the others with it.
            self._store_names(answers[:half])
            self._store_names(answers[half:])

    def _put(self, answers: list[Answer]) -> None:
        with self._store.change(patience=_PATIENCE) as change:
            names = change.learn([row for answer in answers for row in answer.rows()])
            if names.hosts or names.sets:
                self._tables.named(names)
        self._recent.add(answers)
        self._recent.forget(change.crowded_out)
        self.counts["crowded-out"] += len(change.crowded_out)

    def _fail(self, answers: list[Answer], error: EnforcerError) -> None:
        self.counts["unlearnt"] += len(answers)
        self.counts["learnt"] -= len(answers)
        self.counts["addresses"] -= sum(len(answer.addresses) for answer in answers)
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY:
            self._said = now
            self._say(f"names not learnt ({self.counts['unlearnt']} answers so far): {error}")

    def tick(self) -> float:
        """Forgets questions without an answer, and some of the names whose time is over.

        Returns in how many seconds it is due again: at once while there are more.
        """
        now = time.monotonic()
        self._watchdog.tick()
        try:
            self._store.check_log()
        except KernelError as error:
            self._refused = now + _REFUSED + _TICK, error
        self._reader.expire(now)
        self._budget.expire(now)
        if self._round is None:
            expiry = self._store.next_name_expiry()
            if now < self._look or expiry is None or expiry > time.time():
                return _TICK
            self._round = self._look_at_flows(FIRST)
        elif now - self._round.began > _LOOK_AGAIN:
            self._round = self._look_at_flows(self._round.cursor)
        try:
            with self._store.change(patience=_PATIENCE) as change:
                names, next_cursor = change.forget_names(
                    time.time(), *self._round.alive, _NAMES_AT_ONCE, self._round.cursor
                )
                if names.hosts or names.sets:
                    self._tables.named(names)
        except BusyError:
            return _TICK
        if next_cursor is not None:
            self._round = self._round._replace(cursor=next_cursor)
            return 0.0
        self._round = None
        kept = self._store.next_name_expiry()
        rest = _LOOK_AGAIN if kept is not None and kept <= time.time() else 0.0
        self._look = max(self._look, time.monotonic() + rest)
        return _TICK

    def _look_at_flows(self, cursor: ExpiryCursor) -> _Round:
        began = time.monotonic()
        alive = self._alive()
        ended = time.monotonic()
        self._look = ended + _REST * (ended - began)
        return _Round(began, alive, cursor)

    def report(self) -> dict[str, Any]:
        """The counters by name, those of COUNTS that are not zero, and how full everything is."""
        self.counts["answer-overflow"] = self._queue.overflows
        self.counts["answer-dropped"] = self._queue.dropped()
        self.counts["answer-late"] = self._queue.late
        self.counts["question-overflow"] = self._log.overflows
        table = nft.counters()
        for name, counter in (("answer-rate", DNS_ANSWERS_OVER), ("question-rate", DNS_QUESTIONS_OVER)):
            self.counts[name] = table.get(counter, (0, 0))[0]
        return {
            "counts": {name: self.counts[name] for name in COUNTS if self.counts[name]},
            "meanings": COUNTS,
            "questions": len(self._reader.questions),
            "streams": self._reader.streams,
        }
