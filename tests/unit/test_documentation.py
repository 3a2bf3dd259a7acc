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
