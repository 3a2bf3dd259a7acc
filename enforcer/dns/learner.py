"""Learns the names of addresses from DNS answers, before the clients receive these answers.

The kernel copies questions and holds answers (:mod:`enforcer.kernel.nft.messages`). The learner stores an
answer that belongs to an observed question, writes it to the kernel's map, and only then accepts the held
packet. So the rules about a name decide the first connection that a client opens on its answer.

Clients take turns (:mod:`enforcer.dns.fair_queue`). Answers above a client's share pass at once without being
learnt, or are dropped with ``when_down: drop``; every other answer that is not learnt passes unchanged.
Counters by name (:mod:`enforcer.dns.counters`) cover all of them.
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol, Self

from enforcer.dns import packet
from enforcer.dns.counters import COUNTS
from enforcer.dns.fair_queue import FairQueue, TimeBudget
from enforcer.dns.live_flows import LiveDestinations
from enforcer.dns.reader import Answer, Reader, learning_config
from enforcer.dns.recent import RecentAnswers
from enforcer.dns.watchdog import Watchdog
from enforcer.errors import BusyError, EnforcerError, KernelError
from enforcer.facts.names import FIRST, ExpiryCursor, client_prefix
from enforcer.facts.rows import ChangedNames
from enforcer.facts.store import Store
from enforcer.kernel import nfqueue, nft
from enforcer.kernel.nflog import Log
from enforcer.kernel.nfqueue import Queue
from enforcer.kernel.nft.ruleset import DNS_ANSWERS_OVER, DNS_QUESTIONS_OVER, DNS_QUEUE

OVERHEAD = 64
"""Fixed cost of an answer, added to its bytes."""
AT_ONCE = nfqueue.LENGTH
"""Packets read at once: the length of the kernel's queue."""
# Copies of questions that came before the held answers must be read first. The socket's buffer holds about
# 16,384; more arrive meanwhile, so a limit keeps answers from waiting.
_COPIES_AT_MOST = 32_768
_COPIES_AT_ONCE = 1024
COPIES_OF_CLIENT = 512
"""Limit for one client's questions that are parsed in one turn."""
_COPIES_TIME = 0.25
# Seconds until clients that have used up their time are tried again.
_PAUSE = 0.005
# Seconds that the loop waits for another store transaction: less than an answer may be held.
_PATIENCE = 0.2
# Seconds without another attempt after the store or a table has refused a single answer.
_REFUSED = 1.0
# Expired names checked in one turn.
_NAMES_AT_ONCE = 1000
_TICK = 1.0
_LOG_INTERVAL = 60.0
# Seconds until expired names of live flows are checked again; reading a million flows takes 0.2 s.
_PASS_INTERVAL = 10.0
# After reading flows for a time t, the next pass waits at least 50 t.
_REST = 50
# Seconds by which an answer must extend the expiry of a known name to be stored.
_SLACK = 5.0


class Tables(Protocol):
    """The kernel's maps: :class:`enforcer.facts.kernel_facts.KernelFacts`."""

    def refresh(self) -> None:
        """Read the bank in force."""

    def update_names(self, names: ChangedNames) -> None:
        """Write the changed hosts and sets."""


class _Held(NamedTuple):
    """A held answer that waits for its turn."""

    packet: nfqueue.Packet
    client: bytes
    cost: int


class _ExpiryPass(NamedTuple):
    """One pass over all expired names, some in each turn."""

    began: float
    alive: LiveDestinations
    cursor: ExpiryCursor


class Learner:
    """Reads questions and held answers, learns, and accepts the answers; BusyError, KernelError.

    ``say`` receives lines for the journal. ``alive`` returns the destinations of live flows
    (:func:`enforcer.dns.live_flows.live_destinations`). Call :meth:`drain` once after construction and after
    :meth:`use`: packets may have arrived meanwhile.
    """

    def __init__(
        self,
        store: Store,
        tables: Tables,
        config: Mapping[str, Any],
        *,
        say: Callable[[str], None],
        alive: Callable[[], LiveDestinations],
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
        self._last_log = -_LOG_INTERVAL
        self._next_pass = 0.0
        self._expiry_pass: _ExpiryPass | None = None
        self._refused: tuple[float, EnforcerError] | None = None
        passes = self._reader.config.fail_open
        with ExitStack() as stack:
            # The log of questions first: the question of a held answer must be in it.
            self._log = Log(DNS_QUEUE)
            stack.callback(self._log.close)
            self._queue = Queue(DNS_QUEUE, fail_open=passes)
            stack.callback(self._queue.close)
            self._watchdog = Watchdog(self._queue, fail_open=passes, say=say)
            # Closing it accepts the held packets, before the queue is closed.
            stack.callback(self._watchdog.close)
            self._poll = select.epoll()
            stack.callback(self._poll.close)
            for socket in (self._log, self._queue):
                self._poll.register(socket, select.EPOLLIN)
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop learning and release held answers."""
        self._closing.close()

    def use(self, store: Store, tables: Tables, config: Mapping[str, Any]) -> None:
        """Use another configuration; questions, streams and the queue stay."""
        self._store, self._tables = store, tables
        self._recent = RecentAnswers()
        self._expiry_pass = self._refused = None
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
        """Read arrived packets, learn and accept the next turn of answers; never waits for packets.

        Return the seconds until the next call for waiting answers, None if none wait.
        """
        now = time.monotonic()
        self._enqueue()
        turn = self._waiting.next_turn(lambda client: self._budget.has(client, now))
        if turn:
            self._serve(turn, now)
        else:
            self._note(_COPIES_AT_ONCE, now, Counter())
        if not self._waiting:
            return None
        return 0.0 if turn else _PAUSE

    def _serve(self, turn: list[_Held], now: float) -> None:
        began = time.thread_time()
        try:
            self._note_all(now)
            time_of_day = time.time()
            self._learn([answer for held in turn for answer in self._read(held.packet, now, time_of_day)])
        finally:
            self._queue.accept([held.packet.number for held in turn])
            costs = [(held.client, held.cost) for held in turn]
            self._budget.spend(costs, time.thread_time() - began, now)

    def _enqueue(self) -> None:
        """Queue the held answers by client; answers above a client's limit get their verdict unlearnt."""
        over = []
        for held in self._queue.receive(AT_ONCE):
            client = client_prefix(packet.destination_address(held.data))
            cost = OVERHEAD + len(held.data)
            if not self._waiting.put(client, _Held(held, client, cost), cost):
                self.counts["answer-backlog"] += 1
                over.append(held.number)
        if self._reader.config.fail_open:
            self._queue.accept(over)
        else:
            self._queue.drop(over)

    def _note_all(self, now: float) -> None:
        """Note the questions that came before the held answers, up to a limit in number and time."""
        left = _COPIES_AT_MOST
        askers: Counter[bytes] = Counter()
        while left > 0 and (noted := self._note(min(left, _COPIES_AT_ONCE), now, askers)):
            left -= noted
            if time.monotonic() - now > _COPIES_TIME:
                break

    def _note(self, most: int, now: float, askers: Counter[bytes]) -> int:
        """Note the questions among the next copies; ``askers`` counts those of each client in this turn."""
        copies = self._log.receive(most)
        for copy in copies:
            client = client_prefix(packet.source_address(copy))
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
            # Halve the batch, so that one answer without room does not fail the others.
            self._store_names(answers[:half])
            self._store_names(answers[half:])

    def _put(self, answers: list[Answer]) -> None:
        with self._store.transaction(patience=_PATIENCE) as transaction:
            names = transaction.learn([row for answer in answers for row in answer.rows()])
            if names.hosts or names.sets:
                self._tables.update_names(names)
        self._recent.add(answers)
        self._recent.forget(transaction.crowded_out)
        self.counts["crowded-out"] += len(transaction.crowded_out)

    def _fail(self, answers: list[Answer], error: EnforcerError) -> None:
        self.counts["unlearnt"] += len(answers)
        self.counts["learnt"] -= len(answers)
        self.counts["addresses"] -= sum(len(answer.addresses) for answer in answers)
        now = time.monotonic()
        if now - self._last_log >= _LOG_INTERVAL:
            self._last_log = now
            self._say(f"names not learnt ({self.counts['unlearnt']} answers so far): {error}")

    def tick(self) -> float:
        """Forget unanswered questions, and delete some of the expired names.

        Return the seconds until the next call: 0 while more names are expired.
        """
        now = time.monotonic()
        self._watchdog.tick()
        try:
            self._store.check_log()
        except KernelError as error:
            self._refused = now + _REFUSED + _TICK, error
        self._reader.expire(now)
        self._budget.expire(now)
        if self._expiry_pass is None:
            expiry = self._store.next_name_expiry()
            if now < self._next_pass or expiry is None or expiry > time.time():
                return _TICK
            self._expiry_pass = self._begin_pass(FIRST)
        elif now - self._expiry_pass.began > _PASS_INTERVAL:
            self._expiry_pass = self._begin_pass(self._expiry_pass.cursor)
        try:
            with self._store.transaction(patience=_PATIENCE) as transaction:
                names, next_cursor = transaction.forget_names(
                    time.time(), *self._expiry_pass.alive, _NAMES_AT_ONCE, self._expiry_pass.cursor
                )
                if names.hosts or names.sets:
                    self._tables.update_names(names)
        except BusyError:
            return _TICK
        if next_cursor is not None:
            self._expiry_pass = self._expiry_pass._replace(cursor=next_cursor)
            return 0.0
        self._expiry_pass = None
        kept = self._store.next_name_expiry()
        rest = _PASS_INTERVAL if kept is not None and kept <= time.time() else 0.0
        self._next_pass = max(self._next_pass, time.monotonic() + rest)
        return _TICK

    def _begin_pass(self, cursor: ExpiryCursor) -> _ExpiryPass:
        began = time.monotonic()
        alive = self._alive()
        ended = time.monotonic()
        self._next_pass = ended + _REST * (ended - began)
        return _ExpiryPass(began, alive, cursor)

    def report(self) -> dict[str, Any]:
        """Return the non-zero counters by name, their meanings, and the numbers of questions and streams."""
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
