"""The documents say what the program has."""

from __future__ import annotations

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
    """In the answers, each path is followed to its file, and the names before it occur there."""
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
