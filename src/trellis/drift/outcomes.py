"""Scores and labels together: whether what is predicted, what comes true, or the link between both has changed.

One small table per window, rows by bin of the score and by label, answers four questions:

- Has the mix of *predictions* moved? Needs no labels (black-box shift detection; Lipton, Wang & Smola 2018,
  "Detecting and Correcting for Label Shift with Black Box Predictors", ICML).
- Has the mix of *labels* moved?
- Given the label, has the score moved? Where only P(y) moves (label drift), P(x|y) and so P(score|y) stay.
- Given the score, has the label moved? Where only P(x) moves (data drift), P(y|x) stays, and P(y|score) nearly.

If neither of the last two explains the change, the concept P(y|x) has changed. Tables of parts add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Task
from trellis.drift.noise import LEAST_PERIODS, Noise, noise_of, roots
from trellis.drift.statistics import chi_square, chi_square_sf
from trellis.sums import loss_sums

Array = NDArray[np.float64]

_SCORE_BINS, _LABEL_BINS = 8, 6
_DAY_ROWS = 30  # fewer say nothing of a day


@dataclass(frozen=True)
class Outcomes:
    """Rows by bin of the score and by label.

    Attributes:
        score_edges: Interior edges of the score's bins; the predicted class where there are several.
        label_edges: Interior edges of the labels; halves between class numbers.
        joint: Labelled rows, one row per bin of the score, one number per label.
        scored: All rows by bin of the score, labelled or not.
        design: Rows of one day resemble each other: independent rows that one effective row takes, at least 1.
        days: Days with labelled rows, at least 1; unknown counts as one day, for its rows then share all they can.
        scored_days: Days with any row.
        noise: By how much days of the reference differ in each of the four questions (``trellis.drift.noise``), in the
            order of ``OutcomeShift``; empty in windows, and where days are not known.
    """

    score_edges: tuple[float, ...]
    label_edges: tuple[float, ...]
    joint: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]
    design: float = 1.0
    days: int = 1
    scored_days: int = 1
    noise: tuple[Noise, ...] = ()

    @property
    def table(self) -> Array:
        """The joint counts as an array, bins by labels."""
        return np.array(self.joint, dtype=np.float64)

    def __add__(self, other: Outcomes) -> Outcomes:
        joint = tuple(
            tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(self.joint, other.joint, strict=True)
        )
        scored = tuple(a + b for a, b in zip(self.scored, other.scored, strict=True))
        days, scored_days = max(self.days, other.days), max(self.scored_days, other.scored_days)
        return Outcomes(self.score_edges, self.label_edges, joint, scored, self.design, days, scored_days)


@dataclass(frozen=True)
class OutcomeShift:
    """How a window's outcomes differ from the reference's.

    Every effect is Cohen's w with its expectation under no change taken off (0.1 small, 0.3 medium, 0.5 large; Cohen
    1988, chapter 7), so it does not grow with the number of rows; every p-value is a chi-square test's or, where
    larger, that of the days' own differences.

    Attributes:
        prediction: Effect and p-value: the mix of scores, labels not needed.
        label: The mix of labels.
        score_given_label: The score where the label is known.
        label_given_score: The label where the score is known.
        labels: Labelled rows.
        estimated: Mix of labels estimated from scores alone (black-box shift estimation), valid under label drift.
        error: Standard error of each, from the rows that were scored; empty without labels in the reference.
    """

    prediction: tuple[float, float]
    label: tuple[float, float]
    score_given_label: tuple[float, float]
    label_given_score: tuple[float, float]
    labels: int
    estimated: tuple[float, ...] = ()
    error: tuple[float, ...] = ()


def reference_outcomes(
    task: Task, score: NDArray[Any], label: NDArray[Any], blocks: NDArray[Any] | None = None
) -> Outcomes:
    """Count held-out rows on bins of their own.

    Args:
        task: What the score means.
        score: Shape ``(n,)``, or ``(n, classes)`` for several classes.
        label: 0/1, class index or number, shape ``(n,)``.
        blocks: Block (day) of every row, from which the design effect is measured; None takes rows as independent.
    """
    values = _single(np.asarray(score, dtype=np.float64))
    truth = np.asarray(label, dtype=np.float64)
    kept = np.isfinite(values) & np.isfinite(truth)
    values, truth = values[kept], truth[kept]
    if task == "multiclass":
        score_edges = label_edges = tuple(k + 0.5 for k in range(np.asarray(score).shape[1] - 1))
    else:
        score_edges = _quantile_edges(values, _SCORE_BINS)
        label_edges = (0.5,) if task == "binary" else _quantile_edges(truth, _LABEL_BINS)
    days = None if blocks is None else np.asarray(blocks)[kept]
    whole = _count(values, truth, score_edges, label_edges, _design(truth, days), days)
    if days is None:
        return whole
    code = np.unique(days, return_inverse=True)[1]
    parts = [
        _count(values[p], truth[p], score_edges, label_edges)
        for k in range(code.max(initial=-1) + 1)
        if (p := code == k).sum() >= _DAY_ROWS
    ]
    return replace(whole, noise=_noise(whole, parts))


def outcomes_like(
    score: NDArray[Any], label: NDArray[Any], reference: Outcomes, blocks: NDArray[Any] | None = None
) -> Outcomes:
    """Count a window on the reference's bins.

    Args:
        score: As in the reference; rows without a finite score are left out.
        label: NaN where it is not known.
        reference: Lays the bins.
        blocks: Block (day) of every row; without it the window counts as one day.
    """
    values, truth = _single(np.asarray(score, dtype=np.float64)), np.asarray(label, dtype=np.float64)
    kept = np.isfinite(values)
    days = None if blocks is None else np.asarray(blocks)[kept]
    return _count(values[kept], truth[kept], reference.score_edges, reference.label_edges, reference.design, days)


def compare_outcomes(reference: Outcomes, current: Outcomes) -> OutcomeShift:
    """Compare a window's outcomes with the reference's."""
    before, now = _questions(reference), _questions(current)
    days = (current.scored_days, *[current.days] * (len(now) - 1))
    noises: Sequence[Noise] = reference.noise or [Noise()] * len(now)
    answers = [
        _test(*asked, reference.design, noise, _point(*asked), count)
        for asked, noise, count in zip(zip(before, now, strict=True), noises, days, strict=True)
    ]
    estimated, error = estimate_labels(reference, current)
    return OutcomeShift(answers[0], answers[1], answers[2], answers[3], int(current.table.sum()), estimated, error)


def _questions(outcomes: Outcomes) -> tuple[Array, Array, Array, Array]:
    """Counts of the four questions, each one stratum per row."""
    table = outcomes.table
    return np.array([outcomes.scored], dtype=np.float64), table.sum(axis=0)[None, :], table.T, table


def _point(reference: Array, current: Array) -> Array:
    """Coordinates of counts in which a row has variance one: every stratum's, weighted as in the reference.

    A stratum without rows lies where the reference's does.
    """
    total = reference.sum()
    weights = np.sqrt(reference.sum(axis=1) / total if total else np.zeros(len(reference)))
    return np.concatenate(
        [w * roots(new if new.sum() else old) for w, old, new in zip(weights, reference, current, strict=True)]
    )


def _noise(whole: Outcomes, parts: Sequence[Outcomes]) -> tuple[Noise, ...]:
    """Measure by how much days differ from all of the reference in each question."""
    if len(parts) < LEAST_PERIODS:
        return ()
    asked = [_questions(p) for p in parts]
    found = []
    for k, table in enumerate(_questions(whole)):
        free = int(((table > 0).sum(axis=1) - 1).clip(min=0).sum())
        points = np.array([_point(table, day[k]) for day in asked])
        found.append(noise_of(points, [float(day[k].sum()) for day in asked], free, _point(table, table)))
    return tuple(found)


def estimate_labels(reference: Outcomes, current: Outcomes) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Estimate the mix of labels from scores alone: solve ``P(score) = sum_y P(score|y) q(y)`` (BBSE).

    Assumes label drift: P(score|y) as in the reference. Weighted least squares under ``sum q = 1``; the standard error
    is that of the solution, from the multinomial noise of both sides' score counts. Where two labels have the same
    scores the system says nothing and the error is large.

    Returns:
        Estimate and standard error by label, the estimate clipped to [0, 1]; empty where the reference has too little.
    """
    table = reference.table
    seen = np.array(current.scored, dtype=np.float64)
    if not seen.sum() or (table.sum(axis=0) == 0).any() or table.shape[1] < 2:
        return (), ()
    given = table / table.sum(axis=0)
    mix = seen / seen.sum()
    count = table.shape[1]
    # The last share is one minus the others: the constraint is built in.
    base, rest = given[:, -1], given[:, :-1] - given[:, -1:]
    solve = np.linalg.pinv(rest)
    part = solve @ (mix - base)
    noise = (np.diag(mix) - np.outer(mix, mix)) * reference.design / seen.sum()
    share = np.append(part, 1 - part.sum())
    for k, column in enumerate(given.T):
        noise += share[k] ** 2 * (np.diag(column) - np.outer(column, column)) / table[:, k].sum()
    covariance = solve @ noise @ solve.T
    tail = np.ones(count - 1)
    errors = [*np.sqrt(np.maximum(0, np.diag(covariance))), math.sqrt(max(0.0, float(tail @ covariance @ tail)))]
    clipped = np.clip(share, 0, 1)
    return tuple(float(q) for q in clipped / clipped.sum()), tuple(float(e) for e in errors)


def _test(before: Array, now: Array, design: float, noise: Noise, point: Array, days: int) -> tuple[float, float]:
    """Effect and p-value of the hypothesis that each stratum has one distribution on both sides.

    Rows count as if independent, or days as they differ by themselves, whichever is less surprised.
    """
    statistic, freedom, size = 0.0, 0, 0.0
    for old, new in zip(before, now, strict=True):
        value, degrees, _ = chi_square(old, new)
        if degrees:
            statistic, freedom = statistic + value, freedom + degrees
            size += float(old.sum() * new.sum() / (old.sum() + new.sum()))
    if not freedom:
        return 0.0, 1.0
    if not noise.spectrum:
        effect = math.sqrt(max(0.0, statistic - freedom * design) / size)
        return effect, chi_square_sf(statistic / design, freedom)
    rows = float(now.sum())
    expected = max(freedom / size, sum(noise.variances(rows, days)))
    p_value = max(chi_square_sf(statistic, freedom), noise.p_value(point, rows, days))
    return math.sqrt(max(0.0, statistic / size - expected)), p_value


def _count(
    score: Array,
    label: Array,
    score_edges: Sequence[float],
    label_edges: Sequence[float],
    design: float = 1.0,
    days: NDArray[Any] | None = None,
) -> Outcomes:
    bins, labels = len(score_edges) + 1, len(label_edges) + 1
    place = np.searchsorted(np.array(score_edges), score, side="left")
    known = np.isfinite(label)
    truth = np.searchsorted(np.array(label_edges), label[known], side="left")
    joint = np.bincount(place[known] * labels + truth, minlength=bins * labels).reshape(bins, labels)
    return Outcomes(
        tuple(score_edges),
        tuple(label_edges),
        tuple(tuple(int(c) for c in row) for row in joint),
        tuple(int(c) for c in np.bincount(place, minlength=bins)),
        design,
        1 if days is None else max(1, len(np.unique(days[known]))),
        1 if days is None else max(1, len(np.unique(days))),
    )


def _single(score: Array) -> Array:
    """Return one number per row: the score itself, or the predicted class; NaN where a row is not finite."""
    if score.ndim == 1:
        return score
    finite = np.isfinite(score).all(axis=1)
    best = np.full(len(score), np.nan)
    best[finite] = np.argmax(score[finite], axis=1)
    return best


def _quantile_edges(values: Array, bins: int) -> tuple[float, ...]:
    """Return edges half way between a quantile and the next larger value: a score that is off by a rounding stays."""
    if not len(values):
        return ()
    ordered = np.unique(values)
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    above = np.searchsorted(ordered, cuts, side="right")
    cuts, above = cuts[above < len(ordered)], above[above < len(ordered)]
    return tuple(float(e) for e in (cuts + ordered[above]) / 2)


def _design(values: Array, blocks: NDArray[Any] | None) -> float:
    """Measure by how much the mean's variance over days exceeds that of independent rows."""
    if blocks is None or len(values) < 2:
        return 1.0
    sums, alone = loss_sums(values, blocks), float(values.std(ddof=1)) / math.sqrt(len(values))
    if not alone or math.isnan(sums.standard_error):
        return 1.0
    return max(1.0, (sums.standard_error / alone) ** 2)
