"""What is kept of a column in a window: a histogram on the reference's bins, moments, quantiles; a few kilobytes.

Bins are open at both ends, so a value outside the training range has a place. Numbers are read as float32, as models
see them, so that a value that went through JSON falls into the bin it was trained in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.drift.sketch import PROBABILITIES, Layout, NumericSketch, merge_sketches, ranks, sketch
from trellis.errors import DataError

GRID = PROBABILITIES
_UNSEEN_KEPT = 5


@dataclass(frozen=True)
class NumericSummary:
    """Numbers of one column in one window.

    Attributes:
        edges: Interior bin edges, rising; bin ``i`` holds ``edges[i-1] < x <= edges[i]``, the ends are open.
        counts: Rows per bin, one more than edges.
        nulls: Rows without a finite number, invalid ones included.
        invalid: Rows that held something that is no number, or an infinite one.
        mean: Mean of the finite numbers; None without any.
        m2: Sum of squared deviations from the mean.
        quantiles: Values at the 41 probabilities 0, 0.025, ... 1; empty without numbers.
        fine: Rows per cell of the training range (see ``trellis.drift.sketch``); empty where only bins were kept.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nulls: int = 0
    invalid: int = 0
    mean: float | None = None
    m2: float = 0.0
    quantiles: tuple[float, ...] = ()
    fine: tuple[int, ...] = ()
    kind: Literal["numeric"] = "numeric"

    @property
    def layout(self) -> Layout:
        """The grid that this summary, as a reference, lays for windows."""
        return Layout(self.edges, self.quantiles)

    @property
    def rows(self) -> int:
        """Rows, nulls included."""
        return sum(self.counts) + self.nulls

    @property
    def std(self) -> float:
        """Population standard deviation; 0 below two numbers."""
        values = sum(self.counts)
        return math.sqrt(max(0.0, self.m2) / values) if values > 1 else 0.0

    @property
    def cells(self) -> NDArray[np.float64]:
        """Counts per bin, then nulls."""
        return np.array([*self.counts, self.nulls], dtype=np.float64)

    @property
    def constant(self) -> bool:
        """Whether all its numbers are one number."""
        return bool(self.quantiles) and self.quantiles[0] == self.quantiles[-1]


@dataclass(frozen=True)
class CategorySummary:
    """Values of one column of categories in one window.

    Attributes:
        values: The reference's vocabulary, most frequent first.
        counts: Rows per value of it.
        other: Rows with any other value: unseen in training, or among the rare ones it pooled.
        nulls: Rows without a value (None, NaN, the empty string).
        examples: Up to five of the other values, in alphabetical order.
    """

    values: tuple[str, ...]
    counts: tuple[int, ...]
    other: int = 0
    nulls: int = 0
    examples: tuple[str, ...] = ()
    kind: Literal["category"] = "category"

    @property
    def rows(self) -> int:
        """Rows, nulls included."""
        return sum(self.counts) + self.other + self.nulls

    @property
    def cells(self) -> NDArray[np.float64]:
        """Counts per value, then other ones, then nulls."""
        return np.array([*self.counts, self.other, self.nulls], dtype=np.float64)

    @property
    def constant(self) -> bool:
        """Whether all its rows hold one known value."""
        return max(self.counts, default=0) == self.rows > 0


Summary = NumericSummary | CategorySummary


@dataclass(frozen=True)
class Window:
    """All summaries of one window.

    Attributes:
        start: First moment, RFC 3339 in UTC, inclusive.
        end: Last moment, exclusive.
        rows: Rows in it.
        columns: Summary by column; a column that was not there at all has none.
        ages_hours: Median age of the features when used, in hours, by feature view.
    """

    start: str
    end: str
    rows: int
    columns: dict[str, Summary]
    ages_hours: dict[str, float] = field(default_factory=dict)

    def coarse(self) -> Window:
        """Return it without the fine cells, as history needs it: a tenth of the size."""
        return replace(self, columns={name: without_cells(summary) for name, summary in self.columns.items()})


def numbers(values: NDArray[Any]) -> tuple[NDArray[np.float32], int, int]:
    """Return the finite numbers (as float32), the rows without one, and the rows that held something else."""
    array = np.asarray(values)
    invalid = 0
    if array.dtype.kind not in "fiub":
        series = pd.Series(array)
        empty = series.isna() | (series == "") if array.dtype.kind in "OUS" else series.isna()
        coerced = _coerced(series) if array.dtype.kind in "OUS" else pd.Series(np.nan, index=series.index)
        invalid = int((coerced.isna() & ~empty).sum())
        array = coerced.to_numpy(dtype=np.float64)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32, copy=False)
    kept = np.isfinite(single)
    finite = single
    if not kept.all():
        finite = single[kept]
        invalid += int(np.isinf(single[~kept]).sum())
    return finite, len(single) - len(finite), invalid


def _coerced(series: pd.Series[Any]) -> pd.Series[float]:
    try:
        return pd.to_numeric(series, errors="coerce").astype(np.float64)
    except (TypeError, ValueError):  # lists or dicts in the column
        return pd.Series(np.nan, index=series.index)


def reference_edges(values: NDArray[np.floating[Any]], bins: int) -> tuple[float, ...]:
    """Return interior edges at the quantiles; a value with a bin's worth of ties gets a bin of its own."""
    if not len(values):
        return ()
    values = values.astype(np.float64, copy=False)
    cuts = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf")
    edges, ties = np.unique(cuts, return_counts=True)
    heavy = edges[(ties > 1) | (edges == values.min()) | (edges == values.max())]
    below = np.nextafter(heavy.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    return tuple(float(e) for e in np.unique(np.concatenate([edges, below])))


def reference_layout(values: NDArray[Any], bins: int) -> Layout:
    """Lay the grid that training numbers ask for."""
    finite = numbers(values)[0]
    if not len(finite):
        return Layout(())
    points = np.sort(finite)[ranks(len(finite)) - 1]
    return Layout(reference_edges(finite, bins), tuple(float(f"{p:.9g}") for p in points))


def summarise_numeric(values: NDArray[Any], layout: Layout) -> NumericSummary:
    """Summarise numbers, shape ``(n,)``, of any dtype, on a given grid."""
    return summary_of(sketch_numeric(values, layout))


def sketch_numeric(values: NDArray[Any], layout: Layout) -> NumericSketch:
    """Read numbers, shape ``(n,)``, of any dtype, once."""
    finite, nulls, invalid = numbers(values)
    return sketch(finite, layout, nulls, invalid)


def without_cells(summary: Summary) -> Summary:
    """Keep bins, moments and quantiles only."""
    return replace(summary, fine=()) if isinstance(summary, NumericSummary) else summary


def summary_of(read: NumericSketch) -> NumericSummary:
    """Read bins, moments and quantiles off a sketch."""
    return NumericSummary(
        read.layout.edges, read.binned(), read.nulls, read.invalid, read.mean, read.m2, read.quantiles(), read.fine()
    )


def texts(values: NDArray[Any]) -> pd.Series[str]:
    """Return values as strings, missing ones as None; whole floats read as integers, as JSON has no integers."""
    series = pd.Series(np.asarray(values))
    missing = series.isna() | (series == "") if series.dtype.kind == "O" else series.isna() | (series.astype(str) == "")
    if series.dtype.kind == "f":
        whole = np.isfinite(series) & (series == np.floor(series))
        strings = series.astype(str).where(~whole, series.where(whole, 0).astype(np.int64).astype(str))
    else:
        strings = series.astype(str)
    return strings.astype(object).where(~missing, None)


def vocabulary(values: NDArray[Any], limit: int) -> tuple[str, ...]:
    """Return the most frequent values, at most ``limit``; ties in alphabetical order."""
    counts = texts(values).dropna().value_counts()
    ordered = sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))
    return tuple(str(value) for value, _ in ordered[:limit])


def summarise_category(values: NDArray[Any], known: Sequence[str]) -> CategorySummary:
    """Summarise categories, shape ``(n,)``, against the reference's vocabulary."""
    strings = texts(values)
    counts = strings.dropna().value_counts()
    by_value = {str(value): int(count) for value, count in counts.items()}
    inside = tuple(by_value.get(value, 0) for value in known)
    outside = sorted(set(by_value) - set(known))
    return CategorySummary(
        tuple(known),
        inside,
        sum(by_value.values()) - sum(inside),
        int(strings.isna().sum()),
        tuple(value[:64] for value in outside[:_UNSEEN_KEPT]),
    )


def summarise_like(values: NDArray[Any], reference: Summary) -> Summary:
    """Summarise a column on the bins or the vocabulary of ``reference``."""
    if isinstance(reference, NumericSummary):
        return summarise_numeric(values, reference.layout)
    return summarise_category(values, reference.values)


@dataclass(frozen=True)
class WindowSketch:
    """One part of a window, as one machine or one file of the log holds it.

    Attributes:
        start: First moment, RFC 3339 in UTC, inclusive.
        end: Last moment, exclusive.
        rows: Rows in it.
        columns: Sketch of every number, counts of every category.
        ages: Ages of the features when used, in hours, by feature view.
    """

    start: str
    end: str
    rows: int
    columns: dict[str, NumericSketch | CategorySummary]
    ages: dict[str, NumericSketch] = field(default_factory=dict)

    def window(self) -> Window:
        """Read the summaries off."""
        columns: dict[str, Summary] = {
            name: summary_of(part) if isinstance(part, NumericSketch) else part for name, part in self.columns.items()
        }
        middle = len(GRID) // 2
        ages = {view: found[middle] for view, age in self.ages.items() if (found := age.quantiles())}
        return Window(self.start, self.end, self.rows, columns, ages)


def merge(first: WindowSketch, second: WindowSketch) -> WindowSketch:
    """Return the sketch of both parts' rows: exactly what one machine would have made of all of them.

    A column that only one part has counts as null in the other's rows.

    Raises:
        DataError: They stand on different bins or vocabularies.
    """
    columns: dict[str, NumericSketch | CategorySummary] = {}
    for name in (*first.columns, *(n for n in second.columns if n not in first.columns)):
        parts = [_or_nulls(s.columns.get(name), other.columns.get(name), s.rows) for s, other in _both(first, second)]
        columns[name] = _merged(parts[0], parts[1])
    ages = {**first.ages, **second.ages}
    ages |= {view: merge_sketches(first.ages[view], second.ages[view]) for view in first.ages.keys() & second.ages}
    start, end = min(first.start, second.start), max(first.end, second.end)
    return WindowSketch(start, end, first.rows + second.rows, columns, ages)


def _both(first: WindowSketch, second: WindowSketch) -> tuple[tuple[WindowSketch, WindowSketch], ...]:
    return (first, second), (second, first)


def _or_nulls(
    part: NumericSketch | CategorySummary | None, other: NumericSketch | CategorySummary | None, rows: int
) -> NumericSketch | CategorySummary:
    if part is not None:
        return part
    if isinstance(other, NumericSketch):
        return NumericSketch(other.layout, nulls=rows)
    assert other is not None
    return replace(other, counts=(0,) * len(other.values), other=0, nulls=rows, examples=())


def _merged(
    first: NumericSketch | CategorySummary, second: NumericSketch | CategorySummary
) -> NumericSketch | CategorySummary:
    if isinstance(first, NumericSketch) and isinstance(second, NumericSketch):
        return merge_sketches(first, second)
    if isinstance(first, CategorySummary) and isinstance(second, CategorySummary) and first.values == second.values:
        return CategorySummary(
            first.values,
            tuple(a + b for a, b in zip(first.counts, second.counts, strict=True)),
            first.other + second.other,
            first.nulls + second.nulls,
            tuple(sorted({*first.examples, *second.examples})[:_UNSEEN_KEPT]),
        )
    raise DataError(
        "Two summaries on different vocabularies cannot be merged.",
        remedy="Summarise both against the same reference.",
    )
