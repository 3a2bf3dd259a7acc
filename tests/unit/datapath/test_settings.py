"""The settings and their map row, also in a layout with fewer fields."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enforcer.constants.bpf import BankBits
from enforcer.datapath.settings import Settings

FIELDS = (
    *("mark_mask", "mark_shift", "limit", "bank", "proxy_tcp", "proxy_udp"),
    *("flows_per_client", "unanswered_per_client", "ready"),
)
ROW = np.dtype([(name, "<u4") for name in FIELDS])
SETTINGS = Settings(
    mark_mask=0x7FFF0000,
    limit=40000,
    flows_per_client=512,
    unanswered_per_client=256,
    proxy_tcp=True,
    proxy_udp=False,
    bank=BankBits.BANK | BankBits.USES_PORT,
    ready=True,
)


def test_a_row_has_all_of_them() -> None:
    row = SETTINGS.to_row(ROW)
    assert row.tolist() == (0x7FFF0000, 16, 40000, BankBits.BANK | BankBits.USES_PORT, 1, 0, 512, 256, 1)
    read = Settings.from_row(row)
    assert (read, read.bank, read.ready) == (SETTINGS, SETTINGS.bank, True)


@pytest.mark.parametrize("lacking", ["flows_per_client", "unanswered_per_client", "proxy_tcp"])
def test_a_row_of_an_earlier_layout_is_read_and_differs(lacking: str) -> None:
    earlier = np.dtype([(name, "<u4") for name in FIELDS if name != lacking])
    row = np.zeros((), dtype=earlier)
    for name in earlier.names or ():
        row[name] = SETTINGS.to_row(ROW)[name]
    read = Settings.from_row(row)
    assert read != SETTINGS
    assert replace(read, **{lacking: getattr(SETTINGS, lacking)}) == SETTINGS
    assert (read.bank_number, read.ready) == (1, True)


def test_a_field_that_the_row_lacks_is_not_written() -> None:
    with pytest.raises(ValueError, match="ready"):
        SETTINGS.to_row(np.dtype([(name, "<u4") for name in FIELDS if name != "ready"]))


@pytest.mark.parametrize(("bank", "number"), [(0, 0), (1, 1), (2, 0), (0x1FF, 1)])
def test_which_bank_is_in_force_makes_no_difference(bank: int, number: int) -> None:
    other = replace(SETTINGS, bank=bank, ready=False)
    assert other == SETTINGS
    assert other.bank_number == number


@pytest.mark.parametrize(("mask", "marks"), [(0xFF00, (0x100, 0x200)), (0x7FFF0000, (0x10000, 0x20000))])
def test_marks_lie_under_the_mask(mask: int, marks: tuple[int, int]) -> None:
    settings = replace(SETTINGS, mark_mask=mask)
    assert (settings.mark(0), settings.mark(1)) == marks
