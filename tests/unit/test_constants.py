"""Constants of C: the reader, and that Python has no copy of them."""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from enforcer.constants import bpf, header
from enforcer.errors import SourceError
from enforcer.reasons import reasons

ROOT = Path(__file__).parents[2]
ENUMS = {
    "role": bpf.Role,
    "unfit": bpf.Unfit,
    "state": bpf.State,
    "note": bpf.FlowFlag,
    "bank_bits": bpf.BankBits,
    "suppose": bpf.Suppose,
    "event": bpf.Event,
    "stage": bpf.Stage,
}
TERMINATORS = {"TIMEOUTS", "EVENTS", "STAGES"}
"""Last members of enums that count the others."""
OTHERS = {
    ("enforcer/kernel/nft/protocol.py", "ORIGINAL"): "enum ip_conntrack_dir of the kernel",
    ("enforcer/kernel/nft/protocol.py", "REPLY"): "enum ip_conntrack_dir of the kernel",
    ("enforcer/datapath/tcx.py", "_LOOPBACK"): "LOOPBACK_IFINDEX of the kernel",
}
"""Names of C's that stand for something else in these files."""

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


def test_sizes() -> None:
    """As the compiler's flags are left out, what depends on them is not known here."""
    assert (bpf.RULES, bpf.SLOTS, bpf.NO_SLOT) == (16384, 16384, 0xFFFFFFFF)
    assert len(bpf.State) == bpf.TIMEOUTS


@pytest.mark.parametrize("name", ENUMS)
def test_enums_are_complete(name: str) -> None:
    text = "".join(path.read_text() for path in sorted(Path(str(files("enforcer.bpf"))).glob("*.[ch]")))
    found = re.search(
        rf"^enum {name} \{{(.*?)\}};", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL), re.S | re.M
    )
    assert found is not None
    members = re.findall(r"\b[A-Z]\w+", found[1])
    assert [member.name for member in ENUMS[name]] == [one for one in members if one not in TERMINATORS]


def test_every_enum_is_compared() -> None:
    made = {one for one in vars(bpf).values() if isinstance(one, enum.EnumType) and list(one)}
    assert made == set(ENUMS.values())


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
    """Assignments of numbers to names that have this number in C, and those that a comment says are C's."""
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
