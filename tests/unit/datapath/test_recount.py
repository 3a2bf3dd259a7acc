"""The counter errors that two looks at the counters and the flows between them prove."""

from __future__ import annotations

import random

import numpy as np
import pytest

from enforcer.datapath import counts
from enforcer.datapath.counts import Counts
from enforcer.datapath.recount import Errors, Look, lasting, proven

KEY = np.dtype([("origin", "<u4", 3), ("port", "<u2"), ("pad", "u1", 3)])


def key(number: int) -> np.ndarray:
    made = np.zeros((), dtype=KEY)
    made["port"] = number
    return made


def look(**rows: tuple[int, int]) -> Look:
    """A look, by names such as o7: the counter, and the number of flows ever admitted."""
    keys = np.array([key(int(name[1:])) for name in rows], dtype=KEY)
    values = np.array(list(rows.values()), dtype=np.int64).reshape(-1, 2)
    return Look(keys, values[:, :1], values[:, 1])


def flows(**rows: int) -> Counts:
    keys = np.array([key(int(name[1:])) for name in rows], dtype=KEY)
    return Counts(keys, np.array(list(rows.values()), dtype=np.int64).reshape(-1, 1))


def errors(found: Errors) -> dict[int, int]:
    return {int(np.frombuffer(raw, dtype=KEY)[0]["port"]): each[0] for raw, each in found.items()}


@pytest.mark.parametrize(
    ("before", "after", "counted", "error"),
    [
        ((3, 3), (3, 3), 3, 0),
        ((3, 3), (3, 3), 2, 1),
        ((3, 3), (3, 3), 5, -2),
        # One flow was admitted during reading: it may be among those read.
        ((3, 3), (4, 4), 3, 0),
        ((3, 3), (4, 4), 4, 0),
        ((3, 3), (4, 4), 2, 1),
        # One flow was released.
        ((3, 3), (2, 3), 2, 0),
        ((3, 3), (2, 3), 3, 0),
        ((3, 3), (2, 3), 1, 1),
        ((3, 3), (2, 3), 4, -1),
        # Two flows were admitted and two released.
        ((3, 3), (3, 5), 1, 0),
        ((3, 3), (3, 5), 5, 0),
        ((3, 3), (3, 5), 0, 1),
    ],
)
def test_what_no_coming_and_going_explains(
    before: tuple[int, int], after: tuple[int, int], counted: int, error: int
) -> None:
    found = errors(proven(look(o1=before), look(o1=after), flows(o1=counted) if counted else flows()))
    assert found == ({1: error} if error else {})


def test_counters_that_come_and_go() -> None:
    """An origin without flows may be deleted, and another one created."""
    assert proven(look(o1=(0, 9)), look(o2=(1, 1)), flows(o2=1)) == {}
    assert proven(look(), look(o2=(1, 1)), flows()) == {}
    # Flows of an origin without a counter.
    assert errors(proven(look(), look(), flows(o3=2))) == {3: -2}
    assert proven(look(), look(), flows()) == {}


def test_only_what_two_sweeps_prove_is_corrected() -> None:
    one = proven(look(o1=(5, 5), o2=(5, 5), o3=(0, 9)), look(o1=(5, 5), o2=(5, 5), o3=(0, 9)), flows(o3=2))
    two = proven(look(o1=(3, 5), o3=(0, 9)), look(o1=(3, 5), o3=(0, 9)), flows(o3=1))
    assert errors(lasting(one, two)) == {1: 3, 3: -1}
    assert lasting({}, one) == lasting(one, {}) == {}
    assert lasting({b"x": (2, -1)}, {b"x": (-1, -3)}) == {b"x": (0, -1)}


def test_true_counters_are_never_corrected() -> None:
    """For random admissions and releases between the looks, and a random time of reading each flow."""
    chance = random.Random(7)
    for _ in range(2000):
        drift = chance.choice([0, 0, 0, 1, 4, -2])
        live = chance.randrange(0, 6)
        before = (max(0, live + drift), 100)
        total, read = 100, 0
        present = ["old"] * live
        # Each flow is read at a random time, if it exists then.
        for _ in range(chance.randrange(0, 8)):
            if present and chance.random() < 0.5:
                gone = present.pop(chance.randrange(len(present)))
                read += gone == "old" and chance.random() < 0.5
                read += gone == "new" and chance.random() < 0.5
            else:
                present.append("new")
                total += 1
        read += sum(one == "old" or chance.random() < 0.5 for one in present)
        if before[0] != live + drift:
            continue
        after = (max(0, len(present) + drift), total)
        if after[0] != len(present) + drift:
            continue
        found = errors(proven(look(o1=before), look(o1=after), flows(o1=read) if read else flows()))
        error = found.get(1, 0)
        assert error == 0 or (error > 0) == (drift > 0), (drift, before, after, read)
        assert abs(error) <= abs(drift)


def test_client_keys_are_addresses_and_64s() -> None:
    flow = np.dtype([("client", "<u4", 4), ("origin", "<u4", 4)])
    keys = np.zeros(3, dtype=flow)
    keys["client"][0] = np.frombuffer(bytes(10) + b"\xff\xff" + bytes([10, 0, 1, 2]), "<u4")
    keys["client"][1] = np.frombuffer(bytes.fromhex("20010db8000000010000000000000002"), "<u4")
    keys["client"][2] = np.frombuffer(bytes.fromhex("20010db80000000100ff0000000000aa"), "<u4")
    found = counts.client_keys(keys, np.dtype([("client", "<u4", 4)]))["client"]
    assert found[0].tobytes() == keys["client"][0].tobytes()
    assert found[1].tobytes() == found[2].tobytes() == bytes.fromhex("20010db800000001") + bytes(8)


def test_sums() -> None:
    parts = [flows(o1=2, o2=1), flows(o2=4), flows()]
    merged = counts.merged(parts, KEY, 1)
    assert {int(k["port"]): int(n[0]) for k, n in zip(*merged, strict=True)} == {1: 2, 2: 5}
    assert len(counts.merged([], KEY, 2).keys) == 0


def test_addresses_that_differ_in_high_bits_are_not_one() -> None:
    """For any seed: clients choose the addresses that they connect to."""
    kind = np.dtype(
        [("egress_address", "<u4", 4), ("origin", "<u4", 4), ("origin_port", "<u2"), ("pad", "u1", 6)]
    )
    words = np.random.default_rng(1).integers(0, 2**32, (1000, kind.itemsize // 4), dtype=np.uint32)
    others = words.copy()
    others[:500, 5:8] ^= np.uint32(1 << 30)
    others[500:, 5:8] ^= np.uint32(1 << 31)
    keys = np.concatenate([words, others]).view(kind).reshape(-1)
    assert len(np.unique(counts.hashed(keys))) == len(keys)
