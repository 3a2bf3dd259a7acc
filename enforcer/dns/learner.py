"""Learning the names of addresses from DNS answers, before their clients have them.

The kernel copies questions and holds answers (:mod:`enforcer.kernel.table`). An answer that belongs to a
question that was seen is learnt: stored, and written to the kernel's map. Only then it is let go. So the
first connection made on an answer is already decided by the rules about its name.

What is learnt is the name that was asked for, for each address that the answer leads to. The aliases on the
way are not names that a user has typed (Cloudflare's Host selector means those), and rules about a CDN's
names would match half the internet. Each is learnt twice: for the client that asked, and for anybody,
because a client with both families asks from one address and connects from another.

Nothing is ever refused to a client here: what is not learnt goes on as it came. Whatever is not, is counted
by name (:data:`COUNTS`).
"""

from __future__ import annotations

import ipaddress
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, Self

from enforcer.datapath.address import pack
from enforcer.dns import message
from enforcer.dns.alive import Alive
from enforcer.dns.message import MalformedError
from enforcer.dns.packet import TCP, Packet, parse
from enforcer.dns.questions import Asker, Questions
from enforcer.dns.stream import Streams
from enforcer.errors import BusyError, EnforcerError
from enforcer.facts.store import ANYBODY, FIRST, Learnt, Names, Place, Store
from enforcer.kernel import queue
from enforcer.kernel.nflog import Log
from enforcer.kernel.queue import Queue
from enforcer.kernel.ruleset import DNS_QUEUE

COUNTS = {
    "learnt": "answers learnt",
    "addresses": "addresses learnt with them",
    "addresses-over": "addresses past the 64th of an answer",
    "crowded-out": "names that made room for others: too many of one client, or of one address",
    "empty": "answers without an address of the type asked for",
    "nxdomain": "answers that the name does not exist",
    "error": "answers with another error (SERVFAIL, REFUSED, …)",
    "other-type": "answers to questions that no address answers (MX, TXT, PTR, …)",
    "other-class": "answers to questions of another class than IN",
    "truncated": "truncated answers (TC); the client asks again over TCP",
    "unasked": "answers to no question that was seen: forged, late, twice, or asked before the daemon ran",
    "mismatched": "answers that repeat another name or type than was asked: forged",
    "unlisted": "answers of resolvers that dns.resolvers does not name",
    "malformed": "answers that are no message, break off, or go round in circles",
    "unusable": "addresses that nothing can be reached at: loopback, link-local, multicast, 0.0.0.0, mapped",
    "own": "addresses of this gateway's (egress or shared)",
    "private": "addresses in private networks: traffic there is shared whatever the policies say",
    "service-elsewhere": "HTTPS and SVCB records with another target name",
    "unlearnt": "answers that the facts or the tables had no room for, or that failed otherwise",
    "question": "questions seen",
    "question-strange": "what clients sent to port 53 that is no question: updates, two questions, no DNS",
    "question-unanswered": "questions without an answer for ten seconds",
    "question-evicted": "questions forgotten because there were too many (of one client, or of all)",
    "question-overflow": "times that more questions came at once than fit the buffer",
    "answer-overflow": "times that more answers came at once than fit the buffer; the rest passed unlearnt",
    "answer-dropped": "answers dropped because too many were held (dns.when_down: drop)",
    "packet-strange": "held packets that are neither UDP nor TCP, or were cut",
    "tcp-midway": "TCP segments of connections that began before the daemon did",
    "tcp-gap": "TCP connections given up: too much came after a missing segment",
    "tcp-silent": "TCP connections forgotten after 30 seconds of silence",
    "tcp-evicted": "TCP connections given up: too many at once",
    "tcp-full": "TCP connections given up: too many bytes in all",
    "tcp-strange": "TCP connections on port 53 that speak no DNS",
}
"""What is counted, and what it means."""

AT_ONCE = 256
"""Packets dealt with before the daemon's loop has its turn: 20 ms when all of them are new."""
ADDRESSES_AT_MOST = 64
"""Addresses that are learnt of one answer: its first ones."""
# All copies of questions that came before the held answers must be read before these. The socket's buffer
# holds about 16,384; more may come while they are read, and answers must not wait for ever.
_COPIES_AT_MOST = 32_768
_COPIES_AT_ONCE = 1024
_COPIES_TIME = 0.25
# Seconds that the loop waits for another change of the store: as long as a client waits gladly.
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
# Answers known to be learnt; 300 bytes each.
_KNOWN = 16_384
_SLACK = 5.0
# After these the true answer may still come, and the client waits for it.
_FORGERIES = ("unasked", "mismatched", "malformed")
_KINDS = {message.A, message.AAAA, message.ANY, message.HTTPS, message.SVCB}


class Tables(Protocol):
    """The kernel's side: :class:`enforcer.facts.inforce.InForce`."""

    def refresh(self) -> None:
        """Take up the bank in force."""

    def named(self, names: Names) -> None:
        """Write what changed."""


class Settings(NamedTuple):
    """What of the configuration matters here."""

    resolvers: frozenset[bytes] = frozenset()
    """Only these are believed; empty: any."""
    fail_open: bool = True
    grace: float = 30.0
    """Seconds that a name outlives its TTL."""
    own: frozenset[bytes] = frozenset()
    private: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    ranges: tuple[ipaddress.IPv6Network, ...] = ()
    """IPv6 egress ranges, which are the gateway's too."""


def settings(config: Mapping[str, Any]) -> Settings:
    """From the JSON form of a Configuration."""
    dns = config.get("dns", {})
    own = [config["shared"]["ipv4"], config["shared"]["ipv6"]]
    here = [egress for egress in config["egress_ips"] if egress["location"] == config["location"]]
    own += [egress["ipv4"] for egress in here]
    return Settings(
        resolvers=frozenset(pack(ipaddress.ip_address(one)) for one in dns.get("resolvers", ())),
        fail_open=dns.get("when_down", "pass") == "pass",
        grace=float(dns.get("grace", 30)),
        own=frozenset(pack(ipaddress.ip_address(one)) for one in own),
        private=tuple(ipaddress.ip_network(one) for one in config.get("private_networks", ())),
        ranges=tuple(ipaddress.IPv6Network(egress["ipv6"]) for egress in here),
    )


class Answer(NamedTuple):
    """What is to be learnt of one answer; the addresses are sorted."""

    client: bytes
    name: str
    addresses: tuple[bytes, ...]
    expires: float

    def rows(self) -> list[Learnt]:
        """For the client and for anybody."""
        clients = (self.client, ANYBODY)
        return [Learnt(who, one, self.name, self.expires) for one in self.addresses for who in clients]


class Reader:
    """Packets → what is to be learnt; keeps the questions and the TCP streams, and counts."""

    def __init__(self, wanted: Settings) -> None:
        self.counts: Counter[str] = Counter()
        self.questions = Questions(self.counts)
        self._asking = Streams(self.counts)
        self._answering = Streams(self.counts)
        self.configure(wanted)

    def configure(self, wanted: Settings) -> None:
        """Other settings; questions and streams stay."""
        self.settings = wanted
        self._why_not = lru_cache(maxsize=4096)(self._reason)

    @property
    def streams(self) -> int:
        """How many directions of TCP connections are followed."""
        return len(self._asking) + len(self._answering)

    def expire(self, now: float) -> None:
        """Forgets questions that nobody has answered in time, and connections that are silent."""
        self.questions.expire(now)
        self._asking.expire(now)
        self._answering.expire(now)

    def question(self, data: bytes, now: float) -> None:
        """Notes what a copied packet asks. ``now`` is in seconds of a clock that never goes back."""
        packet = parse(data)
        if packet is None:
            self.counts["question-strange"] += 1
        if packet is None or not self._believed(packet.destination):
            return
        for wire in self._messages(packet, self._asking, now):
            self._note(packet, wire, now)

    def answers(self, data: bytes, now: float, time_of_day: float) -> list[Answer]:
        """What a held packet brings: all the answers that it completes."""
        packet = parse(data)
        if packet is None:
            self.counts["packet-strange"] += 1
            return []
        if not self._believed(packet.source):
            self.counts["unlisted"] += bool(packet.payload)
            return []
        found = []
        for wire in self._messages(packet, self._answering, now):
            answer = self._answer(packet, wire, now, time_of_day)
            if answer is not None:
                found.append(answer)
        return found

    def _believed(self, resolver: bytes) -> bool:
        return not self.settings.resolvers or resolver in self.settings.resolvers

    @staticmethod
    def _messages(packet: Packet, streams: Streams, now: float) -> list[bytes]:
        if packet.protocol != TCP:
            return [packet.payload]
        key = packet.source, packet.source_port, packet.destination, packet.destination_port
        return streams.feed(key, packet, now)

    def _note(self, packet: Packet, wire: bytes, now: float) -> None:
        try:
            asked = message.header(wire)
        except MalformedError:
            self.counts["question-strange"] += 1
            return
        if asked.response or not asked.query:
            self.counts["question-strange"] += 1
            return
        self.counts["question"] += 1
        asker = Asker(packet.source, packet.source_port, packet.destination, packet.protocol, asked.number)
        self.questions.note(asker, asked.asks, now)

    def _answer(self, packet: Packet, wire: bytes, now: float, time_of_day: float) -> Answer | None:
        try:
            head = message.header(wire)
            asker = Asker(
                packet.destination, packet.destination_port, packet.source, packet.protocol, head.number
            )
            asked = self.questions.asked(asker, now)
            word = _refusal(head, asked)
            found = message.found(wire, head) if word is None else None
        except MalformedError:
            word, found = "malformed", None
        if word not in _FORGERIES:
            self.questions.answered(asker)
        if found is None:
            self.counts[str(word)] += 1
            return None
        return self._worth(packet.destination, head, found, time_of_day)

    def _worth(
        self, client: bytes, head: message.Header, found: message.Found, time_of_day: float
    ) -> Answer | None:
        self.counts["service-elsewhere"] += found.elsewhere
        self.counts["unusable"] += found.mapped
        name = message.host(head.name, head.kind)
        usable = []
        for address in found.addresses:
            reason = self._why_not(address)
            if reason is None:
                usable.append(address)
            else:
                self.counts[reason] += 1
        if not usable or not name:
            if not found.addresses and not found.mapped:
                self.counts["empty"] += 1
            return None
        self.counts["addresses-over"] += max(0, len(usable) - ADDRESSES_AT_MOST)
        first = tuple(sorted(usable[:ADDRESSES_AT_MOST]))
        return Answer(client, name, first, time_of_day + found.ttl + self.settings.grace)

    def _reason(self, packed: bytes) -> str | None:
        """Why an address is not worth learning."""
        address = ipaddress.IPv6Address(packed)
        four = address.ipv4_mapped
        one: ipaddress.IPv4Address | ipaddress.IPv6Address = address if four is None else four
        if one.is_loopback or one.is_unspecified or one.is_multicast or one.is_link_local:
            return "unusable"
        if four is not None and (four in _THIS_NETWORK or four in _RESERVED):
            return "unusable"
        if packed in self.settings.own or any(one in network for network in self.settings.ranges):
            return "own"
        if any(one in network for network in self.settings.private):
            return "private"
        return None


_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED = ipaddress.IPv4Network("240.0.0.0/4")


def _refusal(head: message.Header, asked: tuple[bytes, int, int] | None) -> str | None:
    """Why nothing is learnt of an answer, by its head: the first of these that is so."""
    reasons = (
        ("malformed", not head.response or not head.query),
        ("unasked", asked is None),
        ("mismatched", asked != head.asks),
        ("other-class", head.klass != message.IN),
        ("other-type", head.kind not in _KINDS),
        ("truncated", head.truncated),
        ("nxdomain", head.rcode == message.NXDOMAIN),
        ("error", head.rcode != message.NOERROR),
    )
    return next((word for word, holds in reasons if holds), None)


_Key = tuple[bytes, str, tuple[bytes, ...]]


class Known:
    """What was learnt lately, so that the many answers about few names cost no change of the store.

    An answer that would extend a name's time by less than ``slack`` seconds is as good as known.
    """

    def __init__(self, limit: int = _KNOWN) -> None:
        self._limit = limit
        self._until: dict[_Key, float] = {}
        self._keys: dict[str, set[_Key]] = {}

    def new(self, answers: list[Answer], slack: float) -> list[Answer]:
        """Those that there is something to learn of."""
        return [one for one in answers if self._until.get(one[:3], 0.0) < one.expires - slack]

    def add(self, answers: list[Answer]) -> None:
        """These are in the store now."""
        for answer in answers:
            key = answer[:3]
            self._until.pop(key, None)
            self._until[key] = answer.expires
            self._keys.setdefault(answer.name, set()).add(key)
        while len(self._until) > self._limit:
            key = next(iter(self._until))
            del self._until[key]
            self._keys[key[1]].discard(key)
            if not self._keys[key[1]]:
                del self._keys[key[1]]

    def forget(self, names: Iterable[str]) -> None:
        """These are not in the store any more, for some client and address."""
        for name in names:
            for key in self._keys.pop(name, ()):
                del self._until[key]


class _Round(NamedTuple):
    """One look at all names whose time is over, some at a turn."""

    began: float
    alive: Alive
    place: Place


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
        self._reader = Reader(settings(config))
        self.counts = self._reader.counts
        self._known = Known()
        self._said = -_SAY_EVERY
        self._look = 0.0
        self._round: _Round | None = None
        self._refused: tuple[float, EnforcerError] | None = None
        # Questions first: an answer that is held must have its question.
        self._log = Log(DNS_QUEUE)
        try:
            self._queue = Queue(DNS_QUEUE, fail_open=self._reader.settings.fail_open)
        except BaseException:
            self._log.close()
            raise
        self._poll = select.epoll()
        self._poll.register(self._log, select.EPOLLIN)
        self._poll.register(self._queue, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; what is held just now is dropped by the kernel, and clients ask again."""
        self._poll.close()
        self._queue.close()
        self._log.close()

    def use(self, store: Store, tables: Tables, config: Mapping[str, Any]) -> None:
        """Another configuration: questions and streams stay, and the queue is not let go."""
        self._store, self._tables = store, tables
        self._known = Known()
        self._round = self._refused = None
        before = self._reader.settings.fail_open
        self._reader.configure(settings(config))
        if self._reader.settings.fail_open != before:
            self._queue.fail_open(self._reader.settings.fail_open)

    def fileno(self) -> int:
        """Readable when :meth:`drain` has something to do."""
        return self._poll.fileno()

    def drain(self) -> None:
        """Reads some of what has come, learns, and lets it go; never waits for packets."""
        held = self._queue.receive(AT_ONCE)
        try:
            now, time_of_day = time.monotonic(), time.time()
            if held:
                self._note_all(now)
                self._learn([answer for packet in held for answer in self._read(packet, now, time_of_day)])
            else:
                self._note(AT_ONCE, now)
        finally:
            if held:
                self._queue.accept_up_to(held[-1].number)

    def _note_all(self, now: float) -> None:
        """Notes the questions that came before the answers that are held, within reason."""
        left = _COPIES_AT_MOST
        while left > 0 and (noted := self._note(min(left, _COPIES_AT_ONCE), now)):
            left -= noted
            if time.monotonic() - now > _COPIES_TIME:
                break

    def _note(self, most: int, now: float) -> int:
        copies = self._log.receive(most)
        for copy in copies:
            self._reader.question(copy, now)
        return len(copies)

    def _read(self, packet: queue.Packet, now: float, time_of_day: float) -> list[Answer]:
        if not packet.whole:
            self.counts["packet-strange"] += 1
            return []
        return self._reader.answers(packet.data, now, time_of_day)

    def _learn(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.counts["learnt"] += 1
            self.counts["addresses"] += len(answer.addresses)
        new = self._known.new(answers, min(_SLACK, self._reader.settings.grace / 2))
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
        self._known.add(answers)
        self._known.forget(change.crowded_out)
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
        self._reader.expire(now)
        if self._round is None:
            expiry = self._store.next_name_expiry()
            if now < self._look or expiry is None or expiry > time.time():
                return _TICK
            self._round = self._look_at_flows(FIRST)
        elif now - self._round.began > _LOOK_AGAIN:
            self._round = self._look_at_flows(self._round.place)
        try:
            with self._store.change(patience=_PATIENCE) as change:
                names, place_after = change.forget_names(
                    time.time(), *self._round.alive, _NAMES_AT_ONCE, self._round.place
                )
                if names.hosts or names.sets:
                    self._tables.named(names)
        except BusyError:
            return _TICK
        if place_after is not None:
            self._round = self._round._replace(place=place_after)
            return 0.0
        self._round = None
        kept = self._store.next_name_expiry()
        rest = _LOOK_AGAIN if kept is not None and kept <= time.time() else 0.0
        self._look = max(self._look, time.monotonic() + rest)
        return _TICK

    def _look_at_flows(self, place: Place) -> _Round:
        began = time.monotonic()
        alive = self._alive()
        ended = time.monotonic()
        self._look = ended + _REST * (ended - began)
        return _Round(began, alive, place)

    def report(self) -> dict[str, Any]:
        """The counters by name, those of :data:`COUNTS` that are not zero, and how full everything is."""
        self.counts["answer-overflow"] = self._queue.overflows
        self.counts["answer-dropped"] = self._queue.dropped()
        self.counts["question-overflow"] = self._log.overflows
        return {
            "counts": {name: self.counts[name] for name in COUNTS if self.counts[name]},
            "meanings": COUNTS,
            "questions": len(self._reader.questions),
            "streams": self._reader.streams,
        }
