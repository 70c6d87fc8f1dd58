"""A column of numbers in one pass: a sketch that several machines' windows merge into exactly the whole's.

A sketch counts rows per cell of a fixed grid and keeps the smallest and largest value seen in each cell, so what it
says of quantiles are values that really occurred (a sensor's whole knots stay whole knots). Counts, minima, maxima and
integer sums do not depend on the order of merging: a merged sketch *is* the sketch of all rows, to the last bit.

The grid is laid by the reference: fine where training data lie, and with cells of 2 % of the distance beyond, so that a
column that arrives in another unit still has a shape. Everything else (bins, quantiles, moments) is read off the cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.errors import DataError

Array = NDArray[np.float64]

PROBABILITIES = np.linspace(0.0, 1.0, 41)  # of the quantiles read off a sketch; the ends are minimum and maximum
_PARTS, _EVEN = 4, 193  # cells between two kept quantiles; cells of equal width over twelve spreads
_PER_DOUBLING = 32
# Moments are summed as whole numbers, 2^16 to the spread; values beyond 2^15 spreads count as that far.
_UNIT, _REACH = 65_536, 2**31 - 1


@dataclass(frozen=True)
class Layout:
    """What a grid is made of.

    Attributes:
        edges: Interior edges of the bins that tests count on.
        points: Training quantiles at ``PROBABILITIES``; empty where training had no number.
    """

    edges: tuple[float, ...]
    points: tuple[float, ...] = ()

    @property
    def centre(self) -> float:
        """The training median."""
        return self.points[len(self.points) // 2] if self.points else 0.0

    @property
    def spread(self) -> float:
        """A positive width of the training data: the middle 95 % over 3.92, or what there is instead."""
        if not self.points:
            return 1.0
        middle = (self.points[-2] - self.points[1]) / 3.92
        return float(middle or (self.points[-1] - self.points[0]) or abs(self.points[0]) or 1.0)


@dataclass(frozen=True)
class Grid:
    """Cells in which values are counted; cell ``i`` holds ``fine[i-1] < x <= fine[i]``, the ends are open.

    Attributes:
        fine: Interior edges, rising, float32.
        bins: Bin (see ``Layout.edges``) of every cell.
        first: First cell that ends above the training minimum.
        last: Last cell that begins below the training maximum.
    """

    fine: NDArray[np.float32]
    bins: NDArray[np.int64]
    first: int
    last: int


@lru_cache(maxsize=2_048)
def grid_of(layout: Layout) -> Grid:
    """Lay out the cells."""
    edges = np.array(layout.edges, dtype=np.float64)
    points = np.unique(np.array(layout.points, dtype=np.float64))
    parts = [edges]
    if len(points):
        steps = np.linspace(0, 1, _PARTS, endpoint=False)
        between = (points[:-1, None] + np.diff(points)[:, None] * steps).ravel()
        parts += [points, _below(points), between, layout.centre + layout.spread * np.linspace(-6, 6, _EVEN)]
        ends = points[0], points[-1]
    else:
        ends = 0.0, 0.0
    with np.errstate(over="ignore"):
        away = layout.spread / 8 * np.exp2(np.arange(140 * _PER_DOUBLING) / _PER_DOUBLING)
        parts += [ends[0] - away, ends[1] + away]
        fine = np.concatenate(parts).astype(np.float32)
    fine = np.unique(fine[np.isfinite(fine)])
    bins = np.searchsorted(edges, np.append(fine.astype(np.float64), np.inf), side="left")
    first, last = np.searchsorted(fine, np.array(ends, dtype=np.float32), side="left")
    return Grid(fine, bins.astype(np.int64), int(first), int(last))


def _below(points: Array) -> Array:
    return np.nextafter(points.astype(np.float32), np.float32(-np.inf)).astype(np.float64)


@dataclass(frozen=True)
class NumericSketch:
    """Numbers of one column, as far as they have been read.

    Attributes:
        layout: The grid's layout; only sketches on one layout merge.
        cells: Cells with any row, rising.
        counts: Rows in each of them.
        lows: Smallest value in each.
        highs: Largest value in each.
        nulls: Rows without a finite number, invalid ones included.
        invalid: Rows that held something that is no number.
        total: Sum of the values' distances from the layout's centre, in spreads over 2^16, rounded.
        squares: Sum of the squares of the same.
    """

    layout: Layout
    cells: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    nulls: int = 0
    invalid: int = 0
    total: int = 0
    squares: int = 0

    @property
    def values(self) -> int:
        """Rows with a number."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Mean of the numbers; None without any."""
        count = self.values
        return self.layout.centre + self.total / count * self.layout.spread / _UNIT if count else None

    @property
    def m2(self) -> float:
        """Sum of squared deviations from the mean."""
        count = self.values
        if not count:
            return 0.0
        return (count * self.squares - self.total**2) / count * (self.layout.spread / _UNIT) ** 2

    def binned(self) -> tuple[int, ...]:
        """Return rows per bin of the layout."""
        bins = grid_of(self.layout).bins[list(self.cells)]
        counts = np.bincount(bins, weights=self.counts, minlength=len(self.layout.edges) + 1)
        return tuple(int(c) for c in counts)

    def fine(self) -> tuple[int, ...]:
        """Return rows per cell of the training range; those beyond lie in its first and last cell."""
        grid = grid_of(self.layout)
        place = np.clip(np.array(self.cells, dtype=np.int64), grid.first, grid.last + 1) - grid.first
        counts = np.bincount(place, weights=self.counts, minlength=grid.last - grid.first + 2)
        return tuple(int(c) for c in counts)

    def quantiles(self) -> tuple[float, ...]:
        """Return values at ``PROBABILITIES``: exact where a cell holds one value, else its smaller or larger end."""
        count = self.values
        if not count:
            return ()
        reached = np.cumsum(self.counts)
        rank = ranks(count)
        cell = np.searchsorted(reached, rank, side="left")
        sizes = np.array(self.counts)[cell]
        inside = rank - (reached[cell] - sizes)
        ends = np.where(2 * inside <= sizes, np.array(self.lows)[cell], np.array(self.highs)[cell])
        return tuple(float(f"{value:.9g}") for value in ends)


def ranks(count: int) -> NDArray[np.int64]:
    """Return the rank, from 1, of the value at each of ``PROBABILITIES`` (the inverse of the distribution function)."""
    return np.maximum(1, np.ceil(PROBABILITIES * count - 1e-9)).astype(np.int64)


def sketch(finite: NDArray[np.floating[Any]], layout: Layout, nulls: int = 0, invalid: int = 0) -> NumericSketch:
    """Read finite numbers once, shape ``(n,)``, at float32 precision."""
    if not len(finite):
        return NumericSketch(layout, nulls=nulls, invalid=invalid)
    ordered = np.sort(finite.astype(np.float32, copy=False))
    bounds = np.searchsorted(ordered, grid_of(layout).fine, side="right")
    bounds = np.concatenate([[0], bounds, [len(ordered)]])
    cells = np.flatnonzero(np.diff(bounds))
    starts, ends = bounds[cells], bounds[cells + 1]
    total, squares = _moments(ordered, layout)
    return NumericSketch(
        layout,
        tuple(cells.tolist()),
        tuple((ends - starts).tolist()),
        tuple(ordered[starts].tolist()),
        tuple(ordered[ends - 1].tolist()),
        nulls,
        invalid,
        total,
        squares,
    )


def merge_sketches(first: NumericSketch, second: NumericSketch) -> NumericSketch:
    """Return the sketch of both's rows, exactly.

    Raises:
        DataError: They stand on different layouts.
    """
    if first.layout != second.layout:
        raise DataError(
            "Two sketches on different grids cannot be merged.", remedy="Summarise both against the same reference."
        )
    rows = [(c, n, low, high) for s in (first, second) for c, n, low, high in zip(*_parts(s), strict=True)]
    cells: dict[int, tuple[int, float, float]] = {}
    for cell, count, low, high in rows:
        known = cells.get(cell, (0, low, high))
        cells[cell] = (known[0] + count, min(known[1], low), max(known[2], high))
    ordered = sorted(cells)
    return NumericSketch(
        first.layout,
        tuple(ordered),
        tuple(cells[c][0] for c in ordered),
        tuple(cells[c][1] for c in ordered),
        tuple(cells[c][2] for c in ordered),
        first.nulls + second.nulls,
        first.invalid + second.invalid,
        first.total + second.total,
        first.squares + second.squares,
    )


def _parts(part: NumericSketch) -> tuple[tuple[Any, ...], ...]:
    return part.cells, part.counts, part.lows, part.highs


def _moments(values: NDArray[np.float32], layout: Layout) -> tuple[int, int]:
    """Sum whole numbers, and their squares by halves of 16 bits: nothing is rounded once the values are."""
    with np.errstate(over="ignore"):
        scaled = (values.astype(np.float64) - layout.centre) * (_UNIT / layout.spread)
    whole = np.clip(np.rint(scaled), -_REACH, _REACH).astype(np.int64)
    high, low = whole >> 16, whole & 0xFFFF
    squares = (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)
    return int(whole.sum()), squares
