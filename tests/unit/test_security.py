"""docs/security.md names tests that exist, and the rules that it states hold for the whole tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from enforcer.control.interpreter import PYTHON

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
TESTS = {
    f"{path.name}::{node.name}"
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef)
}
SOURCES = [
    path
    for folder in ("enforcer", "lab", "bench")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "interpreter.py"
]
TEXTS = [
    path
    for folder in ("enforcer", "lab", "bench", "docs", "scripts", "packaging", "vagrant", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".sh", ".service", ".yaml") and path != Path(__file__)
]


def rows() -> list[list[str]]:
    """The rows of the tables whose last column names tests."""
    found: list[list[str]] = []
    proving = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            proving = False
        elif line == "| what | how | tests |":
            proving = True
        elif proving and not line.startswith("| ---"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_every_statement_is_proved_by_tests_that_exist() -> None:
    assert len(rows()) > 20
    for what, how, tests in rows():
        named = re.findall(r"`([^`]+)`", tests)
        assert what and how and named, what
        assert not set(named) - TESTS, f"{what} no such test: {set(named) - TESTS}"


@pytest.mark.parametrize(
    "principal",
    [
        "administrator",
        "other software",
        "local users",
        "clients",
        "origins",
        "session file",
        "resolvers",
        "other gateways",
    ],
)
def test_every_principal_has_its_row(principal: str) -> None:
    table = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.search(rf"^\| [^|]*{principal}", table, re.MULTILINE)


def test_readme_leads_there() -> None:
    assert "docs/security.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_is_started_in_one_way() -> None:
    """Only ``PYTHON`` starts processes: without the current directory and the user's site directory."""
    assert set(PYTHON[1:]) == {"-P", "-s"}
    assert [str(path) for path in SOURCES if "sys.executable" in path.read_text()] == []
    setup = (ROOT / "scripts/setup.sh").read_text()
    assert '& -Ps|\' "$venv/bin/enforcer"' in setup


def test_a_bpf_file_system_is_mounted_closed() -> None:
    """Every mount command in code and documents sets mode=700."""
    mounts = [
        (path.name, words)
        for path in TEXTS
        for words in re.findall(r"mount (?:-o \S+ )?-t bpf.*", path.read_text(encoding="utf-8"))
        if path.name not in ("test_local_users.py",)  # shows the effect of another mode
    ]
    assert len(mounts) >= 3
    assert [one for one in mounts if "mode=700" not in one[1]] == []
