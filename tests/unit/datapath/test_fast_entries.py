"""Fast-path entries as user space reads them, and the switch of the fast path, on small real maps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from layouts import FLOW_KEY

from enforcer.constants import TCP
from enforcer.constants.bpf import IPV6_KIND
from enforcer.datapath import fast_entries, fast_path, syscall
from enforcer.datapath.fast_entries import EntryUse
from enforcer.datapath.jiffies import TICK, jiffies
from enforcer.datapath.maps import Map
from enforcer.reasons import by_name

MMAPABLE = 1024
BUCKETS = 64
REPLY = by_name()["reply"].number
U32 = np.dtype("<u4")
ENTRY = np.dtype(
    [
        ("client", "<u4", 4),
        ("origin", "<u4", 4),
        *((name, "<u2") for name in ("client_port", "origin_port", "egress_port", "slot")),
        ("until", "<u4"),
        *((name, "<u2") for name in ("generation", "next_hop", "largest")),
        ("kind", "u1"),
        ("reason", "u1"),
        *((name, "<u4") for name in ("acked", "packets", "bytes")),
    ]
)
FAST_PATH = np.dtype(
    [("generation", "<u4"), ("lifetime", "<u4"), ("seed", "<u8"), ("last_generation", "<u4"), ("pad", "<u4")]
)


@pytest.fixture
def maps(tmp_path: Path) -> Iterator[Any]:
    buckets = np.dtype([("entry", ENTRY, 4)])
    try:
        table = syscall.create_map(syscall.ARRAY, 4, buckets.itemsize, BUCKETS, MMAPABLE)
        row = syscall.create_map(syscall.ARRAY, 4, FAST_PATH.itemsize, 1)
    except OSError as error:
        pytest.skip(f"maps cannot be made here: {error}")
    yield SimpleNamespace(
        fast_buckets=Map(table, U32, buckets, "fast_buckets"),
        fast_path=Map(row, U32, FAST_PATH, "fast_path"),
        flows=SimpleNamespace(key=FLOW_KEY),
        directory=tmp_path,
    )
    os.close(table)
    os.close(row)


def flow(number: int, kind: int = TCP) -> dict[str, Any]:
    return {"client": number, "origin": number + 1, "client_port": 1, "origin_port": 2, "kind": kind}


def key(row: dict[str, Any]) -> bytes:
    made = np.zeros(1, dtype=FLOW_KEY)
    for name in ("client", "origin", "client_port", "origin_port"):
        made[name] = row[name]
    made["protocol"] = row["kind"] & ~IPV6_KIND
    return made.tobytes()


def learn(maps: Any, *rows: dict[str, Any], left: float = 3.0) -> None:
    """Writes entries, one per bucket; their generation is that in force unless the row has another."""
    for number, row in enumerate(rows):
        table = np.zeros((), dtype=maps.fast_buckets.value)
        entry = table["entry"][number % 4 : number % 4 + 1]
        entry["generation"] = maps.fast_path.get(0)["generation"]
        entry["until"] = (jiffies() + round(row.pop("left", left) / TICK)) & 0xFFFFFFFF
        for name, value in row.items():
            entry[name] = value
        maps.fast_buckets.put(number * 7 % BUCKETS, table)


def test_the_kernels_clock() -> None:
    before = jiffies()
    time.sleep(0.1)
    assert 0.09 / TICK < (jiffies() - before) & 0xFFFFFFFF < 10 / TICK
    assert round(1 / TICK) in (100, 250, 300, 1000)


def test_entries_by_flow(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    four, six, one = flow(1), flow(2, TCP | IPV6_KIND), flow(3)
    learn(
        maps,
        four | {"packets": 3, "bytes": 300},
        four | {"packets": 4, "bytes": 40, "reason": REPLY},
        six | {"packets": 1, "bytes": 60, "left": -2.0},
        one,
    )
    found = fast_entries.by_flow(maps)
    assert found.keys() == {key(four), key(six), key(one)}
    assert found[key(four)] == EntryUse(7, 340, valid=True, idle=0.0)
    assert found[key(one)] == EntryUse(0, 0, valid=True, idle=None)
    packets, size, valid, idle = found[key(six)]
    assert (packets, size, valid) == (1, 60, False)
    assert idle is not None and 2.0 - TICK <= idle < 30
    assert fast_entries.count_fast(maps) == 2


def test_what_is_so_old_that_the_clock_has_come_round(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    learn(maps, flow(1) | {"left": fast_path.LIFETIME + 60})
    assert not fast_entries.by_flow(maps)[key(flow(1))].valid
    assert fast_entries.count_fast(maps) == 0


def test_one_good_direction_is_enough(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    learn(maps, flow(1) | {"left": -1.0}, flow(1) | {"reason": REPLY})
    assert fast_entries.by_flow(maps)[key(flow(1))].valid
    assert fast_entries.count_fast(maps) == 1


def test_the_clock_wraps(maps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast_path.set_enabled(maps, on=True)
    monkeypatch.setattr(fast_entries, "jiffies", lambda: 0xFFFFFFF0)
    learn(maps, flow(1) | {"until": 16, "packets": 1}, flow(2) | {"until": 0xFFFFFFE0, "packets": 1})
    found = fast_entries.by_flow(maps)
    assert found[key(flow(1))] == EntryUse(1, 0, valid=True, idle=0.0)
    assert found[key(flow(2))] == EntryUse(1, 0, valid=False, idle=pytest.approx(16 * TICK))


def test_another_generation_is_none(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    learn(maps, flow(1) | {"packets": 5})
    assert fast_entries.count_fast(maps) == 1
    assert fast_path.invalidate(maps) is True
    assert fast_entries.count_fast(maps) == 0
    assert fast_entries.by_flow(maps)[key(flow(1))] == EntryUse(5, 0, valid=False, idle=0.0)


def test_nothing_learnt(maps: Any) -> None:
    assert fast_entries.by_flow(maps) == {}
    assert fast_entries.count_fast(maps) == 0


def test_a_full_table(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    full = np.zeros(BUCKETS, dtype=maps.fast_buckets.value)
    full["entry"]["until"] = jiffies() + round(3 / TICK)
    full["entry"]["generation"] = maps.fast_path.get(0)["generation"]
    full["entry"]["client"][..., 3] = np.arange(BUCKETS * 4).reshape(BUCKETS, 4)
    maps.fast_buckets.put_many(np.arange(BUCKETS), full)
    assert fast_entries.count_fast(maps) == len(fast_entries.by_flow(maps)) == BUCKETS * 4


def test_off_stays_off(maps: Any) -> None:
    for _ in range(2):
        fast_path.set_enabled(maps, on=False)
        learn(maps, flow(1))
        assert not fast_path.is_on(maps)
        assert fast_path.invalidate(maps) is False
        assert not fast_path.is_on(maps)
        assert fast_entries.count_fast(maps) == 0


def test_a_generation_does_not_come_back_soon(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    first = int(maps.fast_path.get(0)["generation"])
    seed = int(maps.fast_path.get(0)["seed"])
    seen = {first}
    for on in (True, False, True, False, True):
        fast_path.set_enabled(maps, on=on)
        row = maps.fast_path.get(0)
        assert int(row["seed"]) == seed != 0
        assert int(row["lifetime"]) == round(fast_path.LIFETIME / TICK)
        if on:
            assert int(row["generation"]) not in seen
            seen.add(int(row["generation"]))


def test_generations_have_sixteen_bits_and_are_never_none(maps: Any) -> None:
    fast_path.set_enabled(maps, on=True)
    row = maps.fast_path.get(0)
    row["generation"] = row["last_generation"] = 0xFFFF
    maps.fast_path.put(0, row)
    assert fast_path.invalidate(maps)
    assert int(maps.fast_path.get(0)["generation"]) == 1


def test_who_switches_off_is_not_overtaken_by_who_relearns(maps: Any) -> None:
    """Concurrent invalidations by events must not switch the fast path on again."""
    for _ in range(50):
        fast_path.set_enabled(maps, on=True)
        start = threading.Barrier(3)

        def relearn(start: threading.Barrier = start) -> None:
            start.wait()
            for _ in range(5):
                fast_path.invalidate(maps)

        others = [threading.Thread(target=relearn) for _ in range(2)]
        for each in others:
            each.start()
        start.wait()
        fast_path.set_enabled(maps, on=False)
        for each in others:
            each.join()
        assert not fast_path.is_on(maps)


def test_maps_that_are_pinned_no_more(maps: Any) -> None:
    maps.directory = maps.directory / "gone"
    fast_path.set_enabled(maps, on=True)
    assert fast_path.invalidate(maps) is True
