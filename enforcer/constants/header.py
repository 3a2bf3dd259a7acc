"""A reader of bpf/*.h and bpf/*.c: the numbers of enumerators and macros, without a compiler.

All sources are one translation unit, so each name stands for one number in all of them.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.resources import files

from enforcer.errors import SourceError

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINITION = re.compile(
    r"^#define[ \t]+(?P<macro>\w+)[ \t]+(?P<value>[^\n\\]+)$"
    r"|^enum\b\s*\w*\s*\{(?P<members>(?:/\*.*?\*/|[^}])*)\}",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"^#.*$", re.MULTILINE)
_SUFFIX = re.compile(r"\b(0x[0-9a-fA-F]+|\d+)[uUlL]+\b")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}


def number(name: str) -> int:
    """The number that the C sources give a name. Raises SourceError."""
    found = installed().resolve(name)
    if found is None:
        raise SourceError(
            f"the C sources give no number for {name}",
            f"They are in {files('enforcer.bpf')}: install the program again.",
        )
    return found


class Sources:
    """C sources; numbers are worked out when they are asked for."""

    def __init__(self, texts: Iterable[str]):
        self.expressions = dict(definition for text in texts for definition in _definitions(text))
        self._numbers: dict[str, int | None] = {}

    def numbers(self) -> dict[str, int]:
        """Every enumerator and macro whose value is a number without flags of the compiler or sizeof."""
        found = {name: self.resolve(name) for name in self.expressions}
        return {name: value for name, value in found.items() if value is not None}

    def resolve(self, name: str) -> int | None:
        """The number of a name, or None."""
        if name not in self._numbers:
            self._numbers[name] = None  # a name that depends on itself has none
            with suppress(KeyError, SyntaxError, ValueError):
                self._numbers[name] = self._value(self.expressions[name].strip())
        return self._numbers[name]

    def _value(self, expression: str) -> int:
        try:
            return int(expression, 0)
        except ValueError:
            tree = ast.parse(_SUFFIX.sub(r"\1", expression), mode="eval")
            return self._evaluate(tree.body)

    def _evaluate(self, node: ast.expr) -> int:
        """Raises ValueError for what is no number here."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._evaluate(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._evaluate(node.left), self._evaluate(node.right)
            return int(_OPERATORS[type(node.op)](left, right))
        if isinstance(node, ast.Name):
            value = self.resolve(node.id)
            if value is not None:
                return value
        raise ValueError(ast.unparse(node))


@cache
def installed() -> Sources:
    """The sources that are installed with this program."""
    root = files("enforcer.bpf")
    names = sorted(entry.name for entry in root.iterdir() if entry.name.endswith((".h", ".c")))
    return Sources(root.joinpath(name).read_text(encoding="utf-8") for name in names)


def _definitions(text: str) -> Iterator[tuple[str, str]]:
    """Names, each with the C expression of its value."""
    for match in _DEFINITION.finditer(text):
        if match["macro"]:
            yield match["macro"], _COMMENT.sub("", match["value"])
            continue
        value = "0"
        for member in _DIRECTIVE.sub("", _COMMENT.sub("", match["members"])).split(","):
            name, _, given = (part.strip() for part in member.partition("="))
            if name:
                value = given or value
                yield name, value
                value = f"{name} + 1"
