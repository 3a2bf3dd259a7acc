"""DNS over TCP in segments of any order, size and overlap."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest
from effort import calls
from hypothesis import given
from hypothesis import strategies as st

from enforcer.constants import FIN, RST, SYN, TCP
from enforcer.dns.packet import Packet
from enforcer.dns.stream import AHEAD, EARLY, OVERHEAD, SILENCE, TOTAL, Streams

KEY = "a connection"


def segment(sequence: int, payload: bytes = b"", flags: int = 0) -> Packet:
    return Packet(TCP, bytes(16), 53, bytes(16), 4000, payload, sequence % (1 << 32), flags)


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(message)) + message for message in messages)


def made() -> tuple[Streams, Counter[str]]:
    counts: Counter[str] = Counter()
    return Streams(counts), counts


ONE, TWO = b"1" * 40, b"2" * 50


def test_one_message() -> None:
    streams, _ = made()
    assert streams.feed(KEY, segment(99, flags=SYN)) == []
    assert streams.feed(KEY, segment(100, framed(ONE))) == [ONE]
    assert streams.feed(KEY, segment(142, framed(TWO), FIN)) == [TWO]
    assert len(streams) == 0


def test_data_in_the_syn() -> None:
    streams, _ = made()
    assert streams.feed(KEY, segment(99, framed(ONE), SYN)) == [ONE]


def test_several_in_one_segment_and_one_in_several() -> None:
    streams, _ = made()
    streams.feed(KEY, segment(99, flags=SYN))
    whole = framed(ONE, TWO)
    assert streams.feed(KEY, segment(100, whole + framed(ONE)[:1])) == [ONE, TWO]
    rest = framed(ONE)[1:]
    for offset in range(len(rest) - 1):
        assert streams.feed(KEY, segment(101 + len(whole) + offset, rest[offset : offset + 1])) == []
    assert streams.feed(KEY, segment(100 + len(whole) + len(rest), rest[-1:])) == [ONE]


def test_out_of_order_comes_with_what_was_missing() -> None:
    streams, _ = made()
    streams.feed(KEY, segment(99, flags=SYN))
    data = framed(ONE, TWO)
    assert streams.feed(KEY, segment(130, data[30:60])) == []
    assert streams.feed(KEY, segment(160, data[60:])) == []
    assert streams.feed(KEY, segment(100, data[:35])) == [ONE, TWO]  # overlaps an early segment


def test_retransmissions_give_nothing_twice() -> None:
    streams, _ = made()
    streams.feed(KEY, segment(99, flags=SYN))
    assert streams.feed(KEY, segment(100, framed(ONE))) == [ONE]
    assert streams.feed(KEY, segment(100, framed(ONE))) == []
    assert streams.feed(KEY, segment(100, framed(ONE, TWO))) == [TWO]


def test_a_reset_and_a_new_connection() -> None:
    streams, _ = made()
    streams.feed(KEY, segment(99, flags=SYN))
    streams.feed(KEY, segment(100, framed(ONE)[:20]))
    streams.feed(KEY, segment(0, flags=RST))
    assert len(streams) == 0
    streams.feed(KEY, segment(99, flags=SYN))
    streams.feed(KEY, segment(100, framed(ONE)[:20]))
    streams.feed(KEY, segment(5000, flags=SYN))
    assert streams.feed(KEY, segment(5001, framed(TWO))) == [TWO]


def test_a_connection_from_before_begins_where_a_message_does() -> None:
    streams, counts = made()
    assert streams.feed(KEY, segment(100, framed(ONE)[:20])) == []
    assert streams.feed(KEY, segment(120, framed(ONE)[20:])) == []
    assert counts == {"tcp-midway": 2}
    assert len(streams) == 0
    assert streams.feed(KEY, segment(142, framed(ONE, TWO))) == [ONE, TWO]
    assert streams.feed(KEY, segment(142 + len(framed(ONE, TWO)), framed(ONE)[:9])) == []
    assert streams.feed(KEY, segment(151 + len(framed(ONE, TWO)), framed(ONE)[9:])) == [ONE]


def test_what_is_no_dns_is_given_up() -> None:
    streams, counts = made()
    streams.feed(KEY, segment(99, flags=SYN))
    assert streams.feed(KEY, segment(100, b"\0\3abc")) == []
    assert (len(streams), counts) == (0, {"tcp-strange": 1})


def test_a_gap_is_bounded() -> None:
    streams, counts = made()
    streams.feed(KEY, segment(99, flags=SYN))
    for start in range(10, 2 * AHEAD, 1000):
        streams.feed(KEY, segment(100 + start, bytes(1000)))
    assert counts["tcp-gap"] == 1
    assert len(streams) == 0
    streams.feed(KEY, segment(99, flags=SYN))
    streams.feed(KEY, segment(100 + AHEAD, b"x"))
    assert counts["tcp-gap"] == 2


def test_early_segments_are_bounded() -> None:
    streams, counts = made()
    streams.feed(KEY, segment(99, flags=SYN))
    message = bytes(2 * EARLY)
    data = framed(message)
    early = range(2, 2 + 2 * EARLY, 2)
    for at in reversed(early):
        assert streams.feed(KEY, segment(100 + at, data[at : at + 1])) == []
        assert streams.feed(KEY, segment(100 + at, data[at : at + 1])) == []
    assert streams._room == (16 << 20) - EARLY * (1 + OVERHEAD)
    assert streams.feed(KEY, segment(103, data[3:4])) == []
    assert (len(streams), counts) == (0, {"tcp-gap": 1})


def test_many_early_segments_are_joined_at_once() -> None:
    streams, counts = made()

    def feed() -> None:
        streams.feed(KEY, segment(99, flags=SYN))
        data = framed(bytes(EARLY - 1))
        for at in reversed(range(1, len(data))):
            assert streams.feed(KEY, segment(100 + at, data[at : at + 1])) == []
        assert streams.feed(KEY, segment(100, data[:1])) == [bytes(EARLY - 1)]

    assert calls(feed) < 100 * EARLY
    assert counts == {}
    assert streams._room == 16 << 20


def test_who_is_silent_is_forgotten() -> None:
    streams, counts = made()
    streams.feed(1, segment(99, flags=SYN), 0.0)
    streams.feed(2, segment(99, flags=SYN), 0.0)
    streams.feed(1, segment(100, framed(ONE)), 10.0)
    streams.expire(SILENCE - 1)
    assert len(streams) == 2
    streams.expire(SILENCE)
    assert (len(streams), counts) == (1, {"tcp-silent": 1})
    assert streams.feed(1, segment(142, framed(TWO)), SILENCE) == [TWO]
    assert streams.feed(2, segment(100, framed(ONE)), SILENCE) == [ONE]  # resumes at the start of a message


def test_all_together_are_bounded() -> None:
    counts: Counter[str] = Counter()
    streams = Streams(counts, limit=10, total=5000)
    for number in range(12):
        streams.feed(number, segment(99, flags=SYN))
    assert (len(streams), counts) == (10, {"tcp-evicted": 2})
    for number in range(2, 12):
        streams.feed(number, segment(100, b"\xff\xff" + bytes(998)))
    assert counts["tcp-full"] == 5
    assert len(streams) == 5
    # The most recently active streams stay.
    assert streams.feed(11, segment(1100, bytes(64537))) == [bytes(65535)]
    streams.feed(3, segment(100, flags=RST))
    streams.feed(3, segment(99, flags=SYN))
    assert streams.feed(3, segment(100, framed(ONE))) == [ONE]


def test_one_client_takes_nothing_from_others() -> None:
    counts: Counter[str] = Counter()
    streams = Streams(counts, limit=10, of_one_client=3, bytes_of_one_client=2500)
    streams.feed("other", segment(99, flags=SYN), client=b"b")
    for number in range(9):
        streams.feed(number, segment(99, flags=SYN), client=b"a")
    assert (len(streams), counts) == (4, {"tcp-evicted": 6})
    streams.feed("other", segment(100, framed(ONE)[:20]), client=b"b")
    for number in range(6, 9):
        streams.feed(number, segment(100, b"\xff\xff" + bytes(998)), client=b"a")
    assert (len(streams), counts["tcp-full"]) == (3, 1)
    assert streams.feed("other", segment(120, framed(ONE)[20:]), client=b"b") == [ONE]
    for key in ("other", *range(9)):
        streams.feed(key, segment(0, flags=RST))
    assert (len(streams), streams._room, streams._clients) == (0, TOTAL, {})


@given(
    st.lists(st.binary(min_size=12, max_size=300), min_size=1, max_size=8),
    st.integers(0, (1 << 32) - 1),
    st.randoms(use_true_random=False),
)
def test_any_segmentation(messages: list[bytes], start: int, chance: random.Random) -> None:
    data = framed(*messages)
    pieces = []
    offset = 0
    while offset < len(data):
        size = chance.randint(1, 200)
        pieces.append((offset, data[offset : offset + size]))
        if chance.random() < 0.3:  # retransmitted with other bounds
            back = chance.randint(0, offset)
            pieces.append((back, data[back : offset + chance.randint(1, size)]))
        offset += size
    chance.shuffle(pieces)
    streams, _ = made()
    streams.feed(KEY, segment(start - 1, flags=SYN))
    out = [message for at, piece in pieces for message in streams.feed(KEY, segment(start + at, piece))]
    assert out == messages


@given(st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=50), st.integers(0, 7)), max_size=30))
def test_nothing_raises_and_no_byte_is_lost_count_of(feed: list[tuple[int, bytes, int]]) -> None:
    counts: Counter[str] = Counter()
    streams = Streams(counts, limit=3, total=500)
    for number, (sequence, payload, flags) in enumerate(feed):
        streams.feed(number % 4, segment(sequence, payload, flags))
    for number in range(4):
        streams.feed(number, segment(0, flags=RST))
    assert len(streams) == 0
    assert streams._room == 500


@pytest.mark.parametrize("start", [0, (1 << 32) - 20])
def test_numbers_wrap(start: int) -> None:
    streams, _ = made()
    streams.feed(KEY, segment(start - 1, flags=SYN))
    data = framed(ONE, TWO)
    assert streams.feed(KEY, segment(start + 50, data[50:])) == []
    assert streams.feed(KEY, segment(start, data[:50])) == [ONE, TWO]
