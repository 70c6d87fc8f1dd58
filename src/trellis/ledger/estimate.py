"""Mean loss of a window before, while and after its labels come: estimated, corrected, realised.

*Estimated* and *corrected* carry intervals for the value that will be realised: the mean loss over all the window's
predictions once every label is in. *Realised* is that value, with the interval of its sampling error, by which windows
can be compared with each other.

Corrected is prediction-powered inference (Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Science 382) for the
finite set of the window's rows, where it is the regression estimator of survey sampling (Cochran 1977, chapter 7;
Royall 1970): labelled rows count as they are, the others as expected, moved by what the labelled ones lost beyond it,
these weighted so that they stand for the others (``represent``).

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
from trellis.ledger.history import Between
from trellis.ledger.loss_model import Expected, LossModel, shared_of
from trellis.ledger.represent import covered, represent
from trellis.metrics import t_quantile
from trellis.sums import loss_sums

FEWEST_LABELS = 30
_BELIEF = 30.0
_DOUBTED = 0.2
_TRUSTED_DAYS = 10
_EXACT = 1e9

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean loss with its interval.

    Attributes:
        value: The mean loss.
        low, high: Ends of the two-sided interval.
        rows: Rows that it is made of: predictions for an estimated or corrected value, labels for a realised one.
        error: Standard error of the model's mean loss in such a window, sampling included; by it windows are compared.
        deviation: Standard deviation of the value around the one that will be realised; 0 for a realised one.
        freedom: Degrees of freedom that the deviation is known with.
        beyond: Share of the rows whose loss is only bounded, not estimated, as no label is near and the labels there
            are contradict the model; the interval holds whatever it may be.
    """

    value: float
    low: float
    high: float
    rows: int
    error: float
    deviation: float = 0.0
    freedom: float = _EXACT
    beyond: float = 0.0


def estimated(
    model: LossModel,
    expected: Expected,
    rows: Mask,
    days: Ints,
    *,
    level: float = 0.95,
) -> Estimate | None:
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
    fit = _fit_part(model, expected, rows)
    alone, shared = _variance(np.full(rows.sum(), 1 / rows.sum()), expected, rows, days, model.shared)
    parts = [(alone, _EXACT), fit, (shared, _shared_freedom(model))]
    return _around(value, parts, int(rows.sum()), math.sqrt(fit[0]), level)


def widened(estimate: Estimate, between: Between, *, level: float = 0.95) -> Estimate:
    """Widen an estimate by how far past windows turned out from theirs, beyond what these were unsure of."""
    parts = [(estimate.deviation**2, estimate.freedom), (between.variance, between.windows)]
    return _around(estimate.value, parts, estimate.rows, math.sqrt(estimate.error**2 + between.variance), level)


def _around(value: float, parts: list[tuple[float, float]], rows: int, error: float, level: float) -> Estimate:
    """Return a value with the interval that its parts of variance make, each with its degrees of freedom."""
    total = sum(v for v, _ in parts)
    freedom = _freedom(parts)
    half = math.sqrt(total) * _quantile((1 + level) / 2, freedom)
    return Estimate(value, max(0.0, value - half), value + half, rows, error, math.sqrt(total), freedom)


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
    usual = expected if expected is not None else _plain(len(loss))
    surprise = loss[lab] - usual.loss[lab]
    by = [usual.loss] if strata is None else [strata, usual.loss]
    stands = represent(surprise, by if expected is not None else by[:1], lab, rest)
    shift = float((stands.weight * surprise).mean())
    value = float(loss[lab].sum() + usual.loss[rest].sum() + shift * rest.sum()) / total
    surprise = surprise - float(surprise.mean())
    freedom = max(1.0, count - stands.used)
    seen = float((surprise**2).sum() / (usual.spread[lab] ** 2).sum()) * count / freedom
    if expected is not None:  # what the reference knows of the noise counts like so many labels
        seen, freedom = (seen * freedom + _BELIEF) / (freedom + _BELIEF), freedom + _BELIEF
    noise = replace(usual, spread=usual.spread * math.sqrt(max(seen, 1e-12)))
    if model is not None and model.days >= _TRUSTED_DAYS:
        tau, known_days = model.shared, _shared_freedom(model)
    else:
        own_days = np.unique(days[lab], return_inverse=True)[1].astype(np.int64)
        tau, known_days = shared_of(surprise, usual.pull[lab], own_days)
    # What a day shares moves its labelled and its other rows alike, so it largely cancels where both are of one day.
    share = np.full(len(loss), 1 / total)
    share[lab] = -rest.sum() / total * stands.weight / count
    alone, shared = _variance(share[rows], noise, rows, days, tau)
    doubt = stands.doubt * (float(rest.sum()) / total) ** 2
    parts = [(alone, freedom), (shared, known_days), (doubt, float(count))]
    own = doubt + sum(_variance(stands.weight / count, noise, lab, days, tau))
    found = _around(value, parts, total, math.sqrt(own), level)
    if expected is None or model is None or strata is None:
        return found
    return _bounded(found, loss, expected, model, rows, due, days, strata, level)


def _bounded(
    found: Estimate,
    loss: Floats,
    expected: Expected,
    model: LossModel,
    rows: Mask,
    due: Mask,
    days: Ints,
    strata: Floats,
    level: float,
) -> Estimate:
    """Where labels contradict the model, bound the rows of scores that no label speaks of by all that they can lose.

    What the truth is there is not identified (Manski 2003, Partial Identification of Probability Distributions): no
    weight makes up for labels that were never asked for. Regression knows no most that a row can lose; it is left with
    the doubt of the curve.
    """
    reach = covered(strata, rows & due & ~np.isnan(loss), rows)
    agreed = agreement(loss, expected, model, rows, due, days)
    if reach is None or agreed is None or agreed.p_value >= _DOUBTED:
        return found
    beyond = rows & ((strata < reach.low) | (strata > reach.high))
    inside = corrected(loss, expected, model, rows & ~beyond, due, days, level=level)
    if inside is None or not np.isfinite(expected.most[beyond]).all():
        return found
    known = due & ~np.isnan(loss)
    least = float(np.where(known, loss, expected.least)[beyond].sum())
    most = float(np.where(known, loss, expected.most)[beyond].sum())
    low = (inside.low * inside.rows + least) / found.rows
    high = (inside.high * inside.rows + most) / found.rows
    return replace(found, low=min(found.low, low), high=max(found.high, high), beyond=reach.beyond)


def _plain(rows: int) -> Expected:
    """Return what is expected without a reference: nothing, with a spread and a pull of 1."""
    none = np.zeros(rows)
    index, weight = np.zeros((rows, 0), dtype=np.int64), np.zeros((rows, 0))
    wild = np.full(rows, np.inf)
    return Expected(none, np.ones(rows), np.ones(rows), none, index, weight, np.zeros(rows, dtype=np.bool_), none, wild)


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
    parts = [(alone, float(max(1, count - 1))), _fit_part(model, expected, lab), (shared, _shared_freedom(model))]
    total, freedom = sum(v for v, _ in parts), _freedom(parts)
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


def _fit_part(model: LossModel, expected: Expected, rows: Mask) -> tuple[float, float]:
    """Return the variance of the fit's mean over some rows, and its degrees of freedom: of days and of draws."""
    blocks = min(model.days, 60)
    drawn = model.drawn(expected, rows)
    variance = float(drawn.var(ddof=1)) * blocks / (blocks - 1)
    return variance, 1 / (1 / (blocks - 1) + 1 / (len(drawn) - 1))


def _shared_freedom(model: LossModel) -> float:
    return model.shared_freedom or float(model.days - 1)


def _variance(share: Floats, expected: Expected, rows: Mask, days: Ints, shared: float) -> tuple[float, float]:
    """Return the variance of ``Σ share * residual`` over some rows: of the rows' own, and of what days share."""
    moved = share * expected.pull[rows]
    place = np.unique(days[rows], return_inverse=True)[1]
    pairs = float((np.bincount(place, moved) ** 2).sum() - (moved**2).sum())
    return float(((share * expected.spread[rows]) ** 2).sum()), max(0.0, shared * pairs)


def _freedom(parts: list[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a sum of variances (Satterthwaite 1946)."""
    spread = sum(v**2 / max(1.0, df) for v, df in parts)
    return min(_EXACT, max(1.0, sum(v for v, _ in parts) ** 2 / spread)) if spread > 0 else _EXACT


def _quantile(level: float, freedom: float) -> float:
    return t_quantile(level, freedom) if freedom < 1e6 else NormalDist().inv_cdf(level)


def _two_sided(statistic: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t by Wallace's (1959) transformation to a normal."""
    z = abs(statistic)
    if freedom < 1e6:
        z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(z * z / freedom))
    return min(1.0, 2 * NormalDist().cdf(-z))
