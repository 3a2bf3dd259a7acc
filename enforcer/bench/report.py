"""The results for people (tables), for programs (JSON) and for the documentation (Markdown)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from enforcer.bench.results import Claim, Results, Row

ROW_TITLES = ("case", "what", "median", "range", "lost")
CLAIM_TITLES = ("figure", "case", "what", "measured", "range", "limit", "")


def number(value: float, unit: str) -> str:
    """A figure with its unit, three digits that mean something; a count (no unit) is whole."""
    if not unit:
        return f"{value:,.0f}"
    if unit == "ns":
        return f"{value:,.0f} ns"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f} {unit}"


def row_cells(row: Row) -> tuple[str, ...]:
    """One row of a figure's table."""
    return (
        row.case,
        row.subject,
        number(row.median, row.unit),
        f"{number(row.low, row.unit)} - {number(row.high, row.unit)}" if len(row.samples) > 1 else "",
        f"LOST {row.lost:.1%}" if row.is_lost else "",
    )


def claim_cells(claim: Claim) -> tuple[str, ...]:
    """One row of the table of limits."""
    spread = ""
    if claim.low is not None and claim.high is not None and claim.low != claim.high:
        spread = f"{number(claim.low, claim.unit)} - {number(claim.high, claim.unit)}"
    return (
        claim.figure,
        claim.case,
        claim.text,
        "packets lost" if claim.value is None else number(claim.value, claim.unit),
        spread,
        f"≤ {number(claim.limit, claim.unit)}",
        "holds" if claim.holds else "MISSED",
    )


def show(results: Results, console: Console) -> None:
    """Prints everything as tables."""
    for figure, rows in groupby(results.rows, key=lambda row: row.figure):
        table = Table(*ROW_TITLES, title=figure, title_justify="left")
        for row in rows:
            table.add_row(*row_cells(row))
        console.print(table)
    table = Table(*CLAIM_TITLES, title="Limits", title_justify="left")
    for claim in results.claims:
        table.add_row(*claim_cells(claim), style="" if claim.holds else "bold red")
    console.print(table)
    for name, reason in results.failures.items():
        console.print(f"not measured: {name}: {reason}", style="bold red", markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in results.machine.items()))
    console.print("seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in results.took.items()))


def markdown(results: Results) -> Iterator[str]:
    """The documentation's page, line by line."""
    yield "# Measurements"
    yield ""
    yield "Written by `python -m enforcer.bench --write` (`make bench` shows the same without writing)."
    yield "A generator inside the kernel feeds frames into the gateway's inside interface. Everything that is"
    yield "compared is measured in turn within every round. Packets are counted where they leave, and a run"
    yield "that lost any is reported as lost. Medians of all rounds, and their range."
    yield ""
    yield from (f"- {name.replace('_', ' ')}: {value}" for name, value in results.machine.items())
    yield ""
    yield "## Limits"
    yield ""
    yield from _table(CLAIM_TITLES, [claim_cells(claim) for claim in results.claims])
    for figure, rows in groupby(results.rows, key=lambda row: row.figure):
        yield ""
        yield f"## {figure}"
        yield ""
        yield from _table(ROW_TITLES, [row_cells(row) for row in rows])


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"| {' | '.join('---' for _ in titles)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def write(results: Results, directory: Path) -> None:
    """Writes results.json and README.md."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    (directory / "results.json").write_text(text + "\n")
    (directory / "README.md").write_text("\n".join(markdown(results)) + "\n")
