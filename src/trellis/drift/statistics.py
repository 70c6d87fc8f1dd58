"""Statistics on summaries: how different two windows are, how surely, and how to ask many questions at once.

Every function takes counts, so it costs the same for a thousand rows and a million. Effect sizes (PSI, Jensen-Shannon,
Wasserstein) say how much; p-values say how surely; a verdict needs both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trellis.drift.sketch import grid_of
from trellis.drift.summary import GRID, NumericSummary

Array = NDArray[np.float64]

# Smallest share of a cell in PSI: fixed, not "half a row", so that the same shift has one PSI at any number of rows.
SHARE_FLOOR = 1e-3
_NORMAL = 1_000  # degrees of freedom of Student beyond which nothing changes


def shares(counts: Array) -> Array:
    """Turn counts into shares; all zero without rows."""
    total = counts.sum()
    return counts / total if total else np.zeros_like(counts)


def psi(reference: Array, current: Array) -> float:
    """Population stability index, in nats: symmetrised Kullback-Leibler divergence of two histograms.

    Cells empty on both sides are dropped; shares are floored at ``SHARE_FLOOR`` and normalised again, so an empty cell
    gives a large finite number. Assumes the same cells on both sides. (Yurdakul & Naranjo 2020, J. Risk Model
    Validation 14(4).)
    """
    kept = (reference > 0) | (current > 0)
    if not reference.sum() or not current.sum():
        return 0.0
    p, q = np.maximum(shares(reference[kept]), SHARE_FLOOR), np.maximum(shares(current[kept]), SHARE_FLOOR)
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def psi_bias(cells: int, reference_rows: float, current_rows: float) -> float:
    """PSI expected where nothing changed: ``(cells - 1)(1/n + 1/m)`` (Yurdakul & Naranjo 2020, eq. 7)."""
    if min(reference_rows, current_rows) <= 0:
        return 0.0
    return max(0, cells - 1) * (1 / reference_rows + 1 / current_rows)


def jensen_shannon(reference: Array, current: Array) -> float:
    """Jensen-Shannon distance with base-2 logarithms, in [0, 1] (Lin 1991)."""
    p, q = shares(reference), shares(current)
    if not p.sum() or not q.sum():
        return 0.0
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / middle), 0.0).sum()
        right = np.where(q > 0, q * np.log2(q / middle), 0.0).sum()
    return math.sqrt(max(0.0, float(left + right) / 2))


def kullback_leibler(reference: Array, current: Array) -> float:
    """Kullback-Leibler divergence of now from the reference, in nats: ``sum q log(q / p)``, shares floored as in PSI.

    The half of PSI that says how surprising today's rows are to somebody who knows only training (Kullback & Leibler
    1951).
    """
    kept = (reference > 0) | (current > 0)
    if not reference.sum() or not current.sum():
        return 0.0
    p, q = np.maximum(shares(reference[kept]), SHARE_FLOOR), np.maximum(shares(current[kept]), SHARE_FLOOR)
    p, q = p / p.sum(), q / q.sum()
    return max(0.0, float((q * np.log(q / p)).sum()))


def total_variation(reference: Array, current: Array) -> float:
    """Largest difference of the probability of any event, in [0, 1]."""
    return float(np.abs(shares(reference) - shares(current)).sum() / 2)


def chi_square(reference: Array, current: Array) -> tuple[float, int, float]:
    """Chi-square test that two sets of counts of independent rows come from one distribution.

    Neighbouring cells are pooled until each expects at least half a row on both sides.

    Returns:
        Statistic, degrees of freedom, p-value; (0, 0, 1) where there is nothing to compare.
    """
    table = np.vstack([reference, current])
    totals = table.sum(axis=1)
    if (totals <= 0).any():
        return 0.0, 0, 1.0
    table = _pooled(table, 0.5 * float(totals.sum() / totals.min()))
    if table.shape[1] < 2:
        return 0.0, 0, 1.0
    expected = np.outer(totals, table.sum(axis=0)) / totals.sum()
    statistic = float((np.square(table - expected) / expected).sum())
    freedom = table.shape[1] - 1
    return statistic, freedom, chi_square_sf(statistic, freedom)


def _pooled(table: Array, needed: float) -> Array:
    """Pool neighbouring columns until each column sums to ``needed``."""
    groups: list[Array] = []
    current = np.zeros(2)
    for column in table.T:
        current = current + column
        if current.sum() >= needed * (1 - 1e-12):
            groups.append(current)
            current = np.zeros(2)
    if current.sum() > 0:
        if groups:
            groups[-1] = groups[-1] + current
        else:
            groups.append(current)
    return np.array(groups).T


def ks_on_bins(reference: Array, current: Array, *, rows: tuple[float, float] | None = None) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov on ordered bins: statistic and asymptotic p-value.

    The statistic is the largest difference at a bin edge, never more than the exact one, so the p-value is cautious.

    Args:
        reference: Counts per bin, in order.
        current: Counts of the same bins.
        rows: Effective rows of both sides; the counts' own if None.
    """
    if not reference.sum() or not current.sum():
        return 0.0, 1.0
    statistic = float(np.abs(np.cumsum(shares(reference)) - np.cumsum(shares(current))).max())
    n, m = rows or (float(reference.sum()), float(current.sum()))
    return statistic, kolmogorov_sf(statistic * math.sqrt(n * m / (n + m)))


def ks_exact(reference: Array, current: Array) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov on raw values: exact statistic, asymptotic p-value."""
    n, m = len(reference), len(current)
    if not n or not m:
        return 0.0, 1.0
    points = np.concatenate([reference, current])
    first = np.searchsorted(np.sort(reference), points, side="right") / n
    second = np.searchsorted(np.sort(current), points, side="right") / m
    statistic = float(np.abs(first - second).max())
    return statistic, kolmogorov_sf(statistic * math.sqrt(n * m / (n + m)))


def wasserstein(reference: NumericSummary, current: NumericSummary) -> float:
    """Wasserstein-1 distance in the column's own unit; 0 where a side has no numbers.

    On the cells of the reference's grid where both sides kept them: within the training range the area between two
    distribution functions that are exact at every cell's edge, beyond it the quantiles'. Otherwise from the 41
    quantiles, whose outermost are single rows.
    """
    if not reference.quantiles or not current.quantiles:
        return 0.0
    if not reference.fine or len(reference.fine) != len(current.fine):
        return quantile_distance(np.array(reference.quantiles), np.array(current.quantiles))
    grid = grid_of(reference.layout)
    edges = grid.fine[grid.first : grid.last + 1].astype(np.float64)
    before, now = (np.cumsum(shares(np.array(s.fine, dtype=np.float64)))[:-1] for s in (reference, current))
    quantiles = np.array(current.quantiles)
    below = _beyond(edges[0] - quantiles, GRID, float(now[0]))
    above = _beyond((quantiles - edges[-1])[::-1], GRID, 1 - float(now[-1]))
    return float(np.trapezoid(np.abs(before - now), edges)) + below + above


def _beyond(distance: Array, probability: Array, share: float) -> float:
    """Area of the rows beyond an end: their distances from it, farthest first, down to 0 at ``share``."""
    kept = probability < share
    if not kept.any():
        return 0.0
    return float(np.trapezoid(np.append(np.maximum(distance[kept], 0), 0.0), np.append(probability[kept], share)))


def quantile_distance(first: Array, second: Array, *, trim: int = 0) -> float:
    """Area between two quantile functions given on ``GRID`` (trapezoids), leaving out ``trim`` points at both ends."""
    middle = slice(trim, len(GRID) - trim)
    return float(np.trapezoid(np.abs(first - second)[middle], GRID[middle]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that any error at all stays below the level, under any dependence (Holm 1979)."""
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    adjusted, running = [0.0] * count, 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def benjamini_yekutieli(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the false discovery rate stays below the level, under any dependence (2001)."""
    count = len(p_values)
    harmonic = sum(1 / k for k in range(1, count + 1))
    order = sorted(range(count), key=lambda i: p_values[i])
    adjusted, running = [0.0] * count, 1.0
    for rank in range(count, 0, -1):
        index = order[rank - 1]
        running = min(running, p_values[index] * count * harmonic / rank)
        adjusted[index] = running
    return adjusted


def normal_sf(z: float) -> float:
    """Upper tail of the standard normal distribution."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def student_sf(t: float, freedom: int) -> float:
    """Upper tail of Student's t with whole degrees of freedom (Abramowitz & Stegun 26.7.3-4), a finite sum.

    Above a thousand degrees the normal distribution's, which differs by less than the data.
    """
    if freedom > _NORMAL:
        return normal_sf(t)
    theta = math.atan2(t, math.sqrt(freedom))
    cosine, term, total = math.cos(theta), 1.0, 0.0
    if freedom % 2:
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term * cosine ** (2 * k - 1)
            term *= 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        for k in range(freedom // 2):
            total += term * cosine ** (2 * k)
            term *= (2 * k + 1) / (2 * k + 2)
        inside = math.sin(theta) * total
    return min(1.0, max(0.0, (1 - inside) / 2))


def kolmogorov_sf(x: float) -> float:
    """Upper tail of the Kolmogorov distribution (Kolmogorov 1933); both series, each where it converges fast."""
    if x <= 0:
        return 1.0
    if x < 1.18:
        terms = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 8))
        return min(1.0, max(0.0, 1 - math.sqrt(2 * math.pi) / x * terms))
    return max(0.0, 2 * sum(math.exp(-2 * k * k * x * x) * (1 if k % 2 else -1) for k in range(1, 8)))


def chi_square_sf(x: float, freedom: int) -> float:
    """Upper tail of the chi-square distribution with whole degrees of freedom (Abramowitz & Stegun 26.4.4-5).

    A finite sum, in logarithms, so that far tails do not underflow before they must.
    """
    if x <= 0 or freedom <= 0:
        return 1.0
    half = x / 2
    start = 0.5 if freedom % 2 else 0.0
    tail = math.erfc(math.sqrt(half)) if freedom % 2 else 0.0
    for k in range(freedom // 2):
        power = k + start
        tail += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
    return min(1.0, tail)
