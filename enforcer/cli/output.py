"""Output of rows: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

_ENDLESS = 1_000_000

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")


@dataclass(frozen=True)
class Column:
    """A table column: a row's field, the heading, the formatter of values, and the alignment."""

    field: str
    heading: str
    write: Callable[[Any], str] = str
    right: bool = False


def print_json(document: Any) -> None:
    """Prints one JSON document; a list has one line per row, which is ten times as fast as indenting."""
    if isinstance(document, list) and document:
        click.echo("[\n" + ",\n".join(map(json.dumps, document)) + "\n]")
    else:
        click.echo(json.dumps(document, indent=2))


def print_table(rows: Iterable[Mapping[str, Any]], columns: Iterable[Column], empty: str) -> None:
    """Prints a table, or the sentence ``empty`` if there are no rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows, columns = list(rows), list(columns)
    if not rows:
        click.echo(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        # Text, so that brackets, as around an IPv6 address, are not markup.
        table.add_row(
            *(
                Text("-" if row[column.field] is None else column.write(row[column.field]))
                for column in columns
            )
        )
    console = Console()
    # In a pipe nothing is truncated or folded.
    if not console.is_terminal:
        console = Console(width=_ENDLESS)
    console.print(table)


def number(value: float) -> str:
    """40,000."""
    return f"{value:,}"


def percent(value: float) -> str:
    """0.125 → 12.5 %."""
    return f"{value * 100:.1f} %"


def size(value: float) -> str:
    """Bytes with a binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(value: float) -> str:
    """Seconds as "1.5 s", "2:03", "1:02:03" or "3 d 4 h"."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{hours // 24} d {hours % 24} h"


def yes(value: bool) -> str:
    """Yes or no."""
    return "yes" if value else "no"


Right = partial(Column, right=True)
