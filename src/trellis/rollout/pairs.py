"""Rows that two versions have both scored: the sharpest comparison there is, for what rows have in common cancels.

Two good models make nearly the same errors on the same rows. So the difference of their losses varies far less than a
loss does, and a split, which compares other rows with other rows, needs a hundred times as many rows or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trellis.rollout.stream import reach


@dataclass(frozen=True)
class Pairs:
    """Running sums over labelled rows that the champion answered and the candidate scored in its shadow.

    Attributes:
        rows: How many.
        difference: Sum of the candidate's loss less the champion's.
        square: Sum of the squares of these differences.
        bound: How large a difference can be: 1 for losses in [0, 1], else the largest that was seen.
    """

    rows: int
    difference: float
    square: float
    bound: float = 1.0

    @property
    def mean(self) -> float:
        """Mean loss of the candidate less the champion's; above zero the candidate is worse."""
        return self.difference / self.rows if self.rows else 0.0

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Return a lower and an upper bound of the mean, each wrong *at any time* with probability ``alpha``.

        Robbins' normal mixture in its one-sided, asymptotic form, for means and variances that may change from row to
        row (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic
        confidence sequences", Annals of Statistics 52). Versions that differ on few rows only look the same on the
        first ones, and a variance of what was seen would be near zero: two rows that differ by ``bound``, one either
        way, are added to it (as Agresti & Coull 1998, The American Statistician 52, do for shares).

        Assumed is that which rows are shadowed is drawn by chance, as the keyed hash of the prediction's id does, and
        that the shadow scores what the canary would be given; the split is there to find out whether it is.
        """
        if self.rows < 2:
            return -math.inf, math.inf
        rows = self.rows + 2
        variance = (self.square + 2 * self.bound**2) / rows - (self.difference / rows) ** 2
        distance = reach(float(self.rows), max(variance, 0.0), alpha)
        return self.mean - distance, self.mean + distance
