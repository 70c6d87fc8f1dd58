"""Latency quantiles of two variants from histograms, with bounds that hold however often one looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.errors import DataError

QUANTILE = 0.95
# A bin's upper edge is 4.4 % above its lower one; that is how exactly a quantile is known.
BINS_PER_OCTAVE = 16
# Weight of the quantile's level in the alternative: shares of slow requests about 1.5 points off are looked for first.
CONCENTRATION = 200.0


@dataclass(frozen=True)
class Latencies:
    """Latencies of both variants on one logarithmic grid.

    Attributes:
        bins: Indices of the bins that hold anything, rising; bin ``i`` holds ``(2^((i-1)/16), 2^(i/16)]`` milliseconds.
        canary, champion: Requests per bin.
    """

    bins: tuple[int, ...]
    canary: tuple[int, ...]
    champion: tuple[int, ...]


def latencies_of(milliseconds: NDArray[Any], canary: NDArray[Any]) -> Latencies:
    """Count latencies by bin.

    Args:
        milliseconds: Latency of every request, above zero, ``(n,)``.
        canary: Whether the canary answered, ``(n,)``.

    Raises:
        DataError: The columns differ in length, or a latency is not a finite number above zero.
    """
    values, arm = np.asarray(milliseconds, dtype=np.float64), np.asarray(canary, dtype=bool)
    if values.shape != arm.shape or not (np.isfinite(values) & (values > 0)).all():
        raise DataError("A latency is missing, not finite, or not above zero.", remedy="Give one per request.")
    index = np.ceil(BINS_PER_OCTAVE * np.log2(values) - 1e-9).astype(np.int64)
    bins = np.unique(index)
    at = np.searchsorted(bins, index)
    counts = (np.bincount(at[side], minlength=len(bins)).tolist() for side in (arm, ~arm))
    return Latencies(tuple(bins.tolist()), tuple(next(counts)), tuple(next(counts)))


def quantile(bins: tuple[int, ...], counts: tuple[int, ...], level: float = QUANTILE) -> float:
    """Return the upper edge of the bin that holds the quantile, in milliseconds; NaN without requests."""
    total = np.cumsum(counts)
    if not len(total) or not total[-1]:
        return math.nan
    return edge(bins[int(np.searchsorted(total, level * total[-1]))])


def edge(index: int) -> float:
    """Return a bin's upper edge in milliseconds."""
    return float(2 ** (index / BINS_PER_OCTAVE))


def lower_bound(bins: tuple[int, ...], counts: tuple[int, ...], alpha: float, level: float = QUANTILE) -> float:
    """Return a bound that the true quantile *ever* lies below with probability at most ``alpha``, in milliseconds.

    If ``q`` is the true quantile, requests of at most ``q`` are a coin of the known probability ``level`` (more where
    ``q`` is an atom, which only makes few of them rarer). The beta-binomial mixture is a martingale under that coin, so
    by Ville's inequality a value that it excludes at ``1 / alpha`` at any time is not the quantile: Howard & Ramdas
    2022, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli
    28. Bin edges stand for all values between, on the safe side. Requests are assumed independent; slow ones that come
    in clumps, as behind one garbage collection, make the bound too tight.
    """
    found, below, total = 0.0, 0, sum(counts)
    for index, count in zip(bins, counts, strict=True):
        below += count
        if below >= level * total or _log_evidence(below, total, level) < -math.log(alpha):
            break
        found = edge(index)
    return found


def upper_bound(bins: tuple[int, ...], counts: tuple[int, ...], alpha: float, level: float = QUANTILE) -> float:
    """Return a bound that the true quantile ever lies above with probability at most ``alpha``; see ``lower_bound``."""
    below, total = 0, sum(counts)
    for index, count in zip(bins, counts, strict=True):
        below += count
        if below > level * total and _log_evidence(below, total, level) >= -math.log(alpha):
            return edge(index)
    return math.inf


def _log_evidence(below: int, total: int, level: float) -> float:
    a, b = CONCENTRATION * level, CONCENTRATION * (1 - level)
    above = total - below
    mixed = math.lgamma(a + below) + math.lgamma(b + above) - math.lgamma(a + b + total)
    mixed -= math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return mixed - below * math.log(level) - above * math.log(1 - level)
