"""Medians with their spread, percentiles, and Markdown tables."""

import math
import statistics
from collections.abc import Iterable, Sequence


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of a hundred do not exceed (nearest rank); NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Iterable[float]) -> float:
    """NaN of nothing."""
    ordered = sorted(values)
    return statistics.median(ordered) if ordered else math.nan


def spread(values: Sequence[float], digits: int = 0) -> str:
    """[1, 2, 4] -> `2 (1-4)`; `-` if there are none."""
    if not values:
        return "-"
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def ratio(value: float, base: float) -> str:
    """Two digits after the point; `-` where there is nothing to compare."""
    return "-" if math.isnan(value) or math.isnan(base) or base == 0 else f"{value / base:.2f}"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and the others figures."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
