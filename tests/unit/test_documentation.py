"""The documents list the reasons, commands, modules and tests of the tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from enforcer.cli.app import NOUNS, OTHERS, VERBS
from enforcer.reasons import reasons

ROOT = Path(__file__).parents[2]


def test_every_reason_is_described() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for reason in reasons().values():
        assert f"| {reason.number} | {reason.name} | {reason.verdict} | {reason.description} |" in text


@pytest.mark.parametrize("command", [*VERBS, *NOUNS, *OTHERS])
def test_every_command_is_shown(command: str) -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert re.search(rf"^### enforcer {re.escape(command)}\b", page, re.MULTILINE)


@pytest.mark.parametrize("header", sorted(path.name for path in (ROOT / "bpf").glob("*.[ch]")))
def test_every_kernel_side_file_has_its_line(header: str) -> None:
    assert f"  {header} " in (ROOT / "ARCHITECTURE.md").read_text()


def rooms() -> dict[str, set[str]]:
    """The modules of each room, as ARCHITECTURE lists them."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    found: dict[str, set[str]] = {}
    top = room = ""
    for line in text[text.index("\nenforcer/ ") : text.index("\ntests/ ")].splitlines():
        if name := re.match(r"(\S+)/ ", line):
            top = room = name[1]
            found[room] = set()
        elif name := re.match(r"  (\S+)/ ", line):
            room = f"{top}/{name[1]}"
            found[room] = set()
        elif modules := re.match(r" +· (.*)", line):
            found[room] |= set(modules[1].split())
    return found


def test_the_rooms_are_those_of_the_tree() -> None:
    tree = {
        str(package.parent.relative_to(ROOT)): {path.stem for path in package.parent.glob("[!_]*.py")}
        for top in ("enforcer", "lab", "bench")
        for package in (ROOT / top).rglob("__init__.py")
    }
    assert rooms() == tree


def test_where_to_look_names_what_is_there() -> None:
    """In each answer, the names before a path occur in the file at that path."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text[text.index("\n## Where to look\n") : text.index("\n## Glossary\n")]
    answers = [row.split(" | ")[1] for row in section.splitlines() if row.startswith("| ") and "`" in row]
    assert len(answers) > 10
    for answer in answers:
        names: list[str] = []
        for word in re.findall(r"`([^`]+)`", answer):
            if "/" not in word:
                names.append(word)
                continue
            content = (ROOT / word).read_text()
            assert [name for name in names if not re.search(rf"\b{name}\b", content)] == [], word
            names = []
        assert not names, answer


def module_tests() -> dict[str, list[str]]:
    """The tests of each module, as CONTRIBUTING lists them."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = {}
    for place, modules, tests in re.findall(r"^\| (\S+/) ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE):
        for module in modules.split():
            path = f"{place}{module}" if place == "bpf/" else f"{place}{module}.py"
            assert path not in found, f"{path} has two rows"
            found[path] = tests.split()
    return found


def defines(path: Path) -> bool:
    """Whether a module defines functions or classes."""
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)


def test_every_module_has_its_tests() -> None:
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "enforcer").rglob("*.py")
        if not path.name.startswith("__") or defines(path)
    }
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "bpf").glob("*.[ch]")}
    assert module_tests().keys() == modules | sources


def test_the_tests_of_a_module_are_there() -> None:
    named = {path for paths in module_tests().values() for path in paths}
    assert {path for path in named if not (ROOT / "tests" / path).is_file()} == set()
