"""YAML 1.2 with the position of every key and value, and with limits on what is read.

Built from the parser's events rather than its objects: so scalars follow the core schema (`NO` is Norway),
duplicate keys are all seen, and neither nesting nor aliases can cost more than the file's own size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from enforcer.errors import ConfigError, Fault, UntrustedError
from enforcer.instance import trust

# 4,000 egress IPs with 4,000 policies take 1.2 MiB, a list of 100,000 addresses 1.6 MiB (IPv6: up to 4.5).
MAX_BYTES = 8 << 20
_MAX_DEPTH = 32
_MAX_NODES = 1_000_000  # counted with every alias written out

_WORDS = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], float]], ...] = (
    (re.compile(r"[-+]?[0-9]{1,4000}"), int),
    (re.compile(r"0(o[0-7]{1,40}|x[0-9a-fA-F]{1,40})"), lambda text: int(text, 0)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)

_ESCAPE_LENGTH = {"x": 4, "u": 6, "U": 10}

Way = Sequence[str | int]
"""The way to a value: keys and list positions."""


@dataclass(slots=True)
class _Node:
    value: Any
    line: int
    column: int
    start: int
    end: int
    style: str | None = None
    children: dict[Any, _Node] = field(default_factory=dict)
    keys: dict[str, _Node] = field(default_factory=dict)
    size: int = 1


@dataclass(frozen=True, slots=True)
class Position:
    """Line and column, both from 1."""

    line: int
    column: int


class Document:
    """A parsed file: ``data`` is plain lists, dicts and scalars; a value's way finds its position."""

    def __init__(self, text: str, root: _Node, faults: list[Fault]):
        self._text = text
        self._root = root
        self.data = root.value
        self.faults = faults
        """What is wrong with the file as YAML, without which it could still be read (duplicate keys)."""

    def _find(self, way: Way) -> tuple[_Node, _Node | None]:
        node, key = self._root, None
        for step in way:
            child = node.children.get(step)
            if child is None:
                break
            key = node.keys.get(step) if isinstance(step, str) else None
            node = child
        return node, key

    def position(self, way: Way) -> Position:
        """Find the value at ``way``, or the innermost one on the way that exists."""
        node, key = self._find(way)
        # A group of keys in block style begins at its first key; its own key is where a person looks.
        if key is not None and isinstance(node.value, dict | list):
            node = key
        return Position(node.line, node.column)

    def key_position(self, way: Way) -> Position:
        """Find the key that ``way`` ends with."""
        node, key = self._find(way)
        return Position((key or node).line, (key or node).column)

    def value(self, way: Way) -> Any:
        """Give the value at ``way``, or the innermost one on the way that exists."""
        return self._find(way)[0].value

    def position_in(self, way: Way, index: int) -> Position:
        """Find the ``index``-th character of the text at ``way``, whichever way the text is quoted or folded.

        Blanks are skipped: ``index`` must be that of a character which is not blank, or the text's end.
        """
        node, _ = self._find(way)
        wanted = len("".join(str(node.value)[:index].split()))
        offset = node.start
        for count, (start, end) in enumerate(_visible(self._text, node)):
            if count == wanted:
                offset = start
                break
            offset = end
        before = self._text[:offset]
        return Position(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _visible(text: str, node: _Node) -> Iterator[tuple[int, int]]:
    """Yield where each character of a scalar that is not blank begins and ends in the source."""
    position, end = node.start, node.end
    if node.style in ("|", ">"):
        position = text.find("\n", position, end) + 1
    elif node.style:
        position, end = position + 1, end - 1
    while position < end:
        length = 1
        if node.style == "'" and text.startswith("''", position):
            length = 2
        elif node.style == '"' and text[position] == "\\":
            escape = text[position + 1]
            length = _ESCAPE_LENGTH.get(escape, 2)
            if escape in " t\t\n":
                position += length
                continue
        if not text[position].isspace():
            yield position, position + length
        position += length


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    return next((read(text) for pattern, read in _NUMBERS if pattern.fullmatch(text)), text)


class _Builder:
    """Builds the tree of one document from the parser's events."""

    def __init__(self, name: str):
        self.name = name
        self.faults: list[Fault] = []
        self.anchors: dict[str, _Node] = {}

    def fail(self, event: Any, message: str) -> ConfigError:
        mark = event.start_mark
        return ConfigError([Fault(self.name, mark.line + 1, message, mark.column + 1)])

    def build(self, events: Iterator[Any]) -> _Node | None:
        """Read the whole stream; None if there is nothing in it."""
        documents = 0
        root = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.fail(event, "a second YAML document begins here; expected one document")
            elif isinstance(event, ScalarEvent | AliasEvent | SequenceStartEvent | MappingStartEvent):
                root = self.node(event, events, 1)
        return root

    def node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        """Build the node that begins with ``event``."""
        if depth > _MAX_DEPTH:
            raise self.fail(event, f"nested more than {_MAX_DEPTH} levels deep")
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise self.fail(
                    event, f"*{event.anchor} refers to nothing; expected an anchor &{event.anchor} before it"
                )
            return self.anchors[event.anchor]
        if event.tag not in (None, "!"):
            raise self.fail(event, f"the tag {event.tag} is not understood here; expected a plain value")
        start = event.start_mark
        node = _Node(None, start.line + 1, start.column + 1, start.index, event.end_mark.index)
        if isinstance(event, ScalarEvent):
            node.value, node.style = _scalar(event), event.style
        elif isinstance(event, SequenceStartEvent):
            self.sequence(node, event, events, depth)
        else:
            self.mapping(node, event, events, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def grow(self, node: _Node, child: _Node, event: Any) -> None:
        """Count ``child`` towards ``node``'s size, which aliases could blow up."""
        node.size += child.size
        if node.size > _MAX_NODES:
            raise self.fail(event, f"aliases make this more than {_MAX_NODES:,} values; write them out")

    def sequence(self, node: _Node, event: Any, events: Iterator[Any], depth: int) -> None:
        """Fill a list's node."""
        node.value = []
        for inner in events:
            if not isinstance(inner, ScalarEvent | AliasEvent | SequenceStartEvent | MappingStartEvent):
                return
            child = self.node(inner, events, depth + 1)
            self.grow(node, child, event)
            node.children[len(node.value)] = child
            node.value.append(child.value)

    def mapping(self, node: _Node, event: Any, events: Iterator[Any], depth: int) -> None:
        """Fill a mapping's node; of two equal keys the first one counts, the second is a fault."""
        node.value = {}
        for inner in events:
            if not isinstance(inner, ScalarEvent | AliasEvent | SequenceStartEvent | MappingStartEvent):
                return
            key = self.node(inner, events, depth + 1)
            child = self.node(next(events), events, depth + 1)
            self.grow(node, child, event)
            if not isinstance(key.value, str):
                shown = "" if isinstance(key.value, dict | list) else f' (quote it: "{key.value}")'
                self.faults.append(Fault(self.name, key.line, f"a key must be text{shown}", key.column))
            elif key.value in node.value:
                first = node.keys[key.value].line
                message = f'the key "{key.value}" stands on line {first} already; expected each key once'
                self.faults.append(Fault(self.name, key.line, message, key.column))
            else:
                node.value[key.value] = child.value
                node.children[key.value] = child
                node.keys[key.value] = key


def read(path: Path, *, strict: bool = False) -> Document:
    """Read a file of 8 MiB at most; ConfigError with one fault if it cannot be read or is not YAML.

    ``strict`` is that of enforcer/instance/trust.py.
    """
    return parse(_text(path, strict), str(path))


def _text(path: Path, strict: bool) -> str:
    name = str(path)
    try:
        raw = trust.read_file(path, MAX_BYTES, strict=strict)
    except UntrustedError as error:
        raise ConfigError([Fault(name, 0, f"is not read: {error}")]) from None
    except trust.NotRegularError as error:
        raise ConfigError([Fault(name, 0, f"is {error.strerror}; expected a YAML file")]) from None
    except FileNotFoundError:
        raise ConfigError([Fault(name, 0, "does not exist; name the file with --config")]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Fault(name, 0, f"cannot be read: {reason}")]) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            [Fault(name, 0, f"is larger than {MAX_BYTES >> 20} MiB; expected a configuration file")]
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError([Fault(name, line, message)]) from None


def parse(text: str, name: str) -> Document:
    """Parse a text; ``name`` stands in faults."""
    builder = _Builder(name)
    try:
        root = builder.build(iter(YAML(typ="safe", pure=True).parse(text)))
    except MarkedYAMLError as error:
        raise ConfigError([_syntax_fault(error, text, name)]) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigError([Fault(name, line, f"the character U+{code:04X} is not allowed in YAML")]) from None
    if root is None or root.value is None:
        raise ConfigError(
            [
                Fault(
                    name, 0, "is empty; expected at least location, interfaces, locations, shared, egress_ips"
                )
            ]
        )
    if not isinstance(root.value, dict):
        raise ConfigError(
            [Fault(name, root.line, "is no configuration; expected keys such as `location: lax`")]
        )
    return Document(text, root, builder.faults)


def _syntax_fault(error: MarkedYAMLError, text: str, name: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    problem = (error.problem or error.context or "cannot be parsed").strip()
    if mark is None:
        return Fault(name, 0, f"is not YAML: {problem}")
    lines = text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Fault(
            name, mark.line + 1, "is indented with a tab; YAML is indented with spaces", mark.column + 1
        )
    return Fault(name, mark.line + 1, f"is not YAML: {problem}", mark.column + 1)
