"""The reader of constants in C headers."""

from __future__ import annotations

import pytest

from enforcer.constants import header
from enforcer.errors import SourceError

SOURCE = """
#define LIMIT 0x10u
#define ADD(a, b) ((a) + (b))
#define TEXT "12"
/* enum { COMMENTED = 1 }; */
enum first { ZERO, ONE, /* } */ FIVE = 5, // , NINE
	SIX };
enum {
	HALF = LIMIT / 2,
	BITS = 1 << ONE | 1 << FIVE,
	LOST = -1,
	FOUND,
	FLAG = FLOWS / 4,
	AFTER,
	SIZE = sizeof(struct x),
	ROUND = TRIP,
	TRIP = ROUND,
};
enum counted {
#define LINE(x) x,
	LAST = (LIMIT + 0xffULL) & 0xff,
};
struct user { enum first first; };
"""


def test_numbers_are_cs() -> None:
    assert header.Sources([SOURCE]).numbers() == {
        **{"LIMIT": 16, "ZERO": 0, "ONE": 1, "FIVE": 5, "SIX": 6},
        **{"HALF": 8, "BITS": 34, "LOST": -1, "FOUND": 0, "LAST": 15},
    }


def test_names_of_other_sources_are_known() -> None:
    assert header.Sources(["enum { ALL = ONE + TWO };", "enum { ONE = 1, TWO };"]).resolve("ALL") == 3


@pytest.mark.parametrize("name", ["NO_SUCH_NAME", "CLIENT_PREFIXES"])
def test_a_name_without_a_number_is_an_error(name: str) -> None:
    with pytest.raises(SourceError, match=f"the C sources give no number for {name}"):
        header.number(name)
