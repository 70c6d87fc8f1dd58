"""Mean loss of a window before, while and after its labels come: estimated, corrected, realised.

*Estimated* and *corrected* carry intervals for the value that will be realised: the mean loss over all the window's
predictions once every label is in. *Realised* is that value, with the interval of its sampling error, by which windows
can be compared with each other.

Corrected is prediction-powered inference (Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Science 382, with the
power tuning of PPI++, Angelopoulos, Duchi & Zrnic 2023) for the finite set of the window's rows, where it is the
regression estimator of survey sampling (Cochran 1977, chapter 7; Royall 1970): labelled rows count as they are, the
others as expected, moved by what the labelled ones lost beyond it, these weighted to the others' distribution of scores
(post-stratification; Holt & Smith 1979).

Its assumptions: labels are taken only from rows that are past the model's declared delay, so that quick truths are not
mistaken for all; among those, whether a label came may depend on the score, not on the truth itself; and
what the older rows of a window show holds for its younger ones. Rows of one day may depend on each other, with the
correlation that the reference shows; days may not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trellis.ledger.basis import Floats, Ints
from trellis.ledger.loss_model import Expected, LossModel, shared_of
from trellis.metrics import t_quantile
from trellis.sums import loss_sums

FEWEST_LABELS = 30
_TUNED_FROM = 100
_STRATA, _PER_STRATUM = 10, 40
_TRUSTED_DAYS = 10

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean loss with its interval.

    Attributes:
        value: The mean loss.
        low, high: Ends of the two-sided interval.
        rows: Rows that it is made of: predictions for an estimated or corrected value, labels for a realised one.
        error: Standard error of the model's mean loss in such a window, sampling included; by it windows are compared.
    """

    value: float
    low: float
    high: float
    rows: int
    error: float


def estimated(model: LossModel, expected: Expected, rows: Mask, days: Ints, *, level: float = 0.95) -> Estimate | None:
    """Estimate the mean loss of some predictions without labels; None where there are none.

    Args:
        model: Fitted on reference rows.
        expected: What it expects of all predictions.
        rows: Which of them.
        days: Day of every prediction.
        level: Level of the interval, in (0, 1).
    """
    if not rows.any():
        return None
    value = float(expected.loss[rows].mean())
    fit = _fit_variance(model, expected, rows)
    alone, shared = _variance(np.full(rows.sum(), 1 / rows.sum()), expected, rows, days, model.shared)
    half = _half([(alone, 10**9), (fit, model.days - 1), (shared, model.days - 1)], level)
    return Estimate(value, max(0.0, value - half), value + half, int(rows.sum()), math.sqrt(fit))


def corrected(
    loss: Floats,
    expected: Expected | None,
    model: LossModel | None,
    rows: Mask,
    due: Mask,
    days: Ints,
    *,
    strata: Floats | None = None,
    level: float = 0.95,
) -> Estimate | None:
    """Correct the estimate by the labels there are; None below 30 of them.

    Args:
        loss: Known losses, NaN elsewhere.
        expected: What the model expects of all predictions; None without a reference, for labels alone.
        model: The same.
        rows: The window's predictions.
        due: Rows past their declared delay; only their labels count.
        days: Day of every prediction.
        strata: By what the choice of labels is evened out, best the score; the expected loss if not given.
        level: Level of the interval.
    """
    lab = rows & due & ~np.isnan(loss)
    count, total = int(lab.sum()), int(rows.sum())
    if count < FEWEST_LABELS:
        return None
    rest = rows & ~lab
    helper = expected.loss if expected is not None else np.zeros(len(loss))
    slope = _slope(loss[lab], helper[lab]) if expected is not None else 0.0
    residual = loss[lab] - slope * helper[lab]
    weight = np.zeros(len(loss))
    weight[lab] = _balance(strata if strata is not None else helper, lab, rest)
    shift = float((weight[lab] * residual).mean())
    residual = residual - shift
    value = float(loss[lab].sum() + slope * helper[rest].sum() + shift * rest.sum()) / total
    spread = expected.spread if expected is not None else np.ones(len(loss))
    pull = expected.pull if expected is not None else np.ones(len(loss))
    worth = float(weight[lab].sum() ** 2 / (weight[lab] ** 2).sum())  # labels of equal weight that say as much
    freedom = max(1.0, worth - len(np.unique(weight[lab])))
    seen = float((weight[lab] * residual**2).mean() / (weight[lab] * spread[lab] ** 2).mean()) * worth / freedom
    noise = replace(expected or _plain(len(loss)), spread=spread * math.sqrt(max(seen, 1e-12)), pull=pull)
    if model is not None and model.days >= _TRUSTED_DAYS:
        tau, known_days = model.shared, model.days
    else:
        own_days = np.unique(days[lab], return_inverse=True)[1].astype(np.int64)
        tau, known_days = shared_of(residual, pull[lab], own_days), int(own_days.max()) + 1
    # What a day shares moves its labelled and its other rows alike, so it largely cancels where both are of one day.
    share = np.where(rest, 1 / total, -rest.sum() / total * weight / count)[rows]
    alone, shared = _variance(share, noise, rows, days, tau)
    half = _half([(alone, freedom), (shared, max(1, known_days - 1))], level)
    own = sum(_variance(weight[lab] / count, noise, lab, days, tau))
    return Estimate(value, max(0.0, value - half), value + half, total, math.sqrt(own))


def _plain(rows: int) -> Expected:
    """Return what is expected without a reference: nothing, with a spread and a pull of 1."""
    none = np.zeros(rows)
    index, weight = np.zeros((rows, 0), dtype=np.int64), np.zeros((rows, 0))
    return Expected(none, np.ones(rows), np.ones(rows), none, index, weight, np.zeros(rows, dtype=np.bool_))


def _balance(by: Floats, lab: Mask, rest: Mask) -> Floats:
    """Return weights of mean 1 that give labelled rows the other rows' distribution over up to ten strata."""
    count = int(lab.sum())
    parts = min(_STRATA, count // _PER_STRATUM)
    if parts < 2 or not rest.any():
        return np.ones(count)
    edges = np.unique(np.quantile(by[lab], np.linspace(0, 1, parts + 1)[1:-1]))
    mine, theirs = np.searchsorted(edges, by[lab]), np.searchsorted(edges, by[rest])
    have, want = np.bincount(mine, None, len(edges) + 1), np.bincount(theirs, None, len(edges) + 1)
    ratio = want / max(1, want.sum()) / np.maximum(1, have) * count
    weight = np.asarray(ratio[mine], dtype=np.float64)
    return weight / weight.mean() if weight.sum() > 0 else np.ones(count)


def realised(loss: Floats, rows: Mask, days: Ints, *, level: float = 0.95) -> Estimate | None:
    """Return the mean of the known losses with its sampling error, days taken as independent; None without any."""
    known = rows & ~np.isnan(loss)
    if not known.any():
        return None
    sums = loss_sums(loss[known], days[known])
    error = sums.standard_error
    if math.isnan(error):  # one day: its rows are all there is
        error = float(loss[known].std(ddof=1)) / math.sqrt(sums.rows) if sums.rows > 1 else float(abs(sums.mean))
    half = error * t_quantile((1 + level) / 2, max(1, sums.blocks - 1))
    return Estimate(sums.mean, max(0.0, sums.mean - half), sums.mean + half, sums.rows, error)


@dataclass(frozen=True)
class Agreement:
    """Whether labels confirm what was expected of their rows.

    Attributes:
        gap: Mean loss of the labelled rows minus what was expected of them.
        error: Its standard error, the fit's included.
        p_value: Two-sided.
        labels: How many labelled rows.
    """

    gap: float
    error: float
    p_value: float
    labels: int


def agreement(
    loss: Floats, expected: Expected, model: LossModel, rows: Mask, due: Mask, days: Ints
) -> Agreement | None:
    """Compare labelled losses with the expected ones; None below 30 labels.

    The difference is 0 as long as the concept is the reference's, however the covariates have shifted.
    """
    lab = rows & due & ~np.isnan(loss)
    count = int(lab.sum())
    if count < FEWEST_LABELS:
        return None
    gap = float((loss[lab] - expected.loss[lab]).mean())
    alone, shared = _variance(np.full(count, 1 / count), expected, lab, days, model.shared)
    fit = _fit_variance(model, expected, lab)
    total = alone + shared + fit
    freedom = total**2 / max(1e-300, (shared**2 + fit**2) / (model.days - 1) + alone**2 / max(1, count - 1))
    return Agreement(gap, math.sqrt(total), _two_sided(gap / math.sqrt(total), freedom), count)


def selection(expected: Expected, loss: Floats, rows: Mask, due: Mask) -> tuple[float, float]:
    """Return how far labelled rows' expected loss lies from that of due rows without a label, and its p-value.

    In standard deviations; (0, 1) where either side has fewer than 30 rows.
    """
    known = rows & due & ~np.isnan(loss)
    open_ = rows & due & np.isnan(loss)
    if min(known.sum(), open_.sum()) < FEWEST_LABELS:
        return 0.0, 1.0
    one, other = expected.loss[known], expected.loss[open_]
    spread = math.sqrt((float(one.var()) + float(other.var())) / 2)
    if spread == 0:
        return 0.0, 1.0
    apart = float(one.mean() - other.mean())
    error = math.sqrt(float(one.var()) / len(one) + float(other.var()) / len(other))
    return apart / spread, _two_sided(apart / error, math.inf)


def _slope(loss: Floats, helper: Floats) -> float:
    """Return how much of the helper to use: all, unless the labels say for sure (two errors) that it is too much.

    A helper that is right has the slope 1, which is what makes the correction immune to a choice of labels by score.
    Tuning (PPI++; for a finite target Cov / Var, in [0, 1]) is for helpers that are wrong.
    """
    variance = float(helper.var())
    if len(loss) < _TUNED_FROM or variance <= 0:
        return 1.0
    slope = float(((loss - loss.mean()) * (helper - helper.mean())).mean()) / variance
    error = float((loss - slope * helper).std()) / math.sqrt(variance * len(loss))
    return 1.0 if slope > 1 - 2 * error else float(np.clip(slope, 0.0, 1.0))


def _fit_variance(model: LossModel, expected: Expected, rows: Mask) -> float:
    blocks = min(model.days, 60)
    return float(model.drawn(expected, rows).var(ddof=1)) * blocks / (blocks - 1)


def _variance(share: Floats, expected: Expected, rows: Mask, days: Ints, shared: float) -> tuple[float, float]:
    """Return the variance of ``Σ share * residual`` over some rows: of the rows' own, and of what days share."""
    moved = share * expected.pull[rows]
    place = np.unique(days[rows], return_inverse=True)[1]
    pairs = float((np.bincount(place, moved) ** 2).sum() - (moved**2).sum())
    return float(((share * expected.spread[rows]) ** 2).sum()), max(0.0, shared * pairs)


def _half(parts: list[tuple[float, float]], level: float) -> float:
    """Return half an interval's width; parts come with their degrees of freedom (Satterthwaite 1946)."""
    total = sum(v for v, _ in parts)
    if total <= 0:
        return 0.0
    spread = sum(v**2 / max(1, df) for v, df in parts)
    freedom = total**2 / spread if spread > 0 else math.inf
    quantile = (1 + level) / 2
    factor = t_quantile(quantile, max(1.0, freedom)) if freedom < 1e6 else NormalDist().inv_cdf(quantile)
    return factor * math.sqrt(total)


def _two_sided(statistic: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t by Wallace's (1959) transformation to a normal."""
    z = abs(statistic)
    if freedom < 1e6:
        z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(z * z / freedom))
    return min(1.0, 2 * NormalDist().cdf(-z))
