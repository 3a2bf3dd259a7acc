"""The results as tables for the terminal, as JSON, and as Markdown for the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.report.results import Claim, Results, Row

if TYPE_CHECKING:
    from bench.report.plots import Picture

RESULTS = "results.json"
ROW_TITLES = ("case", "what", "median", "range", "lost", "the run before")
TARGET_TITLES = ("figure", "case", "what", "measured", "range", "target", "")
LIMIT_TITLES = ("figure", "case", "what", "measured", "range", "limit", "")


def number(value: float, unit: str) -> str:
    """A figure with its unit, in about three significant digits; a count (no unit) is an integer."""
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
        "" if row.previous is None else number(row.previous, row.unit),
    )


def row_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The titles and rows of a figure's table, without empty columns."""
    cells = [row_cells(row) for row in rows]
    kept = [column for column in range(len(ROW_TITLES)) if any(one[column] for one in cells)]
    return (
        tuple(ROW_TITLES[column] for column in kept),
        [tuple(one[column] for column in kept) for one in cells],
    )


def claim_cells(claim: Claim) -> tuple[str, ...]:
    """One row of the tables of targets and limits."""
    spread = ""
    if claim.low is not None and claim.high is not None and claim.low != claim.high:
        spread = f"{number(claim.low, claim.unit)} - {number(claim.high, claim.unit)}"
    return (
        claim.figure,
        claim.case,
        claim.text,
        "packets lost" if claim.value is None else number(claim.value, claim.unit),
        spread,
        f"{'≥' if claim.at_least else '≤'} {number(claim.limit, claim.unit)}",
        "holds" if claim.holds else "MISSED",
    )


def show(results: Results, console: Console) -> None:
    """Prints the results as tables."""
    for figure, rows in groupby(results.rows, key=lambda row: row.figure):
        titles, cells = row_table(list(rows))
        table = Table(*titles, title=figure, title_justify="left")
        for row in cells:
            table.add_row(*row)
        console.print(table)
    for title, titles, claims in _claims(results):
        table = Table(*titles, title=title, title_justify="left")
        for claim in claims:
            table.add_row(*claim_cells(claim), style="" if claim.holds else "bold red")
        console.print(table)
    for name, reason in results.failures.items():
        console.print(f"not measured: {name}: {reason}", style="bold red", markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in results.machine.items()))
    took = ", ".join(f"{name} {took:.0f}" for name, took in results.took.items())
    console.print(f"seconds: {took}; together {sum(results.took.values()):.0f}")


def _claims(results: Results) -> Iterator[tuple[str, tuple[str, ...], list[Claim]]]:
    for title, titles, target in (("Targets", TARGET_TITLES, True), ("Other limits", LIMIT_TITLES, False)):
        claims = [claim for claim in results.claims if claim.target == target]
        if claims:
            yield title, titles, claims


def markdown(results: Results, pictures: Sequence[Picture] = ()) -> Iterator[str]:
    """The documentation's page, line by line."""
    yield "# Measurements"
    yield ""
    yield "Written by `python -m bench --write` (`make bench` shows the same without writing)."
    yield "Every round measures all compared peers in turn. The tables show medians and ranges of all"
    yield "rounds; for ratios, those of the ratios within a round. A generator inside the kernel injects"
    yield "frames at the gateway's inside interface and counts them behind the outside one; a run with lost"
    yield "frames is reported as lost. [notes.md](notes.md) explains each figure, and where the time is"
    yield "spent if one misses its target."
    yield ""
    yield from (f"- {name.replace('_', ' ')}: {value}" for name, value in results.machine.items())
    for name, reason in results.failures.items():
        yield f"- not measured: {name}: {' '.join(reason.split())}"
    for title, titles, claims in _claims(results):
        yield ""
        yield f"## {title}"
        yield ""
        yield from _table(titles, [claim_cells(claim) for claim in claims])
        if claims[0].target:
            for picture in pictures:
                yield ""
                yield f"![{picture.title}]({picture.name}.svg)"
    for figure, rows in groupby(results.rows, key=lambda row: row.figure):
        yield ""
        yield f"## {figure}"
        yield ""
        yield from _table(*row_table(list(rows)))


def _table(titles: Sequence[str], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"| {' | '.join('---' for _ in titles)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def write(results: Results, directory: Path) -> None:
    """Writes results.json, README.md and its pictures."""
    from bench.report import plots

    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    (directory / RESULTS).write_text(text + "\n")
    pictures = plots.draw(results, directory)
    (directory / "README.md").write_text("\n".join(markdown(results, pictures)) + "\n")


def written(directory: Path) -> dict[tuple[str, str, str], float]:
    """Medians of the run that was written last, by figure, case and subject; empty if there is none."""
    try:
        document = json.loads((directory / RESULTS).read_text())
    except FileNotFoundError:
        return {}
    return {(row["figure"], row["case"], row["subject"]): row["median"] for row in document["rows"]}
