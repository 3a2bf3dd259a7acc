"""Reassembles DNS messages from TCP segments (RFC 7766, 8: two bytes of length before each message).

Segments may be reordered, repeated, or contain several messages. The segment that completes a message yields
it at once: this segment is still held, and the client cannot read the message without it.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from enforcer.constants import FIN, RST, SYN
from enforcer.dns.packet import Packet

STREAMS = 4096
"""Limit for streams (directions of connections); beyond it, the one silent for longest is removed."""
OF_ONE_CLIENT = 512
"""The same limit for one client (:func:`enforcer.facts.names.client_prefix`)."""
AHEAD = 1 << 17
"""Bytes that a segment may be ahead of a gap."""
EARLY = 256
"""Segments kept ahead of a gap."""
TOTAL = 16 << 20
"""Bytes kept in all streams together, with OVERHEAD for each early segment."""
BYTES_OF_ONE_CLIENT = 2 << 20
"""The same limit for one client."""
OVERHEAD = 128
SILENCE = 30.0
"""Seconds until a silent stream is removed; it restarts at a segment that consists of whole messages."""
SHORTEST = 12
"""Bytes of a DNS header."""
_MODULO = 1 << 32


@dataclass(slots=True)
class _Stream:
    """One direction of one connection."""

    client: bytes
    expected: int
    """Sequence number of the next byte, extended beyond 32 bits so that it does not wrap."""
    heard: float
    ready: bytearray = field(default_factory=bytearray)
    early: dict[int, bytes] = field(default_factory=dict)
    """Segments ahead of a gap, by extended sequence number."""
    order: list[int] = field(default_factory=list)
    """Heap of their sequence numbers."""
    ahead: int = 0

    @property
    def size(self) -> int:
        return len(self.ready) + self.ahead + OVERHEAD * len(self.early)


@dataclass(slots=True)
class _Client:
    """The streams of one client."""

    room: int
    """Bytes left."""
    streams: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    """Their keys, the one silent for longest first."""


class Streams:
    """All streams of one direction.

    ``counts`` receives: ``tcp-midway`` (the beginning of the connection was not seen, and the segment does
    not consist of whole messages), ``tcp-gap`` (too much data after a missing segment), ``tcp-evicted`` (too
    many connections, of one client or in total), ``tcp-full`` (too many bytes, likewise), ``tcp-silent`` (no
    segment for SILENCE), ``tcp-strange`` (not DNS).
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
        """Return the messages that a segment of a client's connection completes, in order."""
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
        messages = self._reassemble(stream, sequence, payload)
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
        """Remove streams that were silent for SILENCE."""
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
        """Remove the stream silent for longest among those that hold bytes."""
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

    def _reassemble(self, stream: _Stream, sequence: int, payload: bytes) -> list[bytes] | None:
        """Return the completed messages; None if the stream has to be given up."""
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
        """Append the new part of a segment that begins at or before the next byte."""
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
    """Return whether a segment consists of whole messages."""
    start = 0
    while start + 2 <= len(payload):
        length = int.from_bytes(payload[start : start + 2], "big")
        if length < SHORTEST:
            return False
        start += 2 + length
    return start == len(payload)
