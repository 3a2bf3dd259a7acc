"""The reasons of packets' outcomes, read from bpf/reasons.h: one list for C and Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_LINE = re.compile(r'^REASON\((\d+), (\w+), (\w+), "([^"]*)"\)', re.MULTILINE)


@dataclass(frozen=True)
class Reason:
    """A reason of a packet's outcome.

    ``verdict`` is dedicated, shared, refused, blocked or untouched.
    """

    number: int
    name: str
    verdict: str
    description: str


@cache
def reasons() -> dict[int, Reason]:
    """All reasons by number; names have the form that commands show (``tiny-fragment``)."""
    text = files("enforcer.bpf").joinpath("reasons.h").read_text()
    return {
        int(number): Reason(int(number), name.lower().replace("_", "-"), verdict, description)
        for number, name, verdict, description in _LINE.findall(text)
    }


def reason_of(number: int) -> Reason:
    """The reason of this number; an unknown one of a later version gets a placeholder."""
    unknown = Reason(number, f"reason-{number}", "unknown", "what a later version of the enforcer knows")
    return reasons().get(number, unknown)


@cache
def by_name() -> dict[str, Reason]:
    """All reasons by name."""
    return {reason.name: reason for reason in reasons().values()}
