"""Detection of packets that are held for too long."""

from __future__ import annotations

from enforcer.dns.deadline import DEADLINE, IDLE, INTERVAL, Overdue


def test_what_was_there_a_deadline_ago_is_too_late() -> None:
    overdue = Overdue()
    assert overdue.note(3, 10, 0.0) is None
    assert overdue.note(5, 12, DEADLINE / 2) is None
    assert overdue.note(5, 14, DEADLINE) == 10
    assert overdue.note(1, 14, DEADLINE * 1.6) == 12
    assert overdue.note(1, 14, DEADLINE * 5) == 14


def test_an_empty_queue_begins_again() -> None:
    overdue = Overdue()
    assert overdue.note(1, 10, 0.0) is None
    assert overdue.note(0, 10, 0.1) is None
    assert overdue.note(1, 11, DEADLINE) is None
    assert overdue.note(1, 11, 2 * DEADLINE) == 11


def test_nothing_is_held_for_half_a_second() -> None:
    assert IDLE + DEADLINE + INTERVAL < 0.5
