"""Parses the texts of policies to :mod:`enforcer.policy.expression`.

The grammar is expression.lark; docs/policy-language.md describes the language. The LALR parser keeps its own
stack and calls back for each finished part, so nesting cannot exhaust Python's stack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Protocol, TypeVar

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from enforcer.policy import fields, values
from enforcer.policy.error import ExpressionError, ListError, WrongValueError, cut
from enforcer.policy.expression import (
    AddressIn,
    And,
    Comparison,
    Everything,
    Expression,
    Not,
    Or,
    PortIn,
    ProtocolIn,
    Quantifier,
    Side,
    TextIn,
    TextMatches,
)
from enforcer.policy.facts import SAML, saml
from enforcer.policy.fields import Field
from enforcer.policy.lists import NO_LISTS, Lists
from enforcer.policy.patterns import PatternError, check

__all__ = ["NO_LISTS", "ExpressionError", "ListError", "Lists", "expression_of", "parse"]

MAX_LENGTH = 256 << 10  # characters; about 16,000 addresses
MAX_NESTING = 100  # parentheses, any(…), all(…) and `not`
MAX_COMPARISONS = 4096  # limit for an expression with xor: each xor doubles its operands

_LISTS: ContextVar[Lists] = ContextVar("lists", default=NO_LISTS)
"""Lists of the text being parsed: the parser's callbacks take no further arguments."""

_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_TEXT = 240  # characters of a comparison's text
_PAIRS = Field(SAML, "text", many=True)
"""The field of ``any(identity.saml_attributes[*] == "name=value")``."""


@dataclass(frozen=True, slots=True)
class _Part:
    expression: Expression
    nesting: int = 0
    comparisons: int = 1


@dataclass(frozen=True, slots=True)
class _Path:
    """A field in the text. ``each``: it has ``[*]``, or is a SAML attribute, which needs none."""

    field: Field
    each: bool
    written: str
    column: int


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A comparison whose enclosing any(…) or all(…), if any, is not parsed yet."""

    path: _Path
    sign: str
    """``==``, ``in``, ``not matches`` …"""
    operator: Token
    operands: Sequence[Token]
    written: str


def _column(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _error(token: Token, wrong: str, right: str) -> ExpressionError:
    return ExpressionError(f"{cut(token)} {wrong}; expected {right}", _column(token))


class _Build(Transformer[Token, Any]):
    """The parser's callbacks, one for each rule of the grammar."""

    def disjunction(self, parts: list[_Part | _Comparison]) -> _Part:
        return _joined(Or, [_unquantified(part) for part in parts])

    def conjunction(self, parts: list[_Part | _Comparison]) -> _Part:
        return _joined(And, [_unquantified(part) for part in parts])

    def exclusion(self, parts: list[_Part | _Comparison]) -> _Part:
        found, *others = (_unquantified(part) for part in parts)
        for other in others:
            one, two = found.expression, other.expression
            either, both = Or((one, two)), And((one, two))
            comparisons = 2 * (found.comparisons + other.comparisons)
            found = _Part(And((either, Not(both))), max(found.nesting, other.nesting), comparisons)
            if comparisons > MAX_COMPARISONS:
                raise ExpressionError(
                    f"xor makes more than {MAX_COMPARISONS:,} comparisons of this, because each doubles what "
                    "it joins; expected fewer of them",
                    1,
                )
        return found

    def negation(self, parts: list[Any]) -> _Part:
        sign, part = parts[0], _unquantified(parts[1])
        return _Part(Not(part.expression), _deeper_nesting(part, sign), part.comparisons)

    def group(self, parts: list[Any]) -> _Part:
        opening, part = parts[0], _unquantified(parts[1])
        return _Part(part.expression, _deeper_nesting(part, opening), part.comparisons)

    def quantified(self, parts: list[Any]) -> _Part:
        quantifier, comparison = parts[0], parts[2]
        return _Part(_checked(comparison, quantifier), 1)

    def path(self, parts: list[Token]) -> _Path:
        return _path(parts)

    def set(self, tokens: list[Token]) -> list[Token]:
        opening, *found, _ = tokens
        if not found:
            raise _error(opening, "begins an empty set", "at least one value in {…}")
        return found

    def compared(self, parts: list[Any]) -> _Comparison:
        path, operator, value = parts
        sign = _SIGNS.get(operator, str(operator))
        return _Comparison(path, sign, operator, [value], f"{path.written} {operator} {value}")

    def contained(self, parts: list[Any]) -> _Comparison:
        path, operand = parts[0], parts[-1]
        sign = "not in" if len(parts) == 4 else "in"
        if isinstance(operand, Token):
            return _Comparison(path, sign, parts[1], [operand], f"{path.written} {sign} {operand}")
        return _Comparison(path, sign, parts[1], operand, f"{path.written} {sign} {_set(operand)}")

    def matched(self, parts: list[Any]) -> _Comparison:
        path, pattern = parts[0], parts[-1]
        sign = "not matches" if len(parts) == 4 else "matches"
        return _Comparison(path, sign, parts[1], [pattern], f"{path.written} {sign} {pattern}")


def _set(tokens: list[Token]) -> str:
    """Return a set's text, with the first 12 of many values."""
    text = " ".join(tokens[:12])
    return f"{{{text}}}" if len(tokens) <= 12 else f"{{{text} … {len(tokens):,} values}}"


def _joined(kind: type[And] | type[Or], parts: list[_Part]) -> _Part:
    expression = kind(tuple(part.expression for part in parts))
    return _Part(expression, max(part.nesting for part in parts), sum(part.comparisons for part in parts))


def _deeper_nesting(part: _Part, token: Token) -> int:
    if part.nesting >= MAX_NESTING:
        raise _error(token, f"nests more than {MAX_NESTING} levels deep", "a flatter expression")
    return part.nesting + 1


def _unquantified(part: _Part | _Comparison) -> _Part:
    return part if isinstance(part, _Part) else _Part(_checked(part, None))


def _path(parts: list[Token]) -> _Path:
    names = [str(part) for part in parts if part.type in ("FIELD", "PART")]
    keys = [part for part in parts if part.type in ("STRING", "RAW")]
    stars = sum(part.type == "STAR" for part in parts)
    name, written, column = "".join(names), "".join(parts), _column(parts[0])
    if keys:
        if name != SAML or len(names) > 1 or len(keys) > 1:
            right = f'{written[: written.index("[")]} without ["…"], which belongs to {SAML}'
            raise _error(keys[0], "is no part of this field", right)
        return _Path(Field(saml(_text(keys[0])), "text", many=True), True, written, column)
    field = _PAIRS if name == SAML and stars else fields.find(name)
    if field is None:
        raise ExpressionError(fields.unknown(name), column)
    return _Path(field, stars > 0, written, column)


def _text(token: Token) -> str:
    try:
        return values.unquoted(token)
    except WrongValueError as wrong:
        raise _error(token, wrong.wrong, wrong.right) from None


def _checked(comparison: _Comparison, quantifier: Token | None) -> Expression:
    """Check a comparison against its field's operators, and build its expression."""
    path, sign, operator = comparison.path, comparison.sign, comparison.operator
    field = path.field
    _check_quantifier(comparison, quantifier)
    negative = sign == "!=" or sign.startswith("not ")
    allowed = ("==", "in") if field is _PAIRS else fields.OPERATORS[field.kind]
    if sign not in allowed and (field is _PAIRS or sign.removeprefix("not ") not in allowed):
        raise ExpressionError(
            f"{sign if negative else operator} does not compare {path.written}, which is "
            f"{fields.NOUNS[field.kind]}; expected {', '.join(allowed)}",
            _column(operator),
        )
    # any(x != v) means not all(x == v). Without any(…), a negated attribute means that no value matches.
    opposite = negative and quantifier is not None
    reduce: Quantifier = "all" if field.many and (quantifier == "all") is not opposite else "any"
    text = f"{quantifier}({comparison.written})" if quantifier else comparison.written
    text = text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
    built = _build(comparison, reduce, text)
    return Not(built) if negative else built


def _check_quantifier(comparison: _Comparison, quantifier: Token | None) -> None:
    path = comparison.path
    field = path.field
    if quantifier and not path.each:
        right = f"{quantifier}({field.written if field.many else f'{field.name}[*]'} {comparison.sign} …)"
        if not field.many:
            right = f"{path.written} {comparison.sign} … without {quantifier}(…), or {right}"
        raise ExpressionError(f"{path.written} in {quantifier}(…) has no [*]; expected {right}", path.column)
    if field.many and not quantifier and not field.name.startswith(f"{SAML}["):
        written = field.written if field is not _PAIRS else f"{SAML}[*]"
        raise ExpressionError(
            f"{path.written} is a list; expected any({written} {comparison.sign} …), or all(…)", path.column
        )
    if field is _PAIRS and quantifier == "all":
        raise ExpressionError(
            f'{path.written} is all attributes; expected one of them, {SAML}["…"], in all(…)', path.column
        )


def _build(comparison: _Comparison, quantifier: Quantifier, text: str) -> Expression:
    field, tokens = comparison.path.field, comparison.operands
    side: Side = "source" if ".src." in field.name else "destination"
    built: Expression
    if comparison.sign in fields.ORDER:
        built = _order_comparison(comparison, side, text)
    elif "matches" in comparison.sign:
        built = TextMatches(field.name, _pattern(tokens[0]), quantifier, text)
    elif field.kind == "address":
        built = AddressIn(side, tuple(each for networks in _values(comparison) for each in networks), text)
    elif field.kind == "port":
        built = PortIn(side, tuple(_values(comparison)), text)
    elif field.kind == "protocol":
        built = ProtocolIn(frozenset().union(*_values(comparison)), text)
    elif field is _PAIRS:
        built = _pairs(_values(comparison), tokens[0], text)
    else:
        built = TextIn(field.name, frozenset(_values(comparison)), quantifier, text)
    return built


def _pairs(found: Sequence[str], token: Token, text: str) -> Expression:
    attributes: dict[str, set[str]] = {}
    for pair in found:
        name, equals, value = pair.partition("=")
        if not equals:
            raise _error(token, "names no attribute", f'"name={cut(pair)}", or {SAML}["name"] as the field')
        attributes.setdefault(name, set()).add(value)
    tests = tuple(TextIn(saml(name), frozenset(some), "any", text) for name, some in attributes.items())
    return tests[0] if len(tests) == 1 else Or(tests)


def _order_comparison(comparison: _Comparison, side: Side, text: str) -> Comparison:
    field, token = comparison.path.field, comparison.operands[0]
    if field.kind == "port":
        number = _read(field, values.port, token)
        first, last = values.ordered(comparison.sign, number, 0xFFFF)
        return PortIn(side, ((first, last),) if first <= last else (), text)
    return AddressIn(
        side, values.ordered_networks(comparison.sign, _read(field, values.address, token)), text
    )


def _pattern(token: Token) -> str:
    try:
        pattern = values.pattern(token)
        check(pattern)
    except WrongValueError as wrong:
        raise _error(token, wrong.wrong, wrong.right) from None
    except PatternError as error:
        raise _error(token, f"is no regular expression here: {error}", "one that RE2 takes") from None
    return pattern


_READERS: dict[fields.Kind, Callable[[str], Any]] = {
    "address": values.networks,
    "port": values.ports,
    "protocol": values.protocol,
    "country": values.country,
    "continent": values.continent,
    "host": values.host,
    "text": values.text,
}

T = TypeVar("T")


def _values(comparison: _Comparison) -> Sequence[Any]:
    """Read the right-hand side of a comparison: one value, a set, or a list."""
    field, tokens = comparison.path.field, comparison.operands
    if tokens[0].type == "LIST":
        return _list(field, tokens[0])
    if comparison.sign in ("==", "!="):
        _refuse_many(field, tokens[0])
    reader = _READERS[field.kind]
    return [_read(field, reader, token) for token in tokens]


def _refuse_many(field: Field, token: Token) -> None:
    if field.kind in ("address", "port") and token.type == "VALUE":
        kind = "a prefix" if "/" in token else "a range" if ".." in token else ""
        if kind:
            what = "address" if field.kind == "address" else "port"
            right = f"one {what} here, or {kind} in a set: {field.name} in {{{cut(token)}}}"
            raise _error(token, f"is {kind}", right)


def _read(field: Field, reader: Callable[[str], T], token: Token) -> T:
    quoted = token.type != "VALUE"
    if field.kind == "address" and quoted:
        raise _error(token, "is text in quotes", f"{values.ADDRESS}, without quotes")
    if not quoted and field.kind not in ("address", "port"):
        # Numbers and bare words are refused: text stands in quotes.
        what = "is a number" if token.isdigit() else "is not in quotes"
        quotable = field.kind != "protocol" or token.lower() in values.PROTOCOLS
        raise _error(token, what, f'"{cut(token)}"' if quotable else values.PROTOCOL)
    try:
        return reader(_text(token) if quoted else str(token))
    except WrongValueError as wrong:
        raise _error(token, wrong.wrong, wrong.right) from None


def _list(field: Field, token: Token) -> Sequence[Any]:
    lists = _LISTS.get()
    name = lists.find(token[1:])
    if name is None:
        known = ", ".join(f"${name}" for name in list(lists)[:12])
        more = f" … ({len(lists)} in all)" if len(lists) > 12 else ""
        right = f"one of {known}{more}" if known else "a list of that name under `lists`; there are none"
        raise _error(token, "is no list", right)
    found, wrong = _list_values(lists, name, field.kind)
    if wrong is not None:
        index, problem = wrong
        raise ListError(name, index, lists[name][index], problem, _column(token))
    return found


@lru_cache(maxsize=512)
def _list_values(
    lists: Lists, name: str, kind: fields.Kind
) -> tuple[tuple[Any, ...], tuple[int, WrongValueError] | None]:
    """Read a list's values, once for all policies; return them, or the first wrong value."""
    reader = _READERS[kind]
    found = []
    for index, value in enumerate(lists[name]):
        try:
            found.append(reader(value))
        except WrongValueError as wrong:
            return (), (index, wrong)
    return tuple(found), None


@cache
def _parser() -> Lark:
    grammar = files("enforcer.policy").joinpath("expression.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", transformer=_Build(), maybe_placeholders=False)


class PolicyTexts(Protocol):
    """The three expressions of a policy."""

    @property
    def traffic(self) -> str:
        """Expression; empty: it matches everything."""

    @property
    def identity(self) -> str:
        """Expression; empty: it matches everything."""

    @property
    def device_posture(self) -> str:
        """Expression; empty: it matches everything."""


def expression_of(rule: PolicyTexts, lists: Lists = NO_LISTS) -> Expression:
    """Return a policy's expression: its three texts, joined by `and`; ExpressionError."""
    texts = (rule.traffic, rule.identity, rule.device_posture)
    parts = [part for part in (parse(text, lists) for text in texts) if part != Everything()]
    return And(tuple(parts)) if len(parts) > 1 else parts[0] if parts else Everything()


@lru_cache(maxsize=8192)
def parse(text: str, lists: Lists = NO_LISTS) -> Expression:
    """Parse an expression; a blank text is :class:`Everything`. ExpressionError."""
    if not text.strip():
        return Everything()
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            f"longer than {MAX_LENGTH:,} characters; expected several policies instead of one, or its values "
            "in a list (`lists`)",
            1,
        )
    within = _LISTS.set(lists)
    try:
        return _unquantified(_parser().parse(text)).expression  # type: ignore[arg-type]
    except UnexpectedInput as error:
        raise _syntax_error(error, text) from None
    finally:
        _LISTS.reset(within)


_ALLOWED = {
    "FIELD": "a field, such as net.dst.ip",
    "COMPARE": "`==`, `!=`",
    "IN": "`in`",
    "MATCHES": "`matches`",
    "NOT": "`not`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "RBRACKET": "`]`",
    "STAR": "`*`",
    "_AND": "`and`",
    "_OR": "`or`",
    "_XOR": "`xor`",
    "VALUE": "a value",
    "STRING": '"…"',
    "PATTERN": 'a regular expression in "…"',
    "LIST": "$name of a list",
    "$END": "the end",
}
_LAST_PATH = re.compile(r'([A-Za-z_][\w.]*(?:\[(?:\*|"[^"]*")\][\w.]*)*)\s*$')


def _syntax_error(error: UnexpectedInput, text: str) -> ExpressionError:
    if isinstance(error, UnexpectedToken):
        expected = set(error.accepts or error.expected)
        found = (
            "the expression ends here"
            if error.token.type == "$END"
            else f"{cut(error.token)} cannot stand here"
        )
        position = len(text.rstrip()) if error.token.type == "$END" else error.token.start_pos or 0
    else:
        assert isinstance(error, UnexpectedCharacters)
        expected = set(error.allowed or ())
        position = error.pos_in_stream or 0
        found = f"{text[position]} cannot stand here"
    rest = text[position:]
    if "COMPARE" in expected:
        return _operator_error(found, text, position)
    if re.match('r?#*"', rest) and expected & {"STRING", "PATTERN"}:
        outside = "" if "STRING" in expected else ", outside of […]"
        return ExpressionError(f'" has no end; expected a closing quote{outside}', position + 1)
    if "VALUE" in expected:
        expected.discard("STRING")
    *others, last = [allowed for name, allowed in _ALLOWED.items() if name in expected] or ["another text"]
    choice = f"{', '.join(others)} or {last}" if others else last
    return ExpressionError(f"{found}; expected {choice}{_hint(rest, expected)}", position + 1)


def _operator_error(found: str, text: str, position: int) -> ExpressionError:
    """Return the error for a wrong operator, with the operators of the field."""
    rest = text[position:]
    path = _LAST_PATH.search(text, 0, position)
    name = re.sub(r"\[[^\]]*\]", "", path[1]) if path else ""
    if path and rest.startswith("(") and path[1] == name:
        return ExpressionError(f"{name} is no function here; expected any(…) or all(…)", path.start(1) + 1)
    field = fields.find(name) or (Field(SAML, "text", many=True) if name == SAML else None)
    if path and field is None:
        return ExpressionError(fields.unknown(name), path.start(1) + 1)
    operators = fields.OPERATORS[field.kind if field else "text"]
    choice = ", ".join(f"`{operator}`" for operator in operators[:-1]) + f" or `{operators[-1]}`"
    return ExpressionError(f"{found}; expected {choice}{_operator_hint(rest)}", position + 1)


def _operator_hint(rest: str) -> str:
    if re.match(r"=(?!=)", rest):
        return " (equality is written ==)"
    if re.match("(contains|wildcard|strict wildcard|starts_with|ends_with)", rest):
        return " (a part of a text is found by matches)"
    return ""


def _hint(rest: str, expected: set[str]) -> str:
    """Return a hint for the syntax of other languages."""
    if "RBRACE" in expected and rest.startswith(","):
        return " (values in {…} are separated by blanks)"
    if rest.startswith("'"):
        return ' (text stands in double quotes: "tcp")'
    if "LBRACE" in expected:
        return " (a set, even of one value: in {80})"
    return ""
