"""Intervals of metrics by resampling whole blocks, vectorised through per-block sufficient statistics."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Task
from trellis.errors import ConfigError, DataError
from trellis.metrics.points import (
    METRICS,
    Floats,
    Ints,
    checked,
    compute,
    curve_counts,
    from_histograms,
    from_sums,
    mean_columns,
    ranks_of,
)

FEWEST_BLOCKS = 2
SCORE_BINS = 2_048
_CHUNK = 256


class Interval(NamedTuple):
    """A two-sided interval with its point value."""

    lo: float
    point: float
    hi: float


def block_weights(blocks: int, replicates: int, seed: int) -> Floats:
    """Draw how often each block occurs in each replicate, ``(replicates, blocks)``; every row sums to ``blocks``."""
    draws = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=replicates)
    return draws.astype(np.float64)


def intervals(
    task: Task,
    target: NDArray[Any],
    score: NDArray[Any],
    blocks: NDArray[Any],
    *,
    seed: int,
    confidence: float = 0.95,
    replicates: int = 1_000,
) -> dict[str, Interval]:
    """Return every metric with a two-sided interval from a bootstrap of whole blocks.

    The interval is the expanded percentile one (Hesterberg 2015, The American Statistician 69, "What teachers should
    know about the bootstrap"): the percentiles are moved outward so that a mean of few blocks is covered as by
    Student's t. Blocks are assumed independent of each other; within one, anything goes. Replicates in which a metric
    is undefined (no positive drawn, say) are left out of its interval.

    Rank metrics use the histogram of scores per block. Up to 2,048 distinct scores this is exact; beyond, scores share
    bins of equal count, which moves a replicate's AUC by at most ``Σ p_k n_k / 2``, with ``p_k``, ``n_k`` the shares of
    positives and negatives in bin ``k`` (below 1/2,048 wherever no bin is richer than twice its fair share), and the
    interval is then shifted onto the exact point value.

    Args:
        task: The model's task.
        target: Truth, shape ``(n,)``.
        score: Score, as in ``row_loss``.
        blocks: Block of every row, whole numbers from 0, as ``blocks_of`` returns.
        seed: Seed of the resampling.
        confidence: Two-sided level, in (0, 1).
        replicates: Number of resamples.

    Returns:
        ``lo <= point <= hi`` by name; only metrics that ``compute`` defines.

    Raises:
        ConfigError: The level or the number of replicates is out of range.
        DataError: There are fewer than two blocks, or see ``checked``.
    """
    if not 0 < confidence < 1 or replicates < 20:
        raise ConfigError(
            f"An interval cannot have the level {confidence} from {replicates} replicates.",
            remedy="Use a level between 0 and 1 and at least 20 replicates.",
        )
    y, p = checked(task, target, score)
    codes = np.asarray(blocks)
    if len(codes) != len(y):
        raise DataError(f"There are {len(codes)} blocks for {len(y)} rows.", remedy="Give one block per row.")
    codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    count = int(codes.max()) + 1
    if count < FEWEST_BLOCKS:
        raise DataError("All rows are in one block; their spread cannot be seen.", remedy="Use a longer test window.")
    weights = block_weights(count, replicates, seed)
    sums = np.column_stack([np.bincount(codes, column, count) for column in mean_columns(task, y, p).T])
    draws, plain = from_sums(task, weights @ sums), {}
    if task == "binary":
        ranks = _binned(ranks_of(p))
        plain = {k: float(v[0]) for k, v in from_histograms(*(c[None, :] for c in curve_counts(y, ranks))).items()}
        draws |= _rank_draws(y, ranks, codes, weights)
    tail = _expanded_tail((1 - confidence) / 2, count)
    result = {}
    for name, point in compute(task, target, score).items():
        values = draws[name][np.isfinite(draws[name])] + (point - plain.get(name, point))
        lo, hi = np.quantile(values, [tail, 1 - tail]).tolist() if len(values) else (point, point)
        result[name] = Interval(min(lo, point), point, max(hi, point))
    return {name: result[name] for name in METRICS[task] if name in result}


def _binned(ranks: Ints) -> Ints:
    if int(ranks.max()) < SCORE_BINS:
        return ranks
    upto = np.cumsum(np.bincount(ranks))
    # A rank goes where the middle of its rows falls, so ties stay together and order is kept.
    middle = upto - np.bincount(ranks) / 2
    return np.unique((middle * SCORE_BINS / len(ranks)).astype(np.int64)[ranks], return_inverse=True)[1].astype(
        np.int64
    )


def _rank_draws(y: Floats, ranks: Ints, codes: Ints, weights: Floats) -> dict[str, Floats]:
    size, count = int(ranks.max()) + 1, weights.shape[1]
    place = codes * size + ranks
    positive = np.bincount(place, y, count * size).reshape(count, size)
    negative = np.bincount(place, 1 - y, count * size).reshape(count, size)
    parts = [
        from_histograms(chunk @ positive, chunk @ negative)
        for chunk in (weights[i : i + _CHUNK] for i in range(0, len(weights), _CHUNK))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _expanded_tail(tail: float, blocks: int) -> float:
    return NormalDist().cdf(-math.sqrt(blocks / (blocks - 1)) * t_quantile(1 - tail, blocks - 1))


def t_quantile(level: float, df: float) -> float:
    """Return the quantile of Student's t at ``level`` in (0.5, 1).

    Hill (1970), "Algorithm 396: Student's t-quantiles", Communications of the ACM 13; four digits from 3 degrees of
    freedom on, six from 5, exact for 1 and 2.

    Raises:
        ConfigError: The level or the degrees of freedom are out of range.
    """
    if not 0.5 < level < 1 or df < 1:
        raise ConfigError(f"Student's t has no quantile {level} for {df} degrees of freedom.", remedy="Use 0.5 to 1.")
    both = 2 * (1 - level)
    if df == 1:
        return math.cos(both * math.pi / 2) / math.sin(both * math.pi / 2)
    if df == 2:
        return math.sqrt(2 / (both * (2 - both)) - 2)
    a = 1 / (df - 0.5)
    b = 48 / a**2
    c = ((20_700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * df
    y = (d * both) ** (2 / df)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(both / 2)
        y = x * x
        if df < 5:
            c += 0.3 * (df - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((df + 6) / (df * y) - 0.089 * d - 0.822) * (df + 2) * 3) + 0.5 / (df + 4)) * y - 1) * (df + 1) / (
            df + 2
        ) + 1 / y
    return math.sqrt(df * y)
