"""The list of reasons (bpf/reasons.h) that C and Python share."""

from __future__ import annotations

from importlib.resources import files

from enforcer.constants.bpf import REASON_COUNTERS
from enforcer.reasons import by_name, reasons


def test_every_line_is_read() -> None:
    text = files("enforcer.bpf").joinpath("reasons.h").read_text()
    lines = [line for line in text.splitlines() if line.startswith("REASON(")]
    assert len(lines) == len(reasons()) == len(by_name())


def test_numbers_fit_the_map_and_order_the_verdicts() -> None:
    """The programs compare numbers: refused from 20, blocked from 30, untouched from 40.

    Those from 70 on are reasons of the nftables table, which compares no numbers.
    """
    bounds = {"dedicated": (1, 20), "shared": (1, 20), "refused": (20, 30), "untouched": (40, 70)}
    for number, reason in reasons().items():
        assert number == reason.number < REASON_COUNTERS
        first, last = bounds.get(reason.verdict, (30, 40)) if number < 70 else (70, REASON_COUNTERS)
        assert first <= number < last, reason


def test_names_and_descriptions_are_for_people() -> None:
    for reason in reasons().values():
        assert reason.name == reason.name.lower() and "_" not in reason.name
        assert reason.description and not reason.description.endswith(".")
    descriptions = [reason.description for reason in reasons().values()]
    assert len(set(descriptions)) == len(descriptions)


def test_by_name() -> None:
    assert by_name()["tiny-fragment"].number == 31
    assert by_name()["limit"].verdict == "refused"
