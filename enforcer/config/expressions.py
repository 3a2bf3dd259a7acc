"""What is wrong with policies' expressions: each text, the lists and regions they ask for, and their size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from enforcer.config.document import Way
from enforcer.config.draft import Draft, Fields
from enforcer.config.messages import sentence
from enforcer.errors import Fault
from enforcer.policy.expression import Expression, TextIn, TextMatches, comparisons
from enforcer.policy.facts import dimension
from enforcer.policy.language import ExpressionError, ListError, Lists, expression_of, parse
from enforcer.policy.rules import MAX_RULES, TooManyRulesError, rules_of

_TEXTS = ("traffic", "identity", "device_posture")


@dataclass(frozen=True)
class _Texts:
    """A policy's texts; one that is wrong is left out."""

    traffic: str = ""
    identity: str = ""
    device_posture: str = ""


def check_expressions(draft: Draft) -> None:
    """Parse every expression and count the rules that the enabled policies need in the match tables."""
    lists = draft.named_lists
    counted: list[tuple[int, int]] = []
    for index, fields in draft.policies.items():
        texts = _parsed(draft, index, fields, lists)
        if texts is None:
            continue
        try:
            rules = len(rules_of(expression_of(texts, lists)))
        except TooManyRulesError as error:
            draft.note(("policies", index), f"policies[{index}]: {error}", key=True)
        else:
            if fields.get("enabled", True):
                counted.append((rules, index))
    total = sum(rules for rules, _ in counted)
    if total > MAX_RULES:
        rules, index = max(counted, key=lambda each: each[0])
        draft.note(
            ("policies",),
            f"policies: need {total:,} rules, policies[{index}] alone {rules:,}; expected {MAX_RULES:,} "
            "at most: write one `in {…}` for several `or`, or merge policies",
        )


def _parsed(draft: Draft, index: int, fields: Fields, lists: Lists) -> _Texts | None:
    """Parse a policy's texts, and note what is wrong; None if something is."""
    texts: _Texts | None = _Texts()
    for key in _TEXTS:
        text = fields.get(key, "")
        way = ("policies", index, key)
        try:
            expression = parse(text, lists)
        except ListError as error:
            texts = None
            _note_list(draft, error, way)
        except ExpressionError as error:
            texts = None
            _note(draft, way, error.column - 1, error.message)
        else:
            _check_regions(draft, way, text, expression)
            texts = texts and replace(texts, **{key: text})
    return texts


def _note(draft: Draft, way: Way, index: int, message: str) -> None:
    position = draft.document.position_in(way, index)
    draft.faults.append(
        Fault(draft.name, position.line, f"policies[{way[1]}].{way[2]}: {message}", position.column)
    )


def _note_list(draft: Draft, error: ListError, way: Way) -> None:
    """Note a list's wrong value where it stands, once for all policies that use the list."""
    value = ("lists", error.name, error.index)
    position = draft.document.position(value)
    wrong = sentence(value, draft.document.value(value), error.problem.wrong, error.problem.right)
    fault = Fault(
        draft.name, position.line, f"{wrong} (policies[{way[1]}].{way[2]} uses it)", position.column
    )
    if all((other.line, other.column) != (fault.line, fault.column) for other in draft.faults):
        draft.faults.append(fault)


def _check_regions(draft: Draft, way: Way, text: str, expression: Expression) -> None:
    geoip = draft.document.data.get("geoip")
    if isinstance(geoip, dict) and geoip.get("database") is not None:
        return  # whatever is wrong with it is reported there
    tests = (each for each in comparisons(expression) if isinstance(each, TextIn | TextMatches))
    regions = (
        each.field for each in tests if dimension(each.field) in ("source_region", "destination_region")
    )
    field = next(regions, None)
    if field is not None:
        message = (
            f"{field} is looked up in a MaxMind DB, and none is named; expected `geoip: {{database: FILE}}`, "
            "such as /var/lib/GeoIP/GeoLite2-Country.mmdb"
        )
        _note(draft, way, max(text.find(field), 0), message)
