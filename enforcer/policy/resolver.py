"""Which rules match a client, a host or a region: worked out when one of these changes, never per packet.

A subject's signature is which comparisons are true of it and which fields are known. Subjects share
signatures, and comparisons with `in` are found by value: so neither 100,000 sessions nor 4,000 policies
are multiplied with each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from enforcer.policy.evaluation import holds
from enforcer.policy.expression import Test, TextIn, TextMatches
from enforcer.policy.facts import NOTHING, Facts
from enforcer.policy.predicate import TRUE, AllOf, AnyOf, Literal, Predicate, triggers

Bits = int
"""A set of rules: bit r is rule r."""

Signature = tuple[Bits, Bits]
"""Tests that are true, fields that are known."""

_FEW = 64  # signatures that are worked out one by one
_REMEMBERED = 65_536  # answers that are kept; more are forgotten together, to be worked out again
_BLOCK = 4096  # signatures worked out together; bounds the matrix of rules and signatures


class Resolver:
    """The predicates of one dimension, each with the rules that have it."""

    def __init__(self, groups: Sequence[tuple[Predicate, Bits]]):
        self.groups = [group for group in groups if group[0] != TRUE]
        self._all = 0
        for predicate, rules in groups:
            if predicate == TRUE:
                self._all |= rules
        self._tests: dict[Test, int] = {}
        self._fields: dict[str, int] = {}
        for predicate, _ in self.groups:
            for literal in _literals(predicate):
                self._tests.setdefault(literal.test, len(self._tests))
                self._fields.setdefault(literal.test.field, len(self._fields))
        self._by_value: dict[str, dict[str, Bits]] = {}
        self._others: dict[str, list[tuple[Test, Bits]]] = {}
        for test, number in self._tests.items():
            if isinstance(test, TextIn) and test.quantifier == "any":
                values = self._by_value.setdefault(test.field, {})
                for value in test.values:
                    values[value] = values.get(value, 0) | 1 << number
            else:
                self._others.setdefault(test.field, []).append((test, 1 << number))
        # A predicate is looked at when a comparison without which it can't be true is.
        self._triggered: dict[int, list[tuple[Predicate, Bits]]] = {}
        self._untriggered: list[tuple[Predicate, Bits]] = []
        for group in self.groups:
            tests = triggers(group[0])
            if tests is None:
                self._untriggered.append(group)
            for test in tests or ():
                self._triggered.setdefault(self._tests[test], []).append(group)
        self._memo: dict[tuple[str, tuple[str, ...]], Bits] = {}
        self._found: dict[Signature, Bits] = {}

    @property
    def unused(self) -> bool:
        """Whether no rule asks anything here."""
        return not self.groups

    @property
    def unknown(self) -> Bits:
        """Rules of a subject of which nothing is known."""
        return self.rules(NOTHING)

    def rules(self, facts: Facts) -> Bits:
        """Rules that match one subject."""
        return self.rules_of_many([facts])[0]

    def rules_of_many(self, subjects: Sequence[Facts]) -> list[Bits]:
        """Rules that match each subject."""
        signatures = [self._signature(facts) for facts in subjects]
        missing = list(dict.fromkeys(each for each in signatures if each not in self._found))
        if len(missing) < _FEW:
            self._found.update((signature, self._work_out_one(signature)) for signature in missing)
        else:
            for start in range(0, len(missing), _BLOCK):
                block = missing[start : start + _BLOCK]
                self._found.update(zip(block, self._work_out(block), strict=True))
        answers = [self._found[signature] for signature in signatures]
        if len(self._found) > _REMEMBERED:
            self._found.clear()
        return answers

    def _signature(self, facts: Facts) -> Signature:
        true = known = 0
        for field, number in self._fields.items():
            values = facts.get(field)
            if values is None:
                continue
            known |= 1 << number
            by_value = self._by_value.get(field)
            if by_value:
                for value in values:
                    true |= by_value.get(value, 0)
            if field in self._others:
                memo = (field, values)
                if memo not in self._memo:
                    if len(self._memo) >= _REMEMBERED:
                        self._memo.clear()
                    self._memo[memo] = sum(bit for test, bit in self._others[field] if holds(test, values))
                true |= self._memo[memo]
        return true, known

    def _work_out_one(self, signature: Signature) -> Bits:
        rules = self._all
        true, known = signature
        candidates = [*self._untriggered]
        for test in _ones(true):
            candidates += self._triggered.get(test, ())
        for predicate, members in candidates:
            if self._is_true(predicate, true, known):
                rules |= members
        return rules

    def _is_true(self, predicate: Predicate, true: Bits, known: Bits) -> bool:
        match predicate:
            case Literal(test, negated):
                return bool(
                    known >> self._fields[test.field] & 1 and (true >> self._tests[test] & 1) != negated
                )
            case AllOf(parts):
                return all(self._is_true(part, true, known) for part in parts)
            case AnyOf(parts):
                return any(self._is_true(part, true, known) for part in parts)

    def _work_out(self, signatures: Sequence[Signature]) -> list[Bits]:
        """As a matrix: a predicate's row says of all signatures at once where it is true."""
        import numpy as np

        everywhere = (1 << len(signatures)) - 1
        true: dict[int, Bits] = {}
        known = [0] * len(self._fields)
        for column, (tests, fields) in enumerate(signatures):
            for number in _ones(tests):
                true[number] = true.get(number, 0) | 1 << column
            for number in _ones(fields):
                known[number] |= 1 << column

        def row(predicate: Predicate) -> Bits:
            match predicate:
                case Literal(test, negated):
                    found = true.get(self._tests[test], 0)
                    return (everywhere ^ found if negated else found) & known[self._fields[test.field]]
                case AllOf(parts):
                    columns = everywhere
                    for part in parts:
                        columns &= row(part)
                    return columns
                case AnyOf(parts):
                    columns = 0
                    for part in parts:
                        columns |= row(part)
                    return columns

        width = max([self._all.bit_length(), *(rules.bit_length() for _, rules in self.groups), 1])
        size = -(-len(signatures) // 8)
        matrix = np.zeros((width, size), dtype=np.uint8)
        for rule in _ones(self._all):
            matrix[rule] = 0xFF
        for predicate, rules in self.groups:
            columns = np.frombuffer(row(predicate).to_bytes(size, "little"), dtype=np.uint8)
            for rule in _ones(rules):
                matrix[rule] |= columns
        flags = np.unpackbits(matrix, axis=1, count=len(signatures), bitorder="little")
        packed = np.packbits(flags.T, axis=1, bitorder="little")
        return [int.from_bytes(line.tobytes(), "little") for line in packed]


def _ones(bits: Bits) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _literals(predicate: Predicate) -> Iterator[Literal]:
    if isinstance(predicate, Literal):
        yield predicate
    else:
        for part in predicate.parts:
            yield from _literals(part)


def dump(groups: Sequence[tuple[Predicate, Bits]]) -> list[Any]:
    """As pairs of JSON values, the same in every process: first all comparisons, then each group."""
    tests, numbers = _numbered(groups)
    return [[tests, None], *([_dump(predicate, numbers), f"{rules:x}"] for predicate, rules in groups)]


def load(document: Sequence[Any]) -> list[tuple[Predicate, Bits]]:
    """From what :func:`dump` gave; ValueError."""
    (dumped, _), *groups = document
    tests = [_load_test(test) for test in dumped]
    return [(_load(predicate, tests), int(rules, 16)) for predicate, rules in groups]


def described(groups: Sequence[tuple[Predicate, Bits]]) -> list[str]:
    """What is asked, whichever rules ask it; equal, in every process, for groups of the same predicates."""
    tests, numbers = _numbered(groups)
    predicates = [_dump(predicate, numbers) for predicate, _ in groups if predicate != TRUE]
    return [json.dumps(each) for each in (*tests, *sorted(predicates))]


def _numbered(groups: Sequence[tuple[Predicate, Bits]]) -> tuple[list[Any], dict[Test, int]]:
    """The distinct comparisons in their dumped form, and where each stands."""
    distinct = {literal.test for predicate, _ in groups for literal in _literals(predicate)}
    dumped = sorted(((_dump_test(test), test) for test in distinct), key=itemgetter(0))
    return [form for form, _ in dumped], {test: number for number, (_, test) in enumerate(dumped)}


def _dump_test(test: Test) -> list[Any]:
    if isinstance(test, TextIn):
        return ["in", test.quantifier, test.field, sorted(test.values)]
    return ["matches", test.quantifier, test.field, test.pattern]


def _load_test(document: Any) -> Test:
    match document:
        case ["in", quantifier, field, values]:
            return TextIn(field, frozenset(values), quantifier)
        case ["matches", quantifier, field, pattern]:
            return TextMatches(field, pattern, quantifier)
    raise ValueError(f"no comparison: {document!r:.100}")


def _dump(predicate: Predicate, numbers: dict[Test, int]) -> list[Any]:
    match predicate:
        case Literal(test, negated):
            return ["not" if negated else "is", numbers[test]]
        case AllOf(parts):
            return ["and", sorted(_dump(part, numbers) for part in parts)]
        case AnyOf(parts):
            return ["or", sorted(_dump(part, numbers) for part in parts)]


def _load(document: Any, tests: Sequence[Test]) -> Predicate:
    match document:
        case ["is" | "not" as sign, number]:
            return Literal(tests[number], sign == "not")
        case ["and", parts]:
            return AllOf(frozenset(_load(part, tests) for part in parts))
        case ["or", parts]:
            return AnyOf(frozenset(_load(part, tests) for part in parts))
    raise ValueError(f"no predicate: {document!r:.100}")
