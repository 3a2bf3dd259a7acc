"""Messages about faults of a file: pydantic's errors in one sentence each, with what is expected."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from enforcer.config.document import KeyPath
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


def dotted(path: KeyPath) -> str:
    """Return a key path as text: ``egress_ips[1].ipv4``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """Return a value for a message, cut to 80 characters; empty for groups and lists."""
    if isinstance(value, dict | list) or value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:76] + '…"'


def sentence(path: KeyPath, value: Any, wrong: str, right: str) -> str:
    """Return the message of one fault: path, value, what is wrong, what is expected."""
    subject = f"{dotted(path)}: {shown(value)}".rstrip()
    return f"{subject} {wrong}; expected {right}"


def listed(words: Iterable[str], most: int = 12) -> str:
    """Join words by commas, the first ``most`` of them."""
    every = list(words)
    return ", ".join(every[:most]) + (f" … ({len(every)} in all)" if len(every) > most else "")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return the allowed word closest to ``word``, else all allowed words, for a message."""
    choices = list(allowed)
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return f"{close[0]} (did you mean that?)" if close else f"one of {listed(choices)}"


def model_at(path: KeyPath) -> type[BaseModel] | None:
    """Return the model of the group of keys at ``path``, or None."""
    pattern = tuple(step if isinstance(step, str) else "*" for step in path)
    if pattern[:1] == ("locations",) and len(pattern) == 2:
        pattern = ("locations", "*")
    return _MODELS.get(pattern)


def missing(path: KeyPath) -> str:
    """Return the message for a missing key at the end of ``path``."""
    model, key = model_at(path[:-1]), str(path[-1])
    field = model.model_fields.get(key) if model else None
    what = (field.description if field else None) or "a value"
    first = what.split("\n", 1)[0].rstrip(".")
    # Acronyms keep their capital letters.
    first = first[0].lower() + first[1:] if first[1:2].islower() else first
    where = f"{dotted(path[:-1])}: " if len(path) > 1 else ""
    return f'{where}the key "{key}" is missing; expected {first}'


def unknown(path: KeyPath) -> str:
    """Return the message for an unknown key at the end of ``path``, with the likely one."""
    model = model_at(path[:-1])
    where = f"{dotted(path[:-1])}: " if len(path) > 1 else ""
    allowed = model.model_fields if model else ()
    return f'{where}unknown key "{path[-1]}"; expected {nearest(str(path[-1]), allowed)}'


def explain(error: ErrorDetails, path: KeyPath) -> str:
    """Return the message for one of pydantic's errors."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return missing(path)
    if kind == "extra_forbidden":
        return unknown(path)
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
    elif kind == "literal_error" and path[-1] != "egress":
        wrong, right = "is neither", context["expected"].replace("'", "`")
    elif kind in _EXPECTED:
        wrong, right = f"is {type_name(value)}", _EXPECTED[kind]
    else:
        wrong, right = context.get("wrong", error["msg"]), context.get("right", "another value")
    return sentence(path, value, wrong, right)
