"""The flows that a sweep finds: idle ones to reap, unanswered and silent ones to look up in conntrack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from enforcer.constants.bpf import FlowFlag, State
from enforcer.datapath import sweep

FLOW = np.dtype(
    [
        ("created", "<u8"),
        ("last_seen", "<u8"),
        ("timeout", "u1"),
        ("counted", "u1"),
        ("replied", "u1"),
        ("state", "u1"),
        ("flags", "u1"),
        ("pad", "u1", 3),
    ]
)
ESTABLISHED, FIN_WAIT, CLOSE = State.ESTABLISHED, State.FIN_WAIT, State.CLOSE
ASSURED, TELL = FlowFlag.ASSURED, FlowFlag.ASSURED | FlowFlag.TELL_CONNTRACK
TIMEOUTS = (np.array([10, 100, 5]) * 1e9).astype("<u8")


class Flows:
    key = np.dtype("<u4")

    def __init__(self, rows: list[dict[str, float]]):
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.values = np.zeros(len(rows), dtype=FLOW)
        for value, row in zip(self.values, rows, strict=True):
            value["created"] = now - int(row.get("age", 50) * 1e9)
            value["last_seen"] = now - int(row.get("idle", 0) * 1e9)
            value["timeout"] = row.get("timeout", 1)
            value["counted"], value["replied"] = row.get("counted", 1), row.get("replied", 1)
            value["state"] = row.get("state", ESTABLISHED)
            value["flags"] = TELL if row.get("tell") else ASSURED

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.values), 2):
            yield (
                np.arange(start, min(start + 2, len(self.values)), dtype=self.key),
                self.values[start : start + 2],
            )


@pytest.fixture
def reaped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    named: list[int] = []

    def reap(_: Any, keys: np.ndarray, *, unknown: bool = False) -> int:
        assert not unknown
        named.extend(keys.tolist())
        return len(keys)

    monkeypatch.setattr(sweep, "reap", reap)
    return named


def run(rows: list[dict[str, float]], asked_since: float = 0.0, sample: int = 100) -> sweep.Sweep:
    maps: Any = SimpleNamespace(flows=Flows(rows))
    pins: Any = None
    return sweep.sweep(maps, pins, TIMEOUTS, asked_since, sample)


def test_idle_beyond_the_timeout_of_its_state(reaped: list[int]) -> None:
    rows = [
        {"idle": 9, "timeout": 0},
        {"idle": 11, "timeout": 0},
        {"idle": 11, "timeout": 1},
        {"idle": 101, "timeout": 1},
        {"idle": 6, "timeout": 2},
    ]
    found = run(rows)
    assert reaped == [1, 3, 4]
    assert (found.flows, found.reaped, len(found.unanswered)) == (5, 3, 0)
    assert found.seconds < 10


def test_suspects_are_unanswered_counted_settled_and_asked_about_once(reaped: list[int]) -> None:
    unanswered = {"replied": 0}
    rows = [
        unanswered | {"age": 30},
        unanswered | {"age": 30, "counted": 0},
        unanswered | {"age": 0.5},
        {"age": 30},
        unanswered | {"age": 30, "idle": 200},
        unanswered | {"age": 60},
    ]
    assert run(rows).unanswered.tolist() == [0, 5]
    assert run(rows, time.monotonic() - 40).unanswered.tolist() == [0]
    assert run(rows, time.monotonic()).unanswered.tolist() == []
    assert reaped == [4, 4, 4]


def test_some_of_the_silent_ones_are_asked_about(reaped: list[int]) -> None:
    rows = [{"idle": 6.0, "age": 30, "timeout": 1} for _ in range(20)] + [
        {"idle": 1.0, "age": 30, "timeout": 1}
    ] * 20
    rows += [{"idle": 6.0, "age": 30, "timeout": 1, "counted": 0}]
    assert sorted(run(rows).idle.tolist()) == list(range(20))
    asked = {key for _ in range(200) for key in run(rows, sample=3).idle.tolist()}
    assert asked == set(range(20))
    assert len(run(rows, sample=3).idle) == 3


def test_connections_picked_up_midway_are_named_when_they_are_over(reaped: list[int]) -> None:
    """conntrack has them as established and would keep them for hours."""
    rows: list[dict[str, float]] = [
        {"idle": 11, "timeout": 0, "replied": 0},
        {"idle": 9, "timeout": 0, "replied": 0},
        {"idle": 11, "timeout": 0, "replied": 1},
        {"idle": 11, "timeout": 0, "replied": 0, "state": FIN_WAIT},
        {"idle": 11, "timeout": 0, "replied": 0},
    ]
    found = run(rows)
    assert found.outlived.tolist() == [0, 4]
    assert reaped == [0, 2, 3, 4]


def test_conntrack_is_told_what_it_cannot_know(reaped: list[int]) -> None:
    """conntrack gets the state while the flow lives; after expiry without that its entry is deleted."""
    rows: list[dict[str, float]] = [
        {"idle": 11, "timeout": 0, "state": CLOSE, "tell": 1},
        {"idle": 9, "timeout": 0, "state": CLOSE, "tell": 1},
        {"idle": 11, "timeout": 0, "state": CLOSE},
        {"idle": 9, "timeout": 0, "state": CLOSE},
        {"idle": 9, "timeout": 0, "state": ESTABLISHED, "tell": 1},
    ]
    found = run(rows)
    assert found.outlived.tolist() == [0]
    assert {state: keys.tolist() for state, keys in found.untold.items()} == {ESTABLISHED: [4], CLOSE: [1]}
    assert reaped == [0, 2]


def test_seen_after_the_sweep_began(reaped: list[int]) -> None:
    """Times of another CPU may be slightly in the future; differences must not wrap."""
    assert run([{"idle": -1, "age": -1, "replied": 0}]).unanswered.tolist() == []
    assert reaped == []


def test_nothing_to_sweep(reaped: list[int]) -> None:
    found = run([])
    assert (found.flows, found.reaped) == (0, 0)
    assert found.unanswered.dtype == Flows.key and not len(found.unanswered)
    assert found.outlived.dtype == Flows.key and not len(found.outlived)
