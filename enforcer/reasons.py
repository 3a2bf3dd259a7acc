"""The reasons of bpf/reasons.h, read from it: one list for C and for Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_LINE = re.compile(r'^REASON\((\d+), (\w+), (\w+), "([^"]*)"\)', re.MULTILINE)


@dataclass(frozen=True)
class Reason:
    """One way that a packet can end.

    ``verdict`` is dedicated, shared, refused, blocked or untouched.
    """

    number: int
    name: str
    verdict: str
    description: str


@cache
def reasons() -> dict[int, Reason]:
    """All reasons by number; names are in the form that commands show (``tiny-fragment``)."""
    text = files("enforcer.bpf").joinpath("reasons.h").read_text()
    return {
        int(number): Reason(int(number), name.lower().replace("_", "-"), verdict, description)
        for number, name, verdict, description in _LINE.findall(text)
    }


def reason_of(number: int) -> Reason:
    """The reason of this number, whatever version of the programs counted it."""
    unknown = Reason(number, f"reason-{number}", "unknown", "what a later version of the enforcer knows")
    return reasons().get(number, unknown)


@cache
def by_name() -> dict[str, Reason]:
    """All reasons by name."""
    return {reason.name: reason for reason in reasons().values()}
