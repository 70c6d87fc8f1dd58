"""Changes of the population: rows drawn anew, values moved, labels exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.drift.simulate.change import Array, Change
from trellis.drift.summary import texts
from trellis.errors import DataError

# Rows are drawn anew from among neighbours in time, so that a season stays where it is.
_BLOCK = 2_000
_LEAST_POOL = 50
_REACH = 3.0  # spreads beyond which a value weighs no more: one wild row would be drawn again and again
_CLASSES = 20


class Spread:
    """Where a column's values lie before any change: the unit of every size, the same for every chunk."""

    def __init__(self, values: NDArray[Any]) -> None:
        flat = _flat(values)
        self.numeric = flat.dtype.kind in "fiub"
        self.middle, self.spread = 0.0, 1.0
        self.order: list[str] = []
        self.shares: NDArray[Any] = np.empty(0)
        if self.numeric:
            finite = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
            if len(finite):
                self.middle = float(finite.mean(dtype=np.float64))
                self.spread = float(finite.std(dtype=np.float64)) or 1.0
        else:
            counts = texts(flat).dropna().value_counts()
            ordered = sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))
            self.order = [str(value) for value, _ in ordered]
            if ordered:
                self.shares = np.array([int(c) for _, c in ordered], dtype=np.float64) / float(counts.sum())
                ranks: NDArray[Any] = np.arange(len(ordered))
                self.middle = float(ranks @ self.shares)
                self.spread = float(np.sqrt(np.square(ranks - self.middle) @ self.shares)) or 1.0

    def score(self, values: NDArray[Any]) -> Array:
        """Return how many spreads each value lies above the middle, rare categories above; nulls lie in the middle."""
        flat = _flat(values)
        raw: NDArray[Any] = flat
        if not self.numeric:
            places = {value: float(i) for i, value in enumerate(self.order)}
            raw = texts(flat).map(places).to_numpy(dtype=np.float64)
        with np.errstate(invalid="ignore"):
            score: Array = (raw.astype(np.float64) - self.middle) / self.spread
        return np.nan_to_num(np.clip(score, -_REACH, _REACH), nan=0.0)


def redrawn(score: Array, dose: Array, size: float, rng: np.random.Generator, *, where: str) -> NDArray[np.int64]:
    """Return the row that takes each row's place: itself, or one drawn with weight ``exp(size * dose * score)``.

    Raises:
        DataError: There are too few rows to draw from.
    """
    source = np.arange(len(score))
    for block in np.array_split(source, max(1, len(source) // _BLOCK)):
        changed = block[dose[block] > 0]
        if not len(changed):
            continue
        if len(block) < _LEAST_POOL:
            raise DataError(
                f"{len(block)} rows are too few to draw others from.",
                where=where,
                remedy=f"Give {_LEAST_POOL} rows at a time, or change the values themselves (by='move').",
            )
        # A rising dose is taken in steps: within one all rows are drawn by the same weights.
        level = np.ceil(dose[changed] * 20) / 20
        for step in np.unique(level):
            rows = changed[level == step]
            exact = float(dose[rows].mean())
            weight = np.exp(size * exact * (score[block] - score[block].max() * np.sign(size)))
            source[rows] = rng.choice(block, len(rows), p=weight / weight.sum())
    return source


def moved(values: NDArray[Any], spread: Spread, dose: Array, size: float, rng: np.random.Generator) -> NDArray[Any]:
    """Move numbers by ``size`` spreads; draw a share ``size`` of categories anew, rare ones as often as others were."""
    if values.dtype.kind == "b":
        return np.asarray(values ^ (rng.random(len(values)) < size * dose))
    if spread.numeric:
        step = (size * spread.spread * dose).reshape(-1, *[1] * (values.ndim - 1))
        result = values + step
        if values.dtype.kind in "iu":
            return np.rint(result).astype(values.dtype)
        return result.astype(values.dtype) if values.dtype.kind == "f" else result
    chosen = rng.random(len(values)) < size * dose
    result = values.astype(object)
    if spread.order:
        result[chosen] = rng.choice(np.array(spread.order[::-1], dtype=object), int(chosen.sum()), p=spread.shares)
    return result if values.dtype.kind == "O" else result.astype(values.dtype)


def exchanged(target: NDArray[Any], score: Array, dose: Array, size: float, rng: np.random.Generator) -> NDArray[Any]:
    """Exchange the labels of rows at opposite ends of ``score``: P(x) and P(y) stay, the relation turns round."""
    rows = np.flatnonzero(dose > 0)
    rows = rows[np.argsort(score[rows], kind="stable")]
    half = len(rows) // 2
    low, high = rows[:half], rows[::-1][:half]
    chosen = rng.random(half) < size * (dose[low] + dose[high]) / 2
    result = target.copy()
    result[low[chosen]], result[high[chosen]] = target[high[chosen]], target[low[chosen]]
    return result


def label_score(target: NDArray[Any], change: Change, spread: Spread, classes: Sequence[Any]) -> Array:
    """Return 1 for the class that grows and 0 for others; for a number its spreads above the middle."""
    if classes:
        grows = classes[-1] if change.value is None else change.value
        return np.where(target == grows, 1.0, 0.0)
    return spread.score(target)


def classes_of(target: NDArray[Any]) -> tuple[Any, ...]:
    """Return the classes in order; empty where the target is a number."""
    known = pd.Series(target).dropna()
    values = known.unique()
    return tuple(sorted(values)) if known.dtype.kind == "O" or len(values) <= _CLASSES else ()


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1).mean(axis=1) if values.ndim > 1 else values
