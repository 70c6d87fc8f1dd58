"""Mergeable sums of per-row losses, by block: the standard error stays honest when rows of a day move together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class LossSums:
    """Sums over rows and over blocks of rows (days); blocks of two parts that are added must not overlap.

    Attributes:
        rows: Labelled rows.
        blocks: Blocks with at least one labelled row.
        total: Sum of the losses.
        rows_squared: Sum over blocks of the squared number of rows.
        cross: Sum over blocks of (number of rows) x (sum of losses).
        total_squared: Sum over blocks of the squared sum of losses.
    """

    rows: int = 0
    blocks: int = 0
    total: float = 0.0
    rows_squared: float = 0.0
    cross: float = 0.0
    total_squared: float = 0.0

    @property
    def mean(self) -> float:
        """Mean loss per row; NaN without rows."""
        return self.total / self.rows if self.rows else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, blocks taken as independent (ratio estimator; Cochran 1977, section 9A.1).

        NaN below two blocks: one block says nothing about how much blocks differ.
        """
        if self.blocks < 2:
            return math.nan
        mean = self.mean
        spread = max(0.0, self.total_squared - 2 * mean * self.cross + mean * mean * self.rows_squared)
        return math.sqrt(spread * self.blocks / (self.blocks - 1)) / self.rows

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.rows + other.rows,
            self.blocks + other.blocks,
            self.total + other.total,
            self.rows_squared + other.rows_squared,
            self.cross + other.cross,
            self.total_squared + other.total_squared,
        )


def loss_sums(losses: ArrayLike, blocks: ArrayLike | None = None) -> LossSums:
    """Sum per-row losses.

    Args:
        losses: Shape ``(n,)``, finite.
        blocks: Block of every row, shape ``(n,)``, any hashable values; None takes every row as its own block.
    """
    values = np.asarray(losses, dtype=np.float64)
    if not len(values):
        return LossSums()
    codes = np.arange(len(values)) if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1]
    count = np.bincount(codes).astype(np.float64)
    total = np.bincount(codes, weights=values)
    return LossSums(
        len(values),
        len(count),
        float(values.sum()),
        float(count @ count),
        float(count @ total),
        float(total @ total),
    )


def merged(parts: Iterable[LossSums]) -> LossSums:
    """Add sums over disjoint blocks."""
    result = LossSums()
    for part in parts:
        result = result + part
    return result
