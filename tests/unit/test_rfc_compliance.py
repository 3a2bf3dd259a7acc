"""docs/rfc-compliance.md has a row for every requirement, and the tests that it names exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from rfcs import KEYWORDS, REQUIREMENTS, keyword, label

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rfc-compliance.md"
STATUSES = ("met", "deliberately not", "not applicable")

# Prints the keywords of each collected test (file::function) as JSON.
COLLECT = """
import json, sys, pytest
from collections import defaultdict

found = defaultdict(set)

class Keywords:
    def pytest_collection_finish(self, session):
        from rfcs import carried
        for item in session.items:
            name = f"{item.path.name}::{item.originalname}"
            found[name] |= carried(item.originalname, [mark.name for mark in item.iter_markers()])

code = pytest.main(["--collect-only", "-qqq", "-p", "no:cacheprovider", "tests"], plugins=[Keywords()])
print(json.dumps({name: sorted(keywords) for name, keywords in found.items() if keywords}))
sys.exit(code)
"""


class Row(NamedTuple):
    """One row of the page."""

    keyword: str
    words: str
    status: str
    how: str
    tests: set[str]


def rows() -> list[Row]:
    found = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        rfc = re.match(r"RFC (\d+)", section)
        if not rfc:
            continue
        for line in section.splitlines():
            if line.startswith("| **"):
                requirement, status, how, tests = (cell.strip() for cell in line.strip()[1:-1].split(" | "))
                name, words = re.match(r"\*\*(.+?)\*\* (.+)", requirement).groups()
                found.append(
                    Row(
                        keyword(int(rfc[1]), name.removeprefix("REQ-")),
                        words,
                        status,
                        how,
                        set(re.findall(r"`([^`]+)`", tests)),
                    )
                )
    return found


@pytest.fixture(scope="module")
def collected() -> dict[str, set[str]]:
    """The tests by keyword."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests: dict[str, set[str]] = {}
    for name, keywords in json.loads(done.stdout.splitlines()[-1]).items():
        for each in keywords:
            tests.setdefault(each, set()).add(name)
    return tests


@pytest.mark.parametrize("rfc", REQUIREMENTS)
def test_every_requirement_has_one_row_in_the_rfcs_order(rfc: int) -> None:
    asked = [keyword(rfc, number) for number in REQUIREMENTS[rfc].split()]
    assert [row.keyword for row in rows() if row.keyword.startswith(f"rfc{rfc}_")] == asked
    assert f"## RFC {rfc}" in PAGE.read_text(encoding="utf-8")
    assert all(label(rfc, KEYWORDS[each][1]) for each in asked)


def test_every_row_says_how_or_why() -> None:
    assert {row.status for row in rows()} == set(STATUSES)
    assert [row.keyword for row in rows() if not row.words or not row.how] == []
    # A requirement that is not met has a reason of several words.
    assert [row.keyword for row in rows() if row.status != "met" and len(row.how.split()) < 5] == []


def test_what_is_met_is_proved() -> None:
    assert [row.keyword for row in rows() if row.status == "met" and not row.tests] == []


def test_the_page_names_the_tests_that_are_found_by_the_keyword(collected: dict[str, set[str]]) -> None:
    assert {row.keyword: row.tests for row in rows() if row.tests} == collected


def test_the_page_counts_its_rows() -> None:
    counts = Counter(row.status for row in rows())
    said = ", ".join(f"{counts[status]} {status}" for status in STATUSES)
    assert f"{len(rows())} requirements: {said}." in PAGE.read_text(encoding="utf-8")
