"""Time-zone shifts: is the current distribution of an hour of the day the healthy one, turned round the clock?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DAY = 24.0
_LEAST_SPAN = 8.0


@dataclass(frozen=True)
class ZoneMatch:
    """A turn of the clock that explains a change.

    Attributes:
        hours: Hours by which values were moved, in (-12, 12].
        before: Distance from the healthy window, in spreads.
        residual: What is left of it once turned back.
    """

    hours: float
    before: float
    residual: float


def find_zone_shift(healthy: Array, current: Array, spread: float, *, tolerance: float) -> ZoneMatch | None:
    """Find the turn by half hours that takes ``healthy`` to ``current``.

    Args:
        healthy: Quantiles of the last healthy window.
        current: Quantiles now, at the same probabilities.
        spread: The column's spread in training.
        tolerance: Largest distance, in spreads, at which two windows count as alike.

    Returns:
        The best turn, if it explains at least two thirds of the change; None for a column that is no hour of the day.
    """
    if not len(healthy) or not len(current):
        return None
    both = np.concatenate([healthy, current])
    if both.min() < 0 or both.max() >= _DAY or healthy[-1] - healthy[0] < _LEAST_SPAN:
        return None
    # Without the ends: a single row that wraps round midnight lies a whole day away.
    old, new = healthy[1:-1], current[1:-1]
    before = float(np.abs(old - new).mean()) / spread
    step = 1.0 if np.array_equal(both, np.rint(both)) else 0.5
    turns = np.arange(-12 + step, 12 + step / 2, step)
    turns = turns[turns != 0]
    residuals = [float(np.abs(old - np.sort((new - turn) % _DAY)).mean()) / spread for turn in turns]
    best = int(np.argmin(residuals))
    match = ZoneMatch(float(turns[best]), before, residuals[best])
    return match if match.residual <= min(before / 3, tolerance) else None
