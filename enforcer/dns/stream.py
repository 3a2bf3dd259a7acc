"""DNS messages out of TCP segments (RFC 7766, 8: two bytes of length before each message).

Segments may come late, twice, or with several messages. A segment that completes a message gives it out at
once: it is the one that is still held, and what went on before it has told the client nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from enforcer.constants import FIN, RST, SYN
from enforcer.dns.packet import Packet

STREAMS = 4096
"""Directions of connections that are followed; the one silent for longest makes room."""
OF_ONE_CLIENT = 512
"""The same of one client (:func:`enforcer.facts.names.client_prefix`)."""
AHEAD = 1 << 17
"""Bytes that a segment may be ahead of what is missing."""
EARLY = 256
"""Segments kept ahead of what is missing."""
TOTAL = 16 << 20
"""Bytes kept in all streams together, and OVERHEAD for each segment that is early."""
BYTES_OF_ONE_CLIENT = 2 << 20
"""The same of one client."""
OVERHEAD = 128
SILENCE = 30.0
"""Seconds after which a silent stream is forgotten; it goes on where a segment begins and ends a message."""
SHORTEST = 12
"""A DNS message has a header."""
_MODULO = 1 << 32


@dataclass(slots=True)
class _Stream:
    """One direction of one connection."""

    client: bytes
    expected: int
    """The sequence number of the byte that comes next, which does not wrap: it grows past 32 bits."""
    heard: float
    ready: bytearray = field(default_factory=bytearray)
    early: dict[int, bytes] = field(default_factory=dict)
    """Segments ahead of a gap, by sequence number that does not wrap."""
    order: list[int] = field(default_factory=list)
    """A heap of their numbers."""
    ahead: int = 0

    @property
    def size(self) -> int:
        return len(self.ready) + self.ahead + OVERHEAD * len(self.early)


@dataclass(slots=True)
class _Client:
    """What one client's streams take."""

    room: int
    """Bytes left."""
    streams: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    """Their keys, the one silent for longest first."""


class Streams:
    """All streams of one direction.

    ``counts`` gets what was not followed: ``tcp-midway`` (a connection whose beginning was not seen, until a
    segment begins and ends with a message), ``tcp-gap`` (too much came after a missing segment),
    ``tcp-evicted`` (too many connections, of one client or of all), ``tcp-full`` (too many bytes, likewise),
    ``tcp-silent`` (nothing came for SILENCE), ``tcp-strange`` (no DNS).
    """

    def __init__(
        self,
        counts: Counter[str],
        limit: int = STREAMS,
        total: int = TOTAL,
        of_one_client: int = OF_ONE_CLIENT,
        bytes_of_one_client: int = BYTES_OF_ONE_CLIENT,
    ) -> None:
        self._counts = counts
        self._limit = limit
        self._room = total
        self._of_one_client = of_one_client
        self._bytes_of_one_client = bytes_of_one_client
        self._streams: OrderedDict[Hashable, _Stream] = OrderedDict()
        self._clients: dict[bytes, _Client] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def feed(self, key: Hashable, segment: Packet, now: float = 0.0, client: bytes = b"") -> list[bytes]:
        """The messages that this segment of a client's connection completes, in order."""
        if segment.flags & RST:
            self._drop(key)
            return []
        sequence = segment.sequence
        if segment.flags & SYN:
            sequence = (sequence + 1) % _MODULO
            stream: _Stream | None = self._begin(key, client, sequence, now)
        else:
            stream = self._streams.get(key)
        payload = segment.payload
        if stream is None:
            if not payload:
                return []
            if not _is_whole(payload):
                self._counts["tcp-midway"] += 1
                return []
            stream = self._begin(key, client, sequence, now)
        owner = self._clients[client]
        self._streams.move_to_end(key)
        owner.streams.move_to_end(key)
        stream.heard = now
        before = stream.size
        messages = self._take(stream, sequence, payload)
        self._room -= stream.size - before
        owner.room -= stream.size - before
        end = (sequence + len(payload)) % _MODULO
        if messages is None or (segment.flags & FIN and stream.expected % _MODULO == end):
            self._drop(key)
        while owner.room < 0:
            self._drop_one_with_bytes(owner.streams)
        while self._room < 0:
            self._drop_one_with_bytes(self._streams)
        return messages or []

    def expire(self, now: float) -> None:
        """Forgets the streams that have been silent for too long."""
        while self._streams:
            key, stream = next(iter(self._streams.items()))
            if stream.heard + SILENCE > now:
                break
            self._counts["tcp-silent"] += 1
            self._drop(key)

    def _begin(self, key: Hashable, client: bytes, expected: int, now: float) -> _Stream:
        self._drop(key)
        mine = self._clients.get(client)
        if mine is not None and len(mine.streams) >= self._of_one_client:
            self._evict(next(iter(mine.streams)))
        if len(self._streams) >= self._limit:
            self._evict(next(iter(self._streams)))
        stream = self._streams[key] = _Stream(client, expected, now)
        self._clients.setdefault(client, _Client(self._bytes_of_one_client)).streams[key] = None
        return stream

    def _evict(self, key: Hashable) -> None:
        self._drop(key)
        self._counts["tcp-evicted"] += 1

    def _drop_one_with_bytes(self, keys: Iterable[Hashable]) -> None:
        """The one silent for longest, of those of them that hold anything."""
        self._drop(next(key for key in keys if self._streams[key].size))
        self._counts["tcp-full"] += 1

    def _drop(self, key: Hashable) -> None:
        stream = self._streams.pop(key, None)
        if stream is None:
            return
        self._room += stream.size
        owner = self._clients[stream.client]
        owner.room += stream.size
        del owner.streams[key]
        if not owner.streams:
            del self._clients[stream.client]

    def _take(self, stream: _Stream, sequence: int, payload: bytes) -> list[bytes] | None:
        """The messages completed; None if the stream cannot be followed any more."""
        if not payload:
            return []
        ahead = (sequence - stream.expected) % _MODULO
        if 0 < ahead < _MODULO // 2:
            return [] if self._keep(stream, ahead, payload) else None
        self._append(stream, stream.expected - (stream.expected - sequence) % _MODULO, payload)
        while stream.order and stream.order[0] <= stream.expected:
            start = heapq.heappop(stream.order)
            early = stream.early.pop(start)
            stream.ahead -= len(early)
            self._append(stream, start, early)
        return self._messages(stream)

    def _keep(self, stream: _Stream, ahead: int, payload: bytes) -> bool:
        start = stream.expected + ahead
        old = stream.early.get(start, b"")
        if len(payload) > len(old):
            much = ahead + len(payload) > AHEAD or stream.ahead + len(payload) > AHEAD
            if much or (not old and len(stream.early) >= EARLY):
                self._counts["tcp-gap"] += 1
                return False
            if not old:
                heapq.heappush(stream.order, start)
            stream.early[start] = payload
            stream.ahead += len(payload) - len(old)
        return True

    @staticmethod
    def _append(stream: _Stream, start: int, payload: bytes) -> None:
        """What of a segment that begins no later than the next byte is new."""
        new = payload[stream.expected - start :]
        stream.ready += new
        stream.expected += len(new)

    def _messages(self, stream: _Stream) -> list[bytes] | None:
        ready = stream.ready
        messages = []
        start = 0
        while len(ready) - start >= 2:
            length = int.from_bytes(ready[start : start + 2], "big")
            if length < SHORTEST:
                self._counts["tcp-strange"] += 1
                return None
            if len(ready) - start - 2 < length:
                break
            messages.append(bytes(ready[start + 2 : start + 2 + length]))
            start += 2 + length
        del ready[:start]
        return messages


def _is_whole(payload: bytes) -> bool:
    """Whether it begins and ends where messages do."""
    start = 0
    while start + 2 <= len(payload):
        length = int.from_bytes(payload[start : start + 2], "big")
        if length < SHORTEST:
            return False
        start += 2 + length
    return start == len(payload)
