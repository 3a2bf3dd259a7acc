"""What pydantic found wrong, in words for the person who wrote the file."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from enforcer.config.document import Way
from enforcer.config.fields import type_name
from enforcer.config.models import (
    DNS,
    Configuration,
    EgressIP,
    GeoIP,
    Interfaces,
    Limits,
    Location,
    Policy,
    PolicyEgress,
    Proxy,
    Sessions,
    Shared,
    Timers,
)

_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Configuration,
    ("interfaces",): Interfaces,
    ("proxy",): Proxy,
    ("locations", "*"): Location,
    ("shared",): Shared,
    ("egress_ips", "*"): EgressIP,
    ("limits",): Limits,
    ("timers",): Timers,
    ("geoip",): GeoIP,
    ("sessions",): Sessions,
    ("dns",): DNS,
    ("policies", "*"): Policy,
    ("policies", "*", "egress"): PolicyEgress,
}

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "dict_type": "a group of keys",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "literal_error": "`default`, or the name or the addresses of an egress IP, such as {ipv4: 203.0.113.10}",
}


def dotted(way: Way) -> str:
    """Write the way to a value as people do: ``egress_ips[1].ipv4``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in way)
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """Show a value in a message, cut to a readable length; groups and lists not at all."""
    if isinstance(value, dict | list) or value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:76] + '…"'


def sentence(way: Way, value: Any, wrong: str, right: str) -> str:
    """Put one fault into words: where, the value, what is wrong with it, what would be right."""
    subject = f"{dotted(way)}: {shown(value)}".rstrip()
    return f"{subject} {wrong}; expected {right}"


def listed(words: Iterable[str], most: int = 12) -> str:
    """List words, the first few of many."""
    every = list(words)
    return ", ".join(every[:most]) + (f" … ({len(every)} in all)" if len(every) > most else "")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Say what could have been meant by ``word``: a near miss first, else all that is allowed."""
    choices = list(allowed)
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return f"{close[0]} (did you mean that?)" if close else f"one of {listed(choices)}"


def model_at(way: Way) -> type[BaseModel] | None:
    """Name the model of the group of keys at ``way``."""
    pattern = tuple(step if isinstance(step, str) else "*" for step in way)
    if pattern[:1] == ("locations",) and len(pattern) == 2:
        pattern = ("locations", "*")
    return _MODELS.get(pattern)


def missing(way: Way) -> str:
    """Say that the key at the end of ``way`` is missing, and what belongs there."""
    model, key = model_at(way[:-1]), str(way[-1])
    field = model.model_fields.get(key) if model else None
    what = (field.description if field else None) or "a value"
    first = what.split("\n", 1)[0].rstrip(".")
    # Acronyms keep their capital letters.
    first = first[0].lower() + first[1:] if first[1:2].islower() else first
    where = f"{dotted(way[:-1])}: " if len(way) > 1 else ""
    return f'{where}the key "{key}" is missing; expected {first}'


def unknown(way: Way) -> str:
    """Say that nothing reads the key at the end of ``way``, and which key could be meant."""
    model = model_at(way[:-1])
    where = f"{dotted(way[:-1])}: " if len(way) > 1 else ""
    allowed = model.model_fields if model else ()
    return f'{where}unknown key "{way[-1]}"; expected {nearest(str(way[-1]), allowed)}'


def explain(error: ErrorDetails, way: Way) -> str:
    """Put one of pydantic's errors into words."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return missing(way)
    if kind == "extra_forbidden":
        return unknown(way)
    if kind == "greater_than_equal":
        wrong, right = "is too small", f"at least {int(context['ge']):,}"
    elif kind == "less_than_equal":
        wrong, right = "is too large", f"{int(context['le']):,} at most"
    elif kind == "too_short":
        wrong, right = "is empty", "at least one entry"
    elif kind == "finite_number":
        wrong, right = "is not finite", _EXPECTED[kind]
    elif kind == "too_long":
        wrong, right = f"has {context['actual_length']:,} entries", f"{context['max_length']:,} at most"
    elif kind == "literal_error" and way[-1] != "egress":
        wrong, right = "is neither", context["expected"].replace("'", "`")
    elif kind in _EXPECTED:
        wrong, right = f"is {type_name(value)}", _EXPECTED[kind]
    else:
        wrong, right = context.get("wrong", error["msg"]), context.get("right", "another value")
    return sentence(way, value, wrong, right)
