"""What was measured and what it is held against, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

TOLERATED_LOSS = 0.001
"""Share of the packets of a run that may be missing at the sink before the run counts as lost."""


@dataclass(frozen=True)
class Sample:
    """One round's figure; ``lost`` is the share of packets that did not arrive as they should."""

    value: float
    lost: float = 0.0


@dataclass(frozen=True)
class Row:
    """One thing's figures over all rounds."""

    figure: str
    case: str
    subject: str
    unit: str
    samples: tuple[Sample, ...]
    previous: float | None = None
    """The median of the run that was written before this one."""

    @property
    def median(self) -> float:
        """Of all rounds."""
        return median(sample.value for sample in self.samples)

    @property
    def low(self) -> float:
        """The best round."""
        return min(sample.value for sample in self.samples)

    @property
    def high(self) -> float:
        """The worst round."""
        return max(sample.value for sample in self.samples)

    @property
    def lost(self) -> float:
        """The worst round's loss."""
        return max(sample.lost for sample in self.samples)

    @property
    def is_lost(self) -> bool:
        """Whether packets died on the way: the figure is then of nothing."""
        return self.lost > TOLERATED_LOSS


@dataclass(frozen=True)
class Claim:
    """A figure that has a limit; ``value`` is None if it could not be measured.

    ``at_least``: the limit is the least that it may be. ``target``: one of those that a release must reach.
    """

    figure: str
    case: str
    text: str
    unit: str
    value: float | None
    limit: float
    low: float | None = None
    high: float | None = None
    at_least: bool = False
    target: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Results:
    """Everything of one run."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Figures that could not be measured, and why."""
    took: dict[str, float] = field(default_factory=dict)
    """Seconds that each figure's measurement took, its preparation included."""

    def as_json(self) -> dict[str, Any]:
        """One JSON document, in the order of measurement."""
        return {
            "machine": self.machine,
            "failures": self.failures,
            "took": self.took,
            "claims": [{**asdict(claim), "holds": claim.holds} for claim in self.claims],
            "rows": [
                {
                    "figure": row.figure,
                    "case": row.case,
                    "subject": row.subject,
                    "unit": row.unit,
                    "median": row.median,
                    "low": row.low,
                    "high": row.high,
                    "rounds": len(row.samples),
                    "lost": row.lost,
                }
                for row in self.rows
            ],
        }


def ratio(
    row: Row, base: Row, limit: float, text: str = "", *, at_least: bool = False, target: bool = False
) -> Claim:
    """``row`` against ``base``: medians, and the range of the ratios within each round."""
    text = text or f"{row.subject} / {base.subject}"
    value = low = high = None
    if not (row.is_lost or base.is_lost):
        each = [one.value / other.value for one, other in zip(row.samples, base.samples, strict=True)]
        value, low, high = row.median / base.median, min(each), max(each)
    return Claim(row.figure, row.case, text, "x", value, limit, low, high, at_least, target)


def bound(row: Row, limit: float, text: str, *, target: bool = False) -> Claim:
    """The median of ``row`` against a limit in its own unit."""
    return Claim(row.figure, row.case, text, row.unit, row.median, limit, row.low, row.high, target=target)


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The same items beginning with another one: nobody is always measured after the same neighbour."""
    by %= len(items)
    return [*items[by:], *items[:by]]
