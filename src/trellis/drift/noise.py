"""How much windows of healthy data differ by themselves: the ruler that a window is held against.

Rows of one day share their weather, so the unit that repeats itself is the period (a day, a week), not the row: however
many rows a window has, it is one draw more. How far such a draw may lie is learned from the periods of training:

- Every period's shares are taken as ``2 sqrt(share)``, which makes their spread independent of the share (Freeman &
  Tukey 1950, Ann. Math. Stat. 21) and, for what days share, far closer to normal than chi-square, whose tail grows
  exponentially with a day's effect. Shares are bounded, so how far a number has gone beyond where training lies, and
  how wide it has become, is asked apart.
- A slow bend over the whole of training (its season) is taken out, for it is signal and not noise. What is left has a
  covariance matrix, known from as many units as there are periods, fewer if neighbours resemble each other.
- The squared distance of one more period is then a weighted sum of chi-squares over an independent estimate of its
  scale, as Student's t is in one dimension. Its tail is computed by a saddlepoint approximation (Lugannani & Rice 1980,
  Adv. Appl. Prob. 12; for quadratic forms Kuonen 1999, Biometrika 86), not by matching two moments (Satterthwaite),
  whose tail is too thin at the small levels that a budget over thirty columns and ninety looks needs.

Assumptions: periods of training and of service are stationary (independent or with a short memory; a weekly season may
repeat in them), and what they share has no heavier tails than a Student distribution that their fourth moment allows.
Below ``LEAST_PERIODS`` periods nothing can be learned and rows count as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trellis.drift.statistics import normal_sf, shares

Array = NDArray[np.float64]

LEAST_PERIODS = 5
# Periods from which a straight line, and from which a bend, is taken out as season.
_LINE, _BEND = 8, 12
# Memory beyond this cannot be told from a season in so short a time.
_LONGEST_MEMORY = 0.9


@dataclass(frozen=True)
class Noise:
    """By how much windows of healthy data differ.

    Attributes:
        spectrum: Variances of a period's coordinates along their principal axes, largest first, sampling of rows
            included; empty where periods told nothing, and then rows count as independent.
        units: Independent periods' worth of knowledge about them: degrees of freedom, at least 1.
        rows: Rows per period in which it was measured (harmonic mean).
        dimensions: Coordinates that can vary freely.
        middle: Mean of the periods' coordinates: what a window is held against.
        periods: Periods in which it was measured.
        stretch: Periods that say as much as one independent one would: above 1 where neighbours resemble each other.
    """

    spectrum: tuple[float, ...] = ()
    units: float = 0.0
    rows: float = 1.0
    dimensions: int = 0
    middle: tuple[float, ...] = ()
    periods: int = 1
    stretch: float = 1.0

    @property
    def effect(self) -> float:
        """Design effect: independent rows that one effective row takes in such a period, at least 1 (Kish 1965)."""
        if not self.spectrum or not self.dimensions:
            return 1.0
        return max(1.0, sum(self.spectrum) * self.rows / self.dimensions)

    def effective(self, rows: float) -> float:
        """Rows that count of a window's ``rows``: rows of one period add less and less (Kish: 1 + (m - 1) rho)."""
        return rows / (1 + (self.effect - 1) * rows / self.rows)

    def variances(self, rows: float, periods: float = 1.0) -> list[float]:
        """Return the variances of the difference of a window and training, where nothing changed.

        Args:
            rows: Rows of the window.
            periods: Periods it spans. Each brings its own draw of what its rows share.
        """
        more = max(0.0, 1 / rows - 1 / (periods * self.rows))
        free = max(self.dimensions, len(self.spectrum))
        known = [*self.spectrum, *[0.0] * (free - len(self.spectrum))]
        draws = min(1.0, self.stretch / periods) + min(1.0, self.stretch / self.periods)
        return [v * draws + more for v in known]

    def p_value(self, point: Array, rows: float, periods: float = 1.0) -> float:
        """Chance that a window lies so far from training where nothing changed; 1 where nothing is known.

        Args:
            point: The window's coordinates, in each of which one row has variance one.
            rows: Its rows.
            periods: Periods it spans.
        """
        if not self.spectrum or rows <= 0:
            return 1.0
        distance = float(np.square(point - np.array(self.middle)).sum())
        return quadratic_sf(distance, self.variances(rows, periods), self.units)


def roots(counts: Array) -> Array:
    """Return ``2 sqrt(share)``: under sampling, of variance one over the rows whatever the share."""
    return 2 * np.sqrt(shares(counts))


def noise_of(points: Array, rows: Sequence[float], dimensions: int, middle: Array | None = None) -> Noise:
    """Measure how periods differ.

    Args:
        points: Coordinates of every period in order of time, shape ``(periods, coordinates)``; one row has variance
            one in each.
        rows: Rows of every period.
        dimensions: Coordinates that can vary freely.
        middle: What windows will be held against, where that is not the periods' mean; then no season is taken out, and
            what sets the periods off from it counts as noise.
    """
    count = len(points)
    if count < LEAST_PERIODS:
        return Noise()
    degree = -1 if middle is not None else 2 if count >= _BEND else 1 if count >= _LINE else 0
    if middle is None:
        basis, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, count), degree + 1))
        middle, left = points.mean(axis=0), points - basis @ (basis.T @ points)
    else:
        left = points - middle
    power = float(np.square(left).sum())
    if power <= 1e-18 * count:  # nothing but rounding
        return Noise()
    memory = float(np.clip((left[1:] * left[:-1]).sum() / power + 1 / count, 0.0, _LONGEST_MEMORY))
    # What has a memory loses more of itself to the curve, and repeats itself less often.
    stretch = (1 + memory) / (1 - memory)
    lost = min((degree + 1) * stretch, count / 2)
    spectrum = np.linalg.svd(left, compute_uv=False) ** 2 / (count - lost)
    spectrum = spectrum[spectrum > 1e-9 * spectrum[0]]
    units = max(1.0, (count - degree - 1) * (1 - memory**2) / (1 + memory**2))
    units = min(units, _tail(np.square(left).sum(axis=1), spectrum))
    mean_rows = count / sum(1 / max(1.0, r) for r in rows)
    kept, held = (tuple(float(f"{v:.6g}") for v in part) for part in (spectrum, middle))
    return Noise(kept, units, mean_rows, max(1, dimensions), held, count, stretch)


def _tail(distances: Array, spectrum: Array) -> float:
    """Degrees of freedom of the Student distribution that has the periods' fourth moment; infinite for a normal one.

    The squared length of a multivariate Student vector has ``(v - 2) / (v - 4)`` times the normal one's second moment.
    """
    normal = 1 + 2 * float(np.square(spectrum).sum()) / float(spectrum.sum()) ** 2
    excess = float(np.square(distances).mean()) / float(distances.mean()) ** 2 / normal
    return (4 * excess - 2) / (excess - 1) if excess > 1 else math.inf


def quadratic_sf(distance: float, variances: Sequence[float], units: float) -> float:
    """Chance that ``sum variances_j z_j^2`` exceeds ``distance`` times an independent mean square of ``units`` normals.

    For one variance this is Fisher's F with ``(1, units)`` degrees of freedom, for infinite units a weighted sum of
    chi-squares. Saddlepoint approximation, good to a few percent of itself far into the tail.

    Args:
        distance: At least 0.
        variances: Not negative, at least one positive.
        units: Positive, may be infinite.
    """
    weights = np.array([v for v in variances if v > 0], dtype=np.float64)
    if not len(weights) or not distance > 0:
        return 1.0
    # Free of units: the largest weight is one. Beyond a billion of it nothing is left to tell.
    weights, goal = weights / weights.max(), min(1e9, distance / float(weights.max()))
    if goal < 1e-6:
        return 1.0
    slope = 0.0 if math.isinf(units) else goal / units
    t = _saddlepoint(weights, goal, units, slope)
    # Cumulant function of ``sum w z^2 - goal * mean square`` there, with its second and third derivative.
    up, down = weights / (1 - 2 * t * weights), slope / (1 + 2 * t * slope)
    value = -0.5 * float(np.log1p(-2 * t * weights).sum()) - (
        units / 2 * math.log1p(2 * t * slope) if slope else goal * t
    )
    bow, third = 2 * float(up @ up), 8 * float((up**3).sum())
    if slope:
        bow, third = bow + 2 * units * down**2, third - 8 * units * down**3
    w = math.copysign(math.sqrt(max(0.0, -2 * value)), t)
    if abs(w) < 1e-3:
        return 0.5 - third / math.pow(bow, 1.5) / (6 * math.sqrt(2 * math.pi))
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    return min(1.0, max(0.0, normal_sf(w) + density * (1 / (t * math.sqrt(bow)) - 1 / w)))


def _saddlepoint(weights: Array, goal: float, units: float, slope: float) -> float:
    """Return where the cumulant function is flat: Newton's steps, halving the bracket where one leaves it."""
    low, high = (-0.5 / slope if slope else -0.5 * len(weights) / goal), 0.5
    t = 0.0
    for _ in range(100):
        up = weights / (1 - 2 * t * weights)
        down = slope / (1 + 2 * t * slope)
        tilt = float(up.sum()) - (units * down if slope else goal)
        bow = 2 * float(up @ up) + (2 * units * down**2 if slope else 0.0)
        low, high = (t, high) if tilt < 0 else (low, t)
        step = t - tilt / bow
        step = step if low < step < high else (low + high) / 2
        if abs(step - t) < 1e-12 * (high - low + abs(t)) or high - low < 1e-14:
            return step
        t = step
    return t
