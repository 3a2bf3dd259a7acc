"""The documentation's plots, as SVG; equal results give equal files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures import crowded, established, stall, throughput
from bench.report.results import Results, Row

_FAMILIES = (4, 6)
_METADATA = {"Date": None, "Creator": None}


@dataclass(frozen=True)
class Picture:
    """One file ``<name>.svg``, with a panel for each family."""

    name: str
    title: str
    figure: str
    """The figure whose rows the plot shows."""
    panel: Callable[[Axes, int, Sequence[Row]], None]
    height: float = 4.0


def draw(results: Results, directory: Path) -> list[Picture]:
    """Writes the pictures whose figures were measured, and returns them."""
    drawn = []
    for picture in PICTURES:
        rows = [row for row in results.rows if row.figure == picture.figure]
        if rows:
            _draw(picture, rows, directory / f"{picture.name}.svg")
            drawn.append(picture)
    return drawn


def _draw(picture: Picture, rows: Sequence[Row], path: Path) -> None:
    # Text stays text, and identifiers come from the salt: equal results give equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "enforcer", "font.size": 9}):
        figure = Figure(figsize=(11, picture.height), layout="constrained")
        figure.suptitle(picture.title)
        for axes, family in zip(figure.subplots(1, 2, sharey=True), _FAMILIES, strict=True):
            axes.set_title(f"IPv{family}")
            picture.panel(axes, family, [row for row in rows if row.case.startswith(f"IPv{family}")])
        figure.savefig(path, format="svg", metadata=_METADATA)


def _ranges(rows: Sequence[Row]) -> list[list[float]]:
    """Error bars: the distance from the median to the lowest and to the highest value."""
    return [[row.median - row.low for row in rows], [row.high - row.median for row in rows]]


def _bars(axes: Axes, rows: Sequence[Row], groups: dict[str, str], unit: str) -> None:
    """Draws horizontal bars of medians with their ranges, one per subject and group; a group is a case."""
    subjects = list(dict.fromkeys(row.subject for row in rows if row.case in groups))
    width = 0.8 / len(groups)
    for number, (case, label) in enumerate(groups.items()):
        found = {row.subject: row for row in rows if row.case == case}
        shown = [(index, found[subject]) for index, subject in enumerate(subjects) if subject in found]
        axes.barh(
            [index + (number - (len(groups) - 1) / 2) * width for index, _ in shown],
            [row.median for _, row in shown],
            width,
            xerr=_ranges([row for _, row in shown]),
            label=label,
            error_kw={"elinewidth": 0.7},
        )
    axes.set_yticks(range(len(subjects)), subjects)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(visible=True, axis="x", linewidth=0.3)
    if len(groups) > 1:
        axes.legend()


def _established(axes: Axes, family: int, rows: Sequence[Row]) -> None:
    cases = {f"IPv{family} UDP, 1 flow": "1 flow", f"IPv{family} UDP, 40,000 flows": "40,000 flows"}
    kept = [row for row in rows if row.subject not in (established.VALID, established.RENEWED)]
    _bars(axes, kept, cases, "ns a packet")


def _throughput(axes: Axes, family: int, rows: Sequence[Row]) -> None:
    _bars(axes, rows, {row.case: row.case.partition(", ")[2] for row in rows}, "Gbit/s")


def _stall(axes: Axes, family: int, rows: Sequence[Row]) -> None:
    _bars(axes, rows, {row.case: row.case.partition(", ")[2] for row in rows}, "ms")
    axes.set_xscale("log")
    axes.axvline(stall.TARGET, color="black", linewidth=0.7, linestyle="dotted")


def _crowded(axes: Axes, family: int, rows: Sequence[Row]) -> None:
    for subject in dict.fromkeys(row.subject for row in rows):
        found = [row for row in rows if row.subject == subject]
        axes.errorbar(
            [_flows(row.case) for row in found],
            [row.median for row in found],
            yerr=_ranges(found),
            label=subject,
            marker="o",
            markersize=3,
            capsize=2,
        )
    axes.set_yscale("log")
    axes.set_xlabel("flows at the origin")
    axes.set_ylabel("ns a new flow")
    axes.grid(visible=True, axis="both", linewidth=0.3)
    axes.legend()


def _flows(case: str) -> int:
    """The number of flows in a case: 1,000 in ``IPv4 TCP, 1,000 flows``."""
    return int(case.partition(", ")[2].split()[0].replace(",", ""))


PICTURES = (
    Picture(
        "established",
        "A packet of an established flow, 64 bytes, UDP",
        established.ESTABLISHED,
        _established,
        5.0,
    ),
    Picture("crowded", "A new flow at an origin that has many", crowded.CROWDED, _crowded),
    Picture("iperf3", "iperf3 through the gateway", throughput.IPERF, _throughput),
    Picture("stall", "A neighbour's packet while SYNs flood an origin at its limit", stall.STALL, _stall),
)
