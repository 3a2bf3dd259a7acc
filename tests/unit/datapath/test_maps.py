"""Typed access to small real maps, which end with their file descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from enforcer.datapath import syscall
from enforcer.datapath.maps import Map, Maps
from enforcer.errors import EnforcerError, LayoutError, LostPinError

KEY = np.dtype([("address", "<u4", 4), ("port", "<u2"), ("pad", "<u2")])
VALUE = np.dtype([("count", "<u8"), ("slot", "<u4"), ("pad", "<u4")])
U32 = np.dtype("<u4")
PREFIX = np.dtype([("length", "<u4"), ("address", "<u4", 4)])


def made(kind: int, key: np.dtype, value: np.dtype, entries: int, flags: int = 0) -> Iterator[Map]:
    try:
        fd = syscall.create_map(kind, key.itemsize, value.itemsize, entries, flags)
    except OSError as error:
        pytest.skip(f"maps cannot be made here: {error}")
    yield Map(fd, key, value, "test")
    os.close(fd)


@pytest.fixture
def hashed() -> Iterator[Map]:
    yield from made(syscall.HASH, KEY, VALUE, 5000)


@pytest.fixture
def array() -> Iterator[Map]:
    yield from made(syscall.ARRAY, U32, VALUE, 3000)


@pytest.fixture
def trie() -> Iterator[Map]:
    yield from made(syscall.LPM_TRIE, PREFIX, U32, 100, syscall.F_NO_PREALLOC)


@pytest.fixture
def percpu() -> Iterator[Map]:
    yield from made(syscall.PERCPU_ARRAY, U32, VALUE, 4)


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    keys, values = np.zeros(count, dtype=KEY), np.zeros(count, dtype=VALUE)
    keys["address"][:, 3], keys["port"] = np.arange(count), 443
    values["count"], values["slot"] = np.arange(count) * 3, 7
    return keys, values


def test_one_element(hashed: Map) -> None:
    (key,), (value,) = rows(1)
    assert hashed.get(key) is None
    assert hashed.delete(key) is False
    hashed.put(key, value)
    found = hashed.get(key)
    assert found is not None and found.shape == () and found["slot"] == 7
    hashed.put(key, value, syscall.EXIST)
    with pytest.raises(EnforcerError, match="EEXIST"):
        hashed.put(key, value, syscall.NOEXIST)
    assert hashed.delete(key) is True
    assert hashed.get(key) is None


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4999, 5000])
def test_all_elements_of_a_hash(hashed: Map, count: int) -> None:
    keys, values = rows(count)
    hashed.put_many(keys, values)
    found, what = hashed.items()
    order = np.argsort(found["address"][:, 3])
    assert (found[order] == keys).all() and (what[order] == values).all()


@pytest.mark.parametrize("size", [64, 100, 1000, 65536])
def test_chunks_of_a_hash(hashed: Map, size: int) -> None:
    """A chunk never splits a bucket: each element occurs once, and chunks have at most ``size`` elements."""
    keys, values = rows(5000)
    hashed.put_many(keys, values)
    seen: list[int] = []
    for found, what in hashed.chunks(size):
        assert 0 < len(found) == len(what) <= max(size, 64)
        assert (what["count"] == found["address"][:, 3] * np.uint64(3)).all()
        seen += found["address"][:, 3].tolist()
    assert sorted(seen) == list(range(5000))


def test_more_than_fits(hashed: Map) -> None:
    with pytest.raises(EnforcerError, match="writing 5001 elements"):
        hashed.put_many(*rows(5001))


def test_an_array(array: Map) -> None:
    keys = np.arange(10, 2000, dtype=U32)
    values = np.zeros(len(keys), dtype=VALUE)
    values["count"] = keys
    array.put_many(keys, values)
    found, what = array.items()
    assert (found == np.arange(3000)).all()
    assert (what["count"][10:2000] == keys).all() and not what["count"][:10].any()
    with pytest.raises(EnforcerError, match="E2BIG"):
        array.put(3000, values[0])


def test_a_trie(trie: Map) -> None:
    for length, number in ((8, 1), (16, 2), (128, 3)):
        key = np.zeros((), dtype=PREFIX)
        key["length"], key["address"][0] = length, 0x0000_01FD
        trie.put(key, number)
    assert len(trie.items()[0]) == 3
    for address, number in (([0x01FD, 0, 0, 0], 3), ([0x01FD, 0, 0, 1], 2), ([0x02FD, 0, 0, 0], 1)):
        key = np.zeros((), dtype=PREFIX)
        key["length"], key["address"] = 128, address
        assert trie.get(key) == number
    key["address"] = [0xFE, 0, 0, 0]
    assert trie.get(key) is None


def test_a_value_for_each_processor(percpu: Map) -> None:
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition("-")[2]
    copies = (int(last) + 1,) if int(last) else ()
    values = np.zeros(copies, dtype=VALUE)
    values["count"] = np.arange(values.size).reshape(copies) + 1
    percpu.put(2, values)
    found = percpu.get(2)
    assert found is not None and found.shape == copies and (found == values).all()
    keys, every = percpu.items()
    assert (keys == np.arange(4)).all() and every.shape == (4, *copies)
    assert (every[2] == values).all() and not every["count"][[0, 1, 3]].any()


def test_another_layout_is_refused(hashed: Map) -> None:
    """A pinned map of another version would be read as garbage."""
    for key, value in ((U32, VALUE), (KEY, U32)):
        with pytest.raises(LayoutError, match="keys of 20 and values of 16 bytes"):
            Map(hashed.fd, key, value, "flows")


def test_a_map_that_is_not_there(tmp_path: Path) -> None:
    described = {"flows": {"key": "unsigned int", "value": "unsigned int"}}
    maps = Maps(tmp_path / "nowhere", described)
    assert maps.layout("flows") == (U32, U32)
    with pytest.raises(LostPinError, match="flows is out of reach"):
        _ = maps.flows
    with pytest.raises(AttributeError):
        _ = maps._private


def test_information(hashed: Map) -> None:
    info = hashed.info
    assert (info.kind, info.key_size, info.value_size, info.entries) == (syscall.HASH, 20, 16, 5000)
    assert info.id
