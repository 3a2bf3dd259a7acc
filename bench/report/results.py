"""Measured values and their limits, as plain data classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

TOLERATED_LOSS = 0.001
"""Share of the packets of a run that may be missing at the sink before the run counts as lost."""


@dataclass(frozen=True)
class Sample:
    """One round's figure; ``lost`` is the share of packets that did not arrive as expected."""

    value: float
    lost: float = 0.0


@dataclass(frozen=True)
class Row:
    """The figures of one subject in one case, over all rounds."""

    figure: str
    case: str
    subject: str
    unit: str
    samples: tuple[Sample, ...]
    previous: float | None = None
    """The median of the run that was written before this one."""

    @property
    def median(self) -> float:
        return median(sample.value for sample in self.samples)

    @property
    def low(self) -> float:
        """The lowest value of all rounds."""
        return min(sample.value for sample in self.samples)

    @property
    def high(self) -> float:
        """The highest value of all rounds."""
        return max(sample.value for sample in self.samples)

    @property
    def lost(self) -> float:
        """The largest loss of all rounds."""
        return max(sample.lost for sample in self.samples)

    @property
    def is_lost(self) -> bool:
        """Whether more packets were lost than tolerated, which makes the figure invalid."""
        return self.lost > TOLERATED_LOSS


@dataclass(frozen=True)
class Claim:
    """A figure that has a limit; ``value`` is None if packets were lost.

    ``at_least``: the limit is a minimum. ``target``: a release must reach the limit.
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
        """Whether the value is within the limit; False without a value."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Results:
    """All results of one run."""

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
    """A limit on ``row`` divided by ``base``: medians, and the range of the ratios within each round."""
    text = text or f"{row.subject} / {base.subject}"
    value = low = high = None
    if not (row.is_lost or base.is_lost):
        each = [one.value / other.value for one, other in zip(row.samples, base.samples, strict=True)]
        value, low, high = row.median / base.median, min(each), max(each)
    return Claim(row.figure, row.case, text, "x", value, limit, low, high, at_least, target)


def bound(row: Row, limit: float, text: str, *, target: bool = False) -> Claim:
    """A limit on the median of ``row``, in the row's unit."""
    return Claim(row.figure, row.case, text, row.unit, row.median, limit, row.low, row.high, target=target)


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The items rotated by ``by`` places, so that each round begins with another one."""
    by %= len(items)
    return [*items[by:], *items[:by]]
