"""Definitions without a copy in Python: numbers of C and of standards, texts of reasons."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.constants import header
from enforcer.reasons import reasons

ROOT = Path(__file__).parents[3]
OTHERS = {
    ("enforcer/kernel/nft/protocol.py", "ORIGINAL"): "enum ip_conntrack_dir of the kernel",
    ("enforcer/kernel/nft/protocol.py", "REPLY"): "enum ip_conntrack_dir of the kernel",
    ("enforcer/datapath/tcx.py", "_LOOPBACK"): "LOOPBACK_IFINDEX of the kernel",
}
"""Names from C that have another meaning in these files."""


UNRELATED = {"ALL", "AT_ONCE", "FORMAT"}
"""Names that several modules give to unrelated numbers."""


def assigned(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a module or class assigns literal numbers to, tuples and ranges included."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = [value_of(node.value)] if len(names) == 1 else list(values_of(node.value))
            for name, value in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and value is not None:
                    yield name.id, value


def values_of(node: ast.expr) -> Iterator[int | None]:
    if isinstance(node, ast.Tuple):
        yield from map(value_of, node.elts)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        yield from range(100)


def value_of(node: ast.expr) -> int | None:
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}})
    except Exception:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def copies(path: str, text: str) -> list[str]:
    """Assignments to names that have this number in C, and those with a comment that names a C file."""
    known = header.installed().numbers() | {
        reason.name.upper().replace("-", "_"): reason.number for reason in reasons().values()
    }
    names = {name.lstrip("_") for name in re.findall(r"\b_?[A-Z][A-Z0-9_]+\b", text)}
    found = [
        f"{path}: {name} = {value}"
        for name, value in (assigned(ast.parse(text)) if names & known.keys() else ())
        if known.get(name.lstrip("_")) == value and (path, name) not in OTHERS
    ]
    said = re.compile(r"^\s*_?[A-Z][A-Z0-9_, ]* = [-\d(].*#.*\bbpf/\w+\.[ch]", re.MULTILINE)
    return found + [f"{path}: {match[0]}" for match in said.finditer(text)]


@pytest.mark.parametrize(
    "text",
    [
        "RULES = 16384",
        "_CLOSE = 9",
        "A, REAP_UNKNOWN, REAP_EVERY = 7, 1, 2",
        "EVICTED_FLOWS, CORRECTED_ORIGINS = range(2)",
        "class Role:\n    OUTSIDE = 2",
        "NO_SLOT: int = 0xFFFFFFFF",
        "def look():\n    KEPT_AT_ONCE = 1 << 6",
        "TINY_FRAGMENT = 31",
        "_STATE = 3  # enum state of bpf/maps.h",
    ],
)
def test_a_copy_is_noticed(text: str) -> None:
    assert copies("enforcer/x.py", text)


@pytest.mark.parametrize("text", ["PORT = 9000", "CLOSE = 4", "REAP_EVERY = number('REAP_EVERY')", "A = B"])
def test_other_numbers_are_no_copies(text: str) -> None:
    assert not copies("enforcer/x.py", text)


def test_python_has_no_copy() -> None:
    sources = [path for top in ("enforcer", "lab", "bench", "tests") for path in (ROOT / top).rglob("*.py")]
    assert len(sources) > 300
    found = [
        copy
        for path in sources
        if path != Path(__file__)
        for copy in copies(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]
    assert not found, "read them from C (enforcer/constants/bpf.py):\n" + "\n".join(found)


def modules() -> list[tuple[str, str]]:
    """The modules of the package, each with its text."""
    paths = sorted((ROOT / "enforcer").rglob("*.py"))
    return [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]


def test_no_two_modules_define_one_number() -> None:
    """A constant of a standard or of the kernel is defined in one module."""
    places: dict[tuple[str, int], list[str]] = {}
    for path, text in modules():
        for name, value in {(name.lstrip("_"), value) for name, value in assigned(ast.parse(text))}:
            if name.isupper() and name not in UNRELATED:
                places.setdefault((name, value), []).append(path)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


def test_no_module_repeats_a_reason_s_text() -> None:
    texts = [reason.description for reason in reasons().values() if len(reason.description) > 12]
    found = [(path, text) for path, content in modules() for text in texts if f'"{text}"' in content]
    assert not found
