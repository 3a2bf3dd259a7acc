"""The language of traffic expressions: text to :mod:`enforcer.policy.expression`.

The grammar is expression.lark. Its LALR parser keeps its own stack and calls back for each finished part, so
neither parsing nor building can exhaust Python's.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from ipaddress import IPv6Network, ip_address, ip_interface, summarize_address_range
from typing import Protocol

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from enforcer.policy.expression import (
    AddressIn,
    And,
    Everything,
    Expression,
    Network,
    Not,
    Or,
    PortIn,
    ProtocolIn,
    Side,
)
from enforcer.policy.lists import NO_LISTS, Lists

__all__ = ["NO_LISTS", "ExpressionError", "Lists", "expression_of", "parse"]

MAX_LENGTH = 64 << 10  # characters
MAX_NESTING = 100  # parentheses and `not`

PROTOCOLS = {"tcp": frozenset({6}), "udp": frozenset({17}), "icmp": frozenset({1, 58})}
"""Names and numbers; ``icmp`` is ICMPv6 as well, so that a rule means the same in both families."""

_ADDRESS = "an IP address, such as 192.0.2.1 or 2001:db8::1"
_PORT = "a port from 0 to 65535"
_PROTOCOL = 'one of "tcp", "udp", "icmp"'
_FIELDS = {
    "net.src.ip": _ADDRESS,
    "net.dst.ip": _ADDRESS,
    "net.src.port": _PORT,
    "net.dst.port": _PORT,
    "net.protocol": _PROTOCOL,
}

_LAST_WORD = re.compile(r"([A-Za-z_][\w.]*)\s*$")

_ALLOWED = {
    "FIELD": f"a field ({', '.join(_FIELDS)})",
    "EQUAL": "`==`",
    "DIFFERENT": "`!=`",
    "IN": "`in {…}`",
    "NOT": "`not`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "_AND": "`and`",
    "_OR": "`or`",
    "VALUE": "a value",
    "STRING": '"…"',
    "$END": "the end",
}


class ExpressionError(ValueError):
    """A text that is no expression. ``column`` counts the text's characters from 1, lines included."""

    def __init__(self, message: str, column: int):
        super().__init__(f"{message} (column {column})")
        self.message = message
        self.column = column


@dataclass(frozen=True, slots=True)
class _Part:
    expression: Expression
    nesting: int


def _error(token: Token, wrong: str, right: str) -> ExpressionError:
    return ExpressionError(f"{_cut(token)} {wrong}; expected {right}", (token.start_pos or 0) + 1)


def _cut(token: Token) -> str:
    return str(token) if len(token) <= 60 else f"{token[:59]}…"


class _Build(Transformer[Token, _Part]):
    """Callbacks of the parser, one per rule of the grammar."""

    def disjunction(self, parts: list[_Part]) -> _Part:
        return _Part(Or(tuple(part.expression for part in parts)), max(part.nesting for part in parts))

    def conjunction(self, parts: list[_Part]) -> _Part:
        return _Part(And(tuple(part.expression for part in parts)), max(part.nesting for part in parts))

    def negation(self, parts: list[Token | _Part]) -> _Part:
        sign, part = parts
        assert isinstance(sign, Token) and isinstance(part, _Part)
        return _Part(Not(part.expression), _deeper(part, sign))

    def group(self, parts: list[Token | _Part]) -> _Part:
        opening, part, _ = parts
        assert isinstance(opening, Token) and isinstance(part, _Part)
        return _Part(part.expression, _deeper(part, opening))

    def set(self, tokens: list[Token]) -> list[Token]:
        opening, *values, _ = tokens
        if not values:
            raise _error(opening, "begins an empty set", "at least one value in {…}")
        return values

    def equal(self, parts: list[Token]) -> _Part:
        field, _, value = parts
        if "/" in value and field in _FIELDS and _FIELDS[field] is _ADDRESS:
            raise _error(
                value, "is a prefix", f"one address here, or the prefix in a set: {field} in {{{value}}}"
            )
        if ".." in value and value.type == "VALUE":
            raise _error(
                value, "is a range", f"one value here, or the range in a set: {field} in {{{value}}}"
            )
        return _Part(_comparison(field, [value]), 0)

    def different(self, parts: list[Token]) -> _Part:
        return _Part(Not(self.equal(parts).expression), 0)

    def contained(self, parts: tuple[Token, Token, list[Token]]) -> _Part:
        return _Part(_comparison(parts[0], parts[-1]), 0)

    def excluded(self, parts: tuple[Token, Token, Token, list[Token]]) -> _Part:
        return _Part(Not(_comparison(parts[0], parts[-1])), 0)


def _deeper(part: _Part, token: Token) -> int:
    if part.nesting >= MAX_NESTING:
        raise _error(token, f"nests more than {MAX_NESTING} levels deep", "a flatter expression")
    return part.nesting + 1


def _comparison(field: Token, values: list[Token]) -> Expression:
    if field not in _FIELDS:
        raise _unknown_field(field, field.start_pos or 0)
    if field == "net.protocol":
        return ProtocolIn(frozenset().union(*map(_protocol, values)))
    for value in values:
        if value.type == "STRING":
            raise _error(value, "is text in quotes", f"{_FIELDS[field]}, without quotes")
    side: Side = "source" if ".src." in field else "destination"
    if field.endswith(".port"):
        return PortIn(side, tuple(map(_ports, values)))
    networks = tuple(network for value in values for network in _networks(value))
    return AddressIn(side, networks)


def _unknown_field(name: str, position: int) -> ExpressionError:
    close = difflib.get_close_matches(name.lower(), _FIELDS, n=1)
    right = f"{close[0]} (did you mean that?)" if close else f"one of {', '.join(_FIELDS)}"
    return ExpressionError(f"{name} is no known field; expected {right}", position + 1)


def _protocol(value: Token) -> frozenset[int]:
    name = value.strip('"').lower()
    if value.type != "STRING":
        right = f'"{name}"' if name in PROTOCOLS else _PROTOCOL
        raise _error(value, "is a number" if value.isdigit() else "is not in quotes", right)
    if name not in PROTOCOLS:
        raise _error(value, "is no known protocol", _PROTOCOL)
    return PROTOCOLS[name]


def _ports(value: Token) -> tuple[int, int]:
    ends = value.split("..", 1)
    if not all(end.isascii() and end.isdigit() and len(end) <= 5 and int(end) <= 0xFFFF for end in ends):
        if _is_address(value):
            raise _error(value, "is an IP address", f"{_PORT}, or a range such as 8000..8999 in {{…}}")
        if "-" in value:
            raise _error(value, "is no port", f"a range of ports as in {{{value.replace('-', '..')}}}")
        raise _error(value, "is no port", f"{_PORT}, or a range such as 8000..8999 in {{…}}")
    first, last = int(ends[0]), int(ends[-1])
    if first > last:
        raise _error(value, "ends before it begins", f"{last}..{first}")
    return first, last


def _is_address(text: str) -> bool:
    try:
        ip_interface(text)
    except ValueError:
        return False
    return not text.isdigit()


def _networks(value: Token) -> list[Network]:
    if "%" in value:
        raise _error(value, "has a zone", "an address without %…")
    if ".." in value:
        return _address_range(value)
    try:
        prefix = ip_interface(str(value))
    except ValueError:
        what = "is a number" if value.isdigit() else "is no IP address"
        raise _error(value, what, f"{_ADDRESS}, or a prefix such as 192.0.2.0/24 in {{…}}") from None
    network = prefix.network
    _refuse_mapped(value, network)
    if prefix.ip != network.network_address:
        raise _error(value, f"has bits set after the first {network.prefixlen}", str(network))
    return [network]


def _address_range(value: Token) -> list[Network]:
    first_text, last_text = value.split("..", 1)
    try:
        first, last = ip_address(first_text), ip_address(last_text)
    except ValueError:
        raise _error(value, "is no range of IP addresses", "a range such as 192.0.2.1..192.0.2.9") from None
    if first.version != last.version:
        raise _error(value, "mixes IPv4 and IPv6", "two addresses of one family")
    if int(first) > int(last):
        raise _error(value, "ends before it begins", f"{last}..{first}")
    networks: list[Network] = list(summarize_address_range(first, last))
    for network in networks:
        _refuse_mapped(value, network)
    return networks


_MAPPED = IPv6Network("::ffff:0:0/96")


def _refuse_mapped(value: Token, network: Network) -> None:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        right = f"the IPv4 address, {network.network_address.ipv4_mapped}"
        raise _error(value, "has IPv4-mapped addresses in it", right)


@cache
def _parser() -> Lark:
    grammar = files("enforcer.policy").joinpath("expression.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", transformer=_Build(), maybe_placeholders=False)


class Texts(Protocol):
    """A policy's three texts."""

    @property
    def traffic(self) -> str:
        """Expression; empty: everything."""

    @property
    def identity(self) -> str:
        """Expression; empty: everybody."""

    @property
    def device_posture(self) -> str:
        """Expression; empty: every device."""


def expression_of(rule: Texts, lists: Lists = NO_LISTS) -> Expression:
    """Give what a policy asks for: its three texts, joined by `and`; ExpressionError."""
    texts = (rule.traffic, rule.identity, rule.device_posture)
    parts = [part for part in (parse(text, lists) for text in texts) if part != Everything()]
    return And(tuple(parts)) if len(parts) > 1 else parts[0] if parts else Everything()


@lru_cache(maxsize=8192)
def parse(text: str, lists: Lists = NO_LISTS) -> Expression:
    """Parse an expression; ExpressionError. A blank text is :class:`Everything`."""
    if not text.strip():
        return Everything()
    if len(text) > MAX_LENGTH:
        message = f"longer than {MAX_LENGTH:,} characters; expected several policies instead of one"
        raise ExpressionError(message, 1)
    try:
        part = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, text) from None
    assert isinstance(part, _Part)
    return part.expression


def _syntax_error(error: UnexpectedInput, text: str) -> ExpressionError:
    if isinstance(error, UnexpectedToken):
        expected = set(error.accepts or error.expected)
        found = (
            "the expression ends here"
            if error.token.type == "$END"
            else f"{_cut(error.token)} cannot stand here"
        )
        position = len(text.rstrip()) if error.token.type == "$END" else error.token.start_pos or 0
    else:
        assert isinstance(error, UnexpectedCharacters)
        expected = set(error.allowed or ())
        position = error.pos_in_stream or 0
        found = f"{text[position]} cannot stand here"
    if "EQUAL" in expected:
        word = _LAST_WORD.search(text, 0, position)
        if word and word[1] not in _FIELDS:
            return _unknown_field(word[1], word.start(1))
    if "VALUE" in expected:
        expected.discard("STRING")
    *others, last = [allowed for name, allowed in _ALLOWED.items() if name in expected]
    choice = f"{', '.join(others)} or {last}" if others else last
    return ExpressionError(f"{found}; expected {choice}{_hint(text[position:], expected)}", position + 1)


def _hint(rest: str, expected: set[str]) -> str:
    """Explain what people bring along from other languages."""
    if "EQUAL" in expected and rest.startswith("="):
        return " (equality is written ==)"
    if "RBRACE" in expected and rest.startswith(","):
        return " (values in {…} are separated by blanks)"
    if rest.startswith("'"):
        return ' (text stands in double quotes: "tcp")'
    if "LBRACE" in expected and "EQUAL" not in expected:
        return " (a set, even of one value: in {80})"
    return ""
