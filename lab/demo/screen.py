"""The demo's output: plain lines that can be piped to a file; colour and a spinner on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from lab.demo.rows import Result

_SAW, _SHOULD = 24, 26  # columns


class Screen:
    """Prints rows and checks, and counts those that are as expected."""

    def __init__(self) -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.rows: list[bool] = []
        self.checks: list[bool] = []

    @property
    def good(self) -> bool:
        """Whether all rows and checks so far are as expected."""
        return bool(self.rows) and all(self.rows) and all(self.checks)

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line: cut at the edge of a terminal, whole in a file."""
        shown = Text(text, style)
        if self.console.is_terminal:
            shown.truncate(self.console.width, overflow="ellipsis")
        self.console.print(shown)

    def heading(self, text: str) -> None:
        """Print the heading of a part of the demo."""
        self.line()
        self.line(text, "bold")
        self.line("─" * len(text), "bold")

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Print ``what`` while the block runs, and afterwards the time that it took."""
        began = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(f"{what} …"):
                yield
        else:
            self.line(f"{what} …", "dim")
            yield
        self.line(f"{what}: {time.monotonic() - began:.1f} s", "dim")

    def columns(self) -> None:
        """Print the headings of the rows that follow."""
        self.line(
            f"{'':10}{'seen by the origin':{_SAW}}{'should be':{_SHOULD}}enforcer explain had said", "dim"
        )

    def title(self, title: str, program: str) -> None:
        """Print the kind of traffic that the next results belong to."""
        self.line(f"{title} [{program}]")

    def result(self, result: Result) -> None:
        """Print the result of one kind of traffic in one family."""
        self.rows.append(result.good)
        text = f"IPv{result.family}  {result.saw:{_SAW - 1}} {result.should:{_SHOULD - 1}} {result.said}"
        self._marked(result.good, text)

    def check(self, good: bool, text: str) -> None:
        """Print a check that is not one of the rows."""
        self.checks.append(good)
        self._marked(good, text)

    def summary(self) -> None:
        """Print the last line, with the counts of rows and checks."""
        self.line()
        rows = f"{sum(self.rows)} of {len(self.rows)} rows as they should be"
        checks = f"{sum(self.checks)} of {len(self.checks)} other checks"
        self._marked(self.good, f"{rows}, {checks}")

    def _marked(self, good: bool, text: str) -> None:
        mark = Text("  ✓ ", "green") if good else Text("  ✗ ", "bold red")
        self.console.print(mark + Text(text))
