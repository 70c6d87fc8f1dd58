"""What an expected loss is linear in: points of calibration curves and bins of columns, as sparse rows.

A row of a basis is a few indices with weights. Its mean over any group of rows is one vector, so that the mean expected
loss of a group, for the fitted coefficients and every resampled set of them, costs one product and no further pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import Field

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BINS = 6
_CATEGORIES = 20
_MOST_COLUMNS = 40
_FEWEST_PER_KNOT = 40
_MOST_KNOTS = 50


@dataclass(frozen=True)
class Term:
    """One column: a number as a curve between knots, or the most frequent categories; nulls or the rest stand apart.

    Attributes:
        column: Its name.
        knots: Rising points of a number's curve.
        values: Names of the categories.
        open: Whether the reference held categories beyond ``values``.
    """

    column: str
    knots: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    open: bool = False

    @property
    def size(self) -> int:
        """How many coefficients."""
        return len(self.values or self.knots) + 1

    def place(self, column: NDArray[Any] | None, rows: int) -> tuple[Ints, Floats]:
        """Return every row's coefficients and their weights, ``(n, 1 or 2)``; a column that is not there is null."""
        if column is None:
            return np.full((rows, 1), self.size - 1, dtype=np.int64), np.ones((rows, 1))
        if self.values:
            index = {name: i for i, name in enumerate(self.values)}
            codes = np.array([index.get(_name(v), len(index)) for v in column], dtype=np.int64)
            return codes[:, None], np.ones((rows, 1))
        numbers = as_numbers(column)
        known = np.isfinite(numbers)
        beside, weight = between(np.asarray(self.knots), np.where(known, numbers, self.knots[0]))
        return np.where(known[:, None], beside, self.size - 1), np.where(known[:, None], weight, [[1.0, 0.0]])

    def unseen(self, column: NDArray[Any] | None, rows: int) -> NDArray[np.bool_]:
        """Return the rows whose category was not in the reference."""
        if not self.values or self.open or column is None:
            return np.zeros(rows, dtype=np.bool_)
        return np.array([_name(v) not in self.values for v in column], dtype=np.bool_)


def terms_of(fields: Sequence[Field], columns: Mapping[str, NDArray[Any]]) -> tuple[Term, ...]:
    """Choose bins for the columns that can be binned: numbers by quantiles, categories by frequency."""
    found: list[Term] = []
    for field in fields:
        values = columns.get(field.name)
        if values is None or field.kind in ("tensor", "text", "timestamp") or np.asarray(values).ndim != 1:
            continue
        if field.kind == "category":
            counts = pd.Series([_name(v) for v in values]).value_counts()
            names = sorted(counts.index, key=lambda name: (-int(counts[name]), name))
            found.append(Term(field.name, values=tuple(names[:_CATEGORIES]), open=len(names) > _CATEGORIES))
            continue
        numbers = as_numbers(values)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            knots = np.unique(np.quantile(numbers, np.linspace(0, 1, _BINS + 1)))
            found.append(Term(field.name, knots=tuple(knots.tolist())))
    return tuple(found[:_MOST_COLUMNS])


def _name(value: Any) -> str:
    """Return a category's name; whatever is missing is the empty one."""
    return "" if value is None or value != value else str(value)


def as_numbers(column: NDArray[Any]) -> Floats:
    """Read a column as float64; what is no finite number is NaN."""
    values = np.asarray(column)
    if values.dtype.kind not in "fiub":
        values = pd.to_numeric(
            pd.Series([v if isinstance(v, int | float | str) else None for v in values]), errors="coerce"
        ).to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = values.astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def knots_of(score: Floats) -> Floats:
    """Choose the rising scores at which a calibration curve is known: means of bins of equal count."""
    count = int(np.clip(len(score) // _FEWEST_PER_KNOT, 2, _MOST_KNOTS))
    ordered = np.sort(score)
    means = np.array([part.mean() for part in np.array_split(ordered, count) if len(part)])
    return np.asarray(np.unique(means))


def between(knots: Floats, score: Floats) -> tuple[Ints, Floats]:
    """Return the two knots beside every score and their weights, ``(n, 2)``; beyond the ends the last knot counts."""
    if len(knots) == 1:
        return np.zeros((len(score), 2), dtype=np.int64), np.column_stack([np.ones(len(score)), np.zeros(len(score))])
    right = np.clip(np.searchsorted(knots, score), 1, len(knots) - 1)
    share = np.clip((score - knots[right - 1]) / (knots[right] - knots[right - 1]), 0, 1)
    return np.column_stack([right - 1, right]).astype(np.int64), np.column_stack([1 - share, share])


def isotonic(values: Floats, weights: Floats) -> Floats:
    """Return the rising sequence nearest to ``values`` in weighted squares (pool adjacent violators; Ayer 1955)."""
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        means.append(value)
        masses.append(weight)
        sizes.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            mass = masses[-2] + masses[-1]
            mean = (means[-2] * masses[-2] + means[-1] * masses[-1]) / mass if mass else means[-2]
            means[-2:], masses[-2:], sizes[-2:] = [mean], [mass], [sizes[-2] + sizes[-1]]
    return np.repeat(np.array(means), sizes)
