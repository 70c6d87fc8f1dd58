"""What is kept of a column in a window: a histogram on the reference's bins, moments, quantiles; some hundred bytes.

Bins are open at both ends, so a value outside the training range has a place. Numbers are read as float32, as models
see them, so that a value that went through JSON falls into the bin it was trained in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.errors import DataError

GRID = np.linspace(0.0, 1.0, 41)  # the probabilities of the kept quantiles; the ends are minimum and maximum
_UNSEEN_KEPT = 5


@dataclass(frozen=True)
class NumericSummary:
    """Numbers of one column in one window.

    Attributes:
        edges: Interior bin edges, rising; bin ``i`` holds ``edges[i-1] < x <= edges[i]``, the ends are open.
        counts: Rows per bin, one more than edges.
        nulls: Rows without a finite number, invalid ones included.
        invalid: Rows that held something that is no number.
        mean: Mean of the finite numbers; None without any.
        m2: Sum of squared deviations from the mean.
        quantiles: Values at the 41 probabilities 0, 0.025, ... 1 (7 significant digits); empty without numbers.
            Exact when summarised in one piece; within one grid step of rank after a merge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nulls: int = 0
    invalid: int = 0
    mean: float | None = None
    m2: float = 0.0
    quantiles: tuple[float, ...] = ()
    kind: Literal["numeric"] = "numeric"

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


def numbers(values: NDArray[Any]) -> tuple[NDArray[np.float64], int, int]:
    """Return the finite numbers (at float32 precision), the rows without one, and the rows that held something else."""
    array = np.asarray(values)
    invalid = 0
    if array.dtype.kind not in "fiub":
        series = pd.Series(array)
        empty = series.isna() | (series == "") if array.dtype.kind in "OUS" else series.isna()
        coerced = _coerced(series) if array.dtype.kind in "OUS" else pd.Series(np.nan, index=series.index)
        invalid = int((coerced.isna() & ~empty).sum())
        array = coerced.to_numpy(dtype=np.float64)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32).astype(np.float64)
    finite = single[np.isfinite(single)]
    return finite, len(single) - len(finite), invalid


def _coerced(series: pd.Series[Any]) -> pd.Series[float]:
    try:
        return pd.to_numeric(series, errors="coerce").astype(np.float64)
    except (TypeError, ValueError):  # lists or dicts in the column
        return pd.Series(np.nan, index=series.index)


def reference_edges(values: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Return interior edges at the quantiles; a value with a bin's worth of ties gets a bin of its own."""
    if not len(values):
        return ()
    cuts = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf")
    edges, ties = np.unique(cuts, return_counts=True)
    heavy = edges[(ties > 1) | (edges == values.min()) | (edges == values.max())]
    below = np.nextafter(heavy.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    return tuple(float(e) for e in np.unique(np.concatenate([edges, below])))


def summarise_numeric(values: NDArray[Any], edges: Sequence[float]) -> NumericSummary:
    """Summarise numbers, shape ``(n,)``, of any dtype, on given interior edges."""
    finite, nulls, invalid = numbers(values)
    limits = np.asarray(edges, dtype=np.float64)
    counts = np.bincount(np.searchsorted(limits, finite, side="left"), minlength=len(limits) + 1)
    if not len(finite):
        return NumericSummary(tuple(edges), tuple(counts.tolist()), nulls, invalid)
    mean = float(finite.mean())
    points = np.quantile(finite, GRID, method="inverted_cdf")
    return NumericSummary(
        tuple(float(e) for e in limits),
        tuple(counts.tolist()),
        nulls,
        invalid,
        mean,
        float(np.square(finite - mean).sum()),
        tuple(float(f"{q:.7g}") for q in points),
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
        return summarise_numeric(values, reference.edges)
    return summarise_category(values, reference.values)


def merge(first: Summary, second: Summary) -> Summary:
    """Return the summary of both windows' rows (moments by Chan, Golub & LeVeque 1979).

    Raises:
        DataError: They stand on different bins or vocabularies.
    """
    if isinstance(first, NumericSummary) and isinstance(second, NumericSummary) and first.edges == second.edges:
        return _merge_numeric(first, second)
    if isinstance(first, CategorySummary) and isinstance(second, CategorySummary) and first.values == second.values:
        return CategorySummary(
            first.values,
            tuple(a + b for a, b in zip(first.counts, second.counts, strict=True)),
            first.other + second.other,
            first.nulls + second.nulls,
            tuple(sorted({*first.examples, *second.examples})[:_UNSEEN_KEPT]),
        )
    raise DataError(
        "Two summaries on different bins cannot be merged.", remedy="Summarise both against the same reference."
    )


def _merge_numeric(first: NumericSummary, second: NumericSummary) -> NumericSummary:
    n, m = sum(first.counts), sum(second.counts)
    counts = tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
    nulls, invalid = first.nulls + second.nulls, first.invalid + second.invalid
    if first.mean is None or second.mean is None:
        kept = second if first.mean is None else first
        return NumericSummary(first.edges, counts, nulls, invalid, kept.mean, kept.m2, kept.quantiles)
    delta = second.mean - first.mean
    mean = first.mean + delta * m / (n + m)
    m2 = first.m2 + second.m2 + delta * delta * n * m / (n + m)
    return NumericSummary(first.edges, counts, nulls, invalid, mean, m2, _mixed_quantiles(first, n, second, m))


def _mixed_quantiles(first: NumericSummary, n: int, second: NumericSummary, m: int) -> tuple[float, ...]:
    points = np.concatenate([first.quantiles, second.quantiles])
    step = 1 / (len(GRID) - 1)
    ends = np.full(len(GRID), step)
    ends[0] = ends[-1] = step / 2
    weights = np.concatenate([ends * n, ends * m])
    order = np.argsort(points, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    chosen = points[order][np.minimum(np.searchsorted(reached, GRID - 1e-12), len(points) - 1)]
    chosen[0], chosen[-1] = points.min(), points.max()
    return tuple(float(q) for q in chosen)
