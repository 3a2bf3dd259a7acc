"""The RFC requirements that docs/rfc-compliance.md lists, and the keywords of their tests.

A test proves a requirement when its name begins with the keyword (``test_rfc4787_req5_…``) or when it is
marked with it (``@pytest.mark.rfc4787_req5c``): ``pytest -k rfc4787_req5`` finds both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Lettered parts are separate requirements. Numbers without text of their own (RFC 5508, REQ-10; RFC 6888,
# REQ-11) are left out. RFC 7857 does not number its updates: the numbers are its sections.
REQUIREMENTS = {
    4787: "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 8a 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a",
    5382: "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 8a 9 10",
    5508: "1 1a 2 2a 3 3a 3b 3c 3d 4 4a 4b 4c 5 5a 5b 5c 6 7 7a 8 9 10a 10b 10c 10d 10e 10f 11",
    7857: "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12",
    6888: "1 2 3 4 4a 4b 4c 5 5a 5b 6 7 8 8a 8b 8c 9 10 11a 11b 11c 11d 12 13 14 15",
}

_KEYWORD = re.compile(r"rfc\d+_(?:req\d+[a-z]?|\d+(?:_\d+)?)(?![a-z0-9])")


def label(rfc: int, number: str) -> str:
    """The page's name of a requirement: ``REQ-5a``, or for RFC 7857 the section, ``2.1``."""
    return number if rfc == 7857 else f"REQ-{number}"


def keyword(rfc: int, number: str) -> str:
    """The tests' name of a requirement: ``rfc4787_req5a``, ``rfc7857_2_1``."""
    return f"rfc{rfc}_{number.replace('.', '_')}" if rfc == 7857 else f"rfc{rfc}_req{number}"


KEYWORDS = {
    keyword(rfc, number): (rfc, number) for rfc, numbers in REQUIREMENTS.items() for number in numbers.split()
}


def carried(name: str, marks: Iterable[str]) -> set[str]:
    """The keywords in a test's function name and marks, also those of no known requirement."""
    found = {mark for mark in marks if mark.startswith("rfc")}
    if name.startswith("test_rfc") and (match := _KEYWORD.match(name, len("test_"))):
        found.add(match[0])
    return found
