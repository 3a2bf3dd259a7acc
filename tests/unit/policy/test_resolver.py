"""The resolvers' document: its size, equal text in every process, and bounded caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mixes import Rule

from enforcer.policy import resolver as resolvers
from enforcer.policy.language import Lists
from enforcer.policy.predicate import AllOf, Literal
from enforcer.policy.resolver import Resolver, dump, load, predicate_texts
from enforcer.policy.tables import Groups, compile_tables

TEXTS = [
    'any(identity.groups[*].name in {"b" "a" "c"}) and identity.email matches "@x" and identity.name == "n"',
    'any(identity.groups[*].name == "z") or identity.email matches "@y" or identity.name in {"m" "n"}',
    'any(identity.groups[*].name in {"a" "b" "c"}) and any(identity.groups[*].name == "z")',
    'not (identity.email matches "@x" and (identity.name == "n" or all(identity.groups[*].id == "1")))',
    "net.dst.port == 1",
]
PROGRAM = """
import json
from unit.policy.test_resolver import TEXTS, clients
from enforcer.policy.resolver import predicate_texts, dump
print(json.dumps([dump(clients(*TEXTS)), predicate_texts(clients(*TEXTS))]))
"""


def clients(*texts: str, lists: Lists | None = None) -> Groups:
    rules = [Rule(f"p{index}", index, text) for index, text in enumerate(texts)]
    return compile_tables(rules, lists or Lists({})).groups["client"]


def test_what_is_dumped_is_what_is_loaded() -> None:
    for groups in ((), clients(), clients(*TEXTS)):
        assert tuple(load(json.loads(json.dumps(dump(groups))))) == groups


@pytest.mark.parametrize("document", [[[[["near", "any", "f", []]], None]], [[[], None], [["xor", []], "1"]]])
def test_a_document_of_another_kind(document: list[object]) -> None:
    with pytest.raises(ValueError, match=r"no (comparison|predicate)"):
        load(document)


def test_every_process_dumps_the_same() -> None:
    """Hashes of strings differ between processes, and so the order of sets of parts."""
    said = set()
    for seed in ("1", "2", "3", "4"):
        paths = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        said.add(done.stdout)
    assert len(said) == 1


def test_a_list_is_dumped_once() -> None:
    lists = Lists({"people": [f"{number}@example.com" for number in range(10_000)]})
    texts = [
        f'identity.email in $people and any(identity.groups[*].name == "g{number}")' for number in range(40)
    ]
    groups = clients(*texts, lists=lists)
    document = json.dumps(dump(groups))
    assert document.count('"77@example.com"') == 1
    loaded = load(json.loads(document))
    assert tuple(loaded) == groups
    sets = {
        id(part.test)
        for predicate, _ in loaded
        if isinstance(predicate, AllOf)
        for part in predicate.parts
        if isinstance(part, Literal) and part.test.field == "identity.email"
    }
    assert len(sets) == 1


def test_what_is_asked_does_not_depend_on_who_asks() -> None:
    asked = predicate_texts(clients(*TEXTS))
    assert predicate_texts(clients(*reversed(TEXTS))) == asked
    assert predicate_texts(clients("net.src.port == 5", *TEXTS[:-1])) == asked
    assert predicate_texts(clients(*TEXTS[1:])) != asked
    assert predicate_texts(clients(*TEXTS, 'identity.name != "n"')) != asked
    # the same comparisons, joined otherwise
    one, two = 'identity.name == "n"', 'identity.email == "e"'
    assert predicate_texts(clients(f"{one} and {two}")) != predicate_texts(clients(f"{one} or {two}"))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "_REMEMBERED", 100)
    texts = [f'any(identity.groups[*].name == "{number}")' for number in range(9)]
    texts.append('identity.email matches "^1"')
    resolver = Resolver(clients(*texts))

    def facts(number: int) -> dict[str, tuple[str, ...]]:
        groups = tuple(str(bit) for bit in range(9) if number >> bit & 1)
        return {"identity.groups.name": groups, "identity.email": (str(number),)}

    expected = [number | (1 << 9 if str(number).startswith("1") else 0) for number in range(512)]
    assert [resolver.rules(facts(number)) for number in range(512)] == expected
    assert resolver.rules_of_many([facts(number) for number in range(512)]) == expected
    assert len(resolver._found) <= 100 and len(resolver._memo) <= 100
