"""The table of open questions."""

from __future__ import annotations

from collections import Counter

from enforcer.dns.questions import LIFETIME, QuestionKey, Questions

ASKED = (b"\1a\0", 1, 1)


def key(number: int, client: int = 1) -> QuestionKey:
    return QuestionKey(bytes(10) + b"\xff\xff" + client.to_bytes(4, "big"), 4000, bytes(16), 17, number)


def made(total: int = 100, of_one_client: int = 10) -> tuple[Questions, Counter[str]]:
    counts: Counter[str] = Counter()
    return Questions(counts, total, of_one_client), counts


def test_only_what_was_asked() -> None:
    questions, _ = made()
    questions.note(key(1), ASKED, 0.0)
    assert questions.find(key(1), 1.0) == ASKED
    for other in (
        key(2),
        key(1, client=2),
        key(1)._replace(port=4001),
        key(1)._replace(server=b"\1" * 16),
        key(1)._replace(protocol=6),
    ):
        assert questions.find(other, 1.0) is None
    questions.answered(key(1))
    assert questions.find(key(1), 1.0) is None
    assert len(questions) == 0


def test_their_time_is_limited() -> None:
    questions, counts = made()
    questions.note(key(1), ASKED, 0.0)
    questions.note(key(2), ASKED, 5.0)
    assert questions.find(key(1), LIFETIME) is None
    questions.expire(LIFETIME)
    assert len(questions) == 1
    assert counts == {"question-unanswered": 1}


def test_a_repeated_question_has_its_time_anew() -> None:
    questions, _ = made()
    questions.note(key(1), ASKED, 0.0)
    questions.note(key(1), (b"\1b\0", 1, 1), 5.0)
    assert questions.find(key(1), LIFETIME + 1) == (b"\1b\0", 1, 1)
    questions.expire(LIFETIME + 1)
    assert len(questions) == 1


def test_one_client_takes_nothing_from_others() -> None:
    questions, counts = made()
    questions.note(key(0, client=1), ASKED, 0.0)
    for number in range(50):
        questions.note(key(number, client=2), ASKED, 1.0)
    assert questions.find(key(0, client=1), 2.0) == ASKED
    assert questions.find(key(39, client=2), 2.0) is None
    assert questions.find(key(40, client=2), 2.0) == ASKED
    assert counts == {"question-evicted": 40}
    assert len(questions) == 11


def test_one_client_of_ipv6_is_a_64() -> None:
    questions, counts = made()
    for number in range(12):
        host = bytes.fromhex("fd00000100000000") + number.to_bytes(8, "big")
        questions.note(key(0)._replace(client=host), ASKED, 0.0)
    questions.note(key(0)._replace(client=bytes.fromhex("fd00000100000001") + bytes(8)), ASKED, 0.0)
    assert counts == {"question-evicted": 2}
    questions.expire(LIFETIME)
    assert len(questions) == len(questions._clients) == 0


def test_the_oldest_of_all_goes() -> None:
    questions, counts = made(total=5)
    for client in range(8):
        questions.note(key(0, client=client), ASKED, float(client))
    assert len(questions) == 5
    assert counts == {"question-evicted": 3}
    assert questions.find(key(0, client=2), 8.0) is None
    assert questions.find(key(0, client=3), 8.0) == ASKED
    questions.expire(100.0)
    assert len(questions) == len(questions._clients) == 0
