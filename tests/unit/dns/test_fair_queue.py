"""FairQueue and TimeBudget: clients take turns, and none exceeds its share."""

from __future__ import annotations

import pytest

from enforcer.dns import fair_queue
from enforcer.dns.fair_queue import BACKLOG, BURST, QUANTUM, QUANTUM_OF_NEW, SHARE, FairQueue, TimeBudget

FLOOD, OTHER, THIRD = b"flood", b"other", b"third"


def filled(**counts: int) -> FairQueue[str]:
    """A queue with this number of items by client, each of half a turn's cost; no client is new to it."""
    queue: FairQueue[str] = FairQueue()
    for client in counts:
        assert queue.put(client, client, 1)
    assert queue.next_turn() == list(counts)
    for client, count in counts.items():
        for number in range(count):
            assert queue.put(client, f"{client}{number}", QUANTUM // 2)
    return queue


def turns(queue: FairQueue[str]) -> list[list[str]]:
    """The items of all remaining turns."""
    found = []
    while queue:
        found.append(queue.next_turn())
    return found


def test_clients_take_turns_and_keep_their_order() -> None:
    queue = filled(a=6, b=2, c=3)
    assert turns(queue) == [["a0", "a1"], ["b0", "b1"], ["c0", "c1"], ["a2", "a3"], ["c2"], ["a4", "a5"]]
    assert queue.next_turn() == []


def test_a_newcomer_comes_before_a_backlog() -> None:
    queue = filled(a=6)
    assert queue.next_turn() == ["a0", "a1"]
    assert queue.put("b", "b0", 10)
    assert queue.put("c", "c0", 10)
    assert queue.next_turn() == ["b0", "c0"]
    assert queue.next_turn() == ["a2", "a3"]


def test_to_come_and_go_is_of_no_advantage() -> None:
    """A client that queues one item after each of its turns has no more turns than others."""
    queue = filled(a=20)
    order = []
    while queue:
        queue.put("b", "b", QUANTUM)
        order += [item[0] for item in queue.next_turn()]
        if order.count("a") == 20:
            break
    assert order.count("b") * 2 <= 20 + 2


def test_new_clients_without_end_do_not_stop_the_old_ones() -> None:
    queue = filled(a=6)
    order = []
    for number in range(6):
        for one in range(10):
            queue.put(10 * number + one, "new", QUANTUM)
        order += queue.next_turn()
    assert [item for item in order if item != "new"] == ["a0", "a1", "a2", "a3", "a4", "a5"]


def test_newcomers_are_bounded_too() -> None:
    queue = filled(a=2)
    assert queue.next_turn() == ["a0", "a1"]
    for number in range(100):
        assert queue.put(number, f"n{number}", QUANTUM // 2)
    first = queue.next_turn()
    assert len(first) == QUANTUM_OF_NEW // (QUANTUM // 2)
    assert sum(len(turn) for turn in turns(queue)) == 100 - len(first)


def test_shares_are_by_cost_and_not_by_number() -> None:
    queue: FairQueue[bytes] = FairQueue()
    for _ in range(15):
        assert queue.put(FLOOD, FLOOD, 2000)
    for _ in range(150):
        assert queue.put(OTHER, OTHER, 200)
    taken = [item for _ in range(16) for item in queue.next_turn()]
    assert taken.count(FLOOD) * 2000 == pytest.approx(taken.count(OTHER) * 200, abs=2 * QUANTUM)


def test_an_item_larger_than_a_turn_has_its_turn() -> None:
    queue: FairQueue[bytes] = FairQueue()
    assert queue.put(FLOOD, FLOOD, 10 * BACKLOG)  # the only item may exceed the backlog
    assert not queue.put(FLOOD, FLOOD, 1)
    assert queue.put(OTHER, OTHER, 10)
    assert queue.next_turn() == [OTHER]
    assert queue.next_turn() == [FLOOD]
    assert not queue


def test_what_waits_is_bounded_for_each_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: FairQueue[bytes] = FairQueue()
    assert sum(queue.put(FLOOD, FLOOD, 1000) for _ in range(1000)) == BACKLOG // 1000
    assert queue.put(OTHER, OTHER, 1000)
    monkeypatch.setattr(fair_queue, "BACKLOG_OF_ALL", BACKLOG + 2000)
    assert sum(queue.put(OTHER, OTHER, 1000) for _ in range(10)) < 3
    assert queue.put(THIRD, THIRD, 1000)  # the first item of a client is always accepted
    while queue:
        queue.next_turn()
    assert sum(queue.put(FLOOD, FLOOD, 1000) for _ in range(1000)) == BACKLOG // 1000


def test_a_client_that_may_not_keeps_what_waits() -> None:
    queue = filled(a=3, b=2)
    assert queue.put("c", "c0", 10)
    assert queue.next_turn(lambda client: client == "b") == ["b0", "b1"]
    assert queue.next_turn(lambda _: False) == []
    assert queue
    assert sorted(item for turn in turns(queue) for item in turn) == ["a0", "a1", "a2", "c0"]


def test_a_client_has_its_share_of_time_and_no_more() -> None:
    budget = TimeBudget()
    now = used = 0.0
    for _ in range(10_000):  # 100 s in which the client uses all time that it gets
        if budget.has(FLOOD, now):
            budget.spend([(FLOOD, 7)], 0.01, now)
            used += 0.01
        now += 0.01
    assert used == pytest.approx(BURST + SHARE * now, rel=0.01)
    assert budget.has(OTHER, now)
    budget.expire(now)
    assert len(budget) == 1
    budget.expire(now + 2 * BURST / SHARE)
    assert len(budget) == 0
    assert budget.has(FLOOD, now + 0.1)


def test_time_is_charged_by_what_each_cost() -> None:
    budget = TimeBudget()
    budget.spend([(FLOOD, 90), (OTHER, 10)], BURST * 1.1, 0.0)
    assert budget.has(FLOOD, 0.0)
    budget.spend([(OTHER, 1), (FLOOD, 9)], BURST * 0.1, 0.0)
    assert not budget.has(FLOOD, 0.0)
    assert budget.has(OTHER, 0.0)
    budget.spend([], 5.0, 0.0)
    assert budget.has(OTHER, 0.0)
