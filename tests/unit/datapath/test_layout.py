"""BCC's descriptions of structures become numpy types of the same layout."""

from __future__ import annotations

import numpy as np
import pytest

from enforcer.datapath.layout import dtype


@pytest.mark.parametrize(
    ("described", "kind"),
    [
        *(("int", "<i4"), ("unsigned int", "<u4"), ("unsigned char", "u1"), ("char", "u1"), ("_Bool", "u1")),
        *(("unsigned short", "<u2"), ("short", "<i2"), ("unsigned long long", "<u8"), ("long", "<i8")),
    ],
)
def test_scalars(described: str, kind: str) -> None:
    assert dtype(described) == np.dtype(kind)


def test_a_structure() -> None:
    found = dtype(["pair", [["one", "unsigned int"], ["two", "unsigned short"]], "struct_packed"])
    assert found.names == ("one", "two")
    assert found.itemsize == 6
    assert found.fields is not None and found.fields["two"][1] == 4


def test_arrays() -> None:
    found = dtype(["key", [["address", "unsigned int", [4]], ["mac", "unsigned char", [6]]], "struct_packed"])
    assert found["address"].shape == (4,) and found["mac"].shape == (6,)
    assert found.itemsize == 22


def test_nested_structures_and_arrays_of_them() -> None:
    source = ["address", [["prefix", "unsigned int", [4]], ["local", "unsigned int"]], "struct_packed"]
    found = dtype(["egress", [["lock", ["bpf_spin_lock", [["val", "unsigned int"]], "struct"]],
                              ["address", source, [2]]], "struct_packed"])  # fmt: skip
    assert found.itemsize == 4 + 2 * 20
    row = np.zeros((), dtype=found)
    row["address"]["prefix"][1] = [1, 2, 3, 4]
    assert row.tobytes()[24:40] == np.array([1, 2, 3, 4], "<u4").tobytes()
    assert row["lock"]["val"] == 0


def test_padding_that_bcc_names() -> None:
    found = dtype(
        ["row", [["a", "unsigned char"], ["__pad_1", "char", [3]], ["b", "unsigned int"]], "struct_packed"]
    )
    assert found.fields is not None and found.fields["b"][1] == 4
    assert found.itemsize == 8


def test_an_unknown_type() -> None:
    with pytest.raises(KeyError):
        dtype(["row", [["a", "__int128"]], "struct"])
