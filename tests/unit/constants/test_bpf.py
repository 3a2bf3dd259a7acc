"""The enumerations of the BPF programs in Python have the members of those in C."""

from __future__ import annotations

import enum
import re
from importlib.resources import files
from pathlib import Path

import pytest

from enforcer.constants import bpf

ENUMS = {
    "role": bpf.Role,
    "unfit": bpf.Unfit,
    "state": bpf.State,
    "flow_flag": bpf.FlowFlag,
    "bank_bits": bpf.BankBits,
    "override": bpf.Override,
    "event": bpf.Event,
    "stage": bpf.Stage,
}
TERMINATORS = {"TIMEOUTS", "EVENTS", "STAGES"}
"""Last members of enums that count the others."""


def test_sizes() -> None:
    """The header is read without compiler flags, so constants that depend on them are not known."""
    assert (bpf.RULES, bpf.SLOTS, bpf.NO_SLOT) == (16384, 16384, 0xFFFFFFFF)
    assert len(bpf.State) == bpf.TIMEOUTS


@pytest.mark.parametrize("name", ENUMS)
def test_enums_are_complete(name: str) -> None:
    text = "".join(path.read_text() for path in sorted(Path(str(files("enforcer.bpf"))).glob("*.[ch]")))
    found = re.search(
        rf"^enum {name} \{{(.*?)\}};", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL), re.S | re.M
    )
    assert found is not None
    members = re.findall(r"\b[A-Z]\w+", found[1])
    assert [member.name for member in ENUMS[name]] == [one for one in members if one not in TERMINATORS]


def test_every_enum_is_compared() -> None:
    made = {one for one in vars(bpf).values() if isinstance(one, enum.EnumType) and list(one)}
    assert made == set(ENUMS.values())
