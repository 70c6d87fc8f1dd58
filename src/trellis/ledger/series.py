"""One performance series per model, version and segment: estimated, corrected, realised; its own estimates scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, DriftPolicy, ModelSpec
from trellis.ledger.basis import Floats
from trellis.ledger.estimate import (
    Agreement,
    Estimate,
    agreement,
    corrected,
    estimated,
    realised,
    selection,
    widened,
)
from trellis.ledger.frames import Labelled, due_at
from trellis.ledger.history import Lesson, Past, between_windows, learnt_by
from trellis.ledger.loss_model import Expected, LossModel
from trellis.ledger.represent import Covered, covered
from trellis.metrics import compute
from trellis.metrics.points import curve_counts, from_histograms, ranks_of

LEVEL = 0.95
COMPLETE = 0.95
_LEAST_FOR_METRICS = 50
_FEWEST_OF_SEGMENT = 50
_OUTSIDE = 0.05
_SELECTED = 0.1
_UNTRUSTED = 0.01

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Point:
    """Performance of one version in one window, over all rows or one segment.

    Attributes:
        start: Start of the window, RFC 3339.
        end: Its end.
        version: The version that answered.
        predictions: Predictions made.
        labels: How many of them have a label that is known.
        loss: Mean loss over those; None without labels.
        metrics: The task's metrics on them; empty below 50 labels, and for segments.
        segment: Column name; empty for all rows.
        value: The segment's value; empty for all rows.
        due: Predictions past the model's declared label delay.
        stage: The most that is known: ``none``, ``estimated``, ``corrected`` or ``realised`` (all due, 95 % labelled).
        estimated: From scores alone, as widened by how far earlier windows, realised by this one's end, turned out from
            theirs; None without a loss model.
        corrected: Moved by the labels there are; None below 30 due ones.
        realised: The mean of the labels.
        first: What was known when the window ended: the estimate, corrected where labels had come by then.
        held: Whether ``first``'s interval held the realised value; None until that is known.
        agreement: Whether labels confirm the estimate of their rows; None below 30.
        covered: The scores that labels speak of, where they leave out others by choice; None elsewhere.
        learned: Standard deviation between windows and their estimates, of earlier windows, by which the estimate is
            widened; None where none was realised by the window's end.
        expected_metrics: Metrics estimated from calibrated probabilities (binary models, all rows).
        flags: Assumptions that fail: ``concept_drift`` (labels contradict the estimate: the truth given the score has
            changed), ``extrapolates`` (more than 5 % of rows are unlike any reference row), ``selected_labels`` (due
            rows with and without labels differ in expected loss), ``labels_cover_part`` (scores are left out by
            choice: of them only the model speaks, see ``covered``), ``no_reference``.
    """

    start: str
    end: str
    version: str
    predictions: int
    labels: int
    loss: float | None
    metrics: dict[str, float]
    segment: str = ""
    value: str = ""
    due: int = 0
    stage: str = "none"
    estimated: Estimate | None = None
    corrected: Estimate | None = None
    realised: Estimate | None = None
    first: Estimate | None = None
    held: bool | None = None
    agreement: Agreement | None = None
    covered: Covered | None = None
    learned: float | None = None
    expected_metrics: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def best(self) -> Estimate | None:
        """The estimate of its stage."""
        return {"estimated": self.estimated, "corrected": self.corrected, "realised": self.realised}.get(self.stage)


@dataclass(frozen=True)
class Track:
    """How earlier estimates of a version fared once the truth was in.

    Attributes:
        version: Whose estimates.
        scored: Windows that were estimated and are realised by now.
        held: How many of their intervals held the realised value.
        error: Mean absolute distance between the two; None where none is scored.
        trusted: Whether so few hits are within chance of the nominal level (binomial, 1 %).
    """

    version: str
    scored: int
    held: int
    error: float | None
    trusted: bool


@dataclass(frozen=True)
class Series:
    """The performance of a model as known at a moment.

    Attributes:
        model: The model's name.
        as_of: Event time of the look, RFC 3339.
        received_by: What the log held by then, RFC 3339; empty for all that it holds.
        points: By window and version, oldest first.
        segments: The same by segment; segments below 50 predictions are left out.
        tracks: How earlier estimates fared, by version.
    """

    model: str
    as_of: str
    received_by: str
    points: tuple[Point, ...]
    segments: tuple[Point, ...]
    tracks: tuple[Track, ...]


def series(
    spec: ModelSpec,
    found: Labelled,
    columns: Batch,
    edges: NDArray[np.datetime64],
    as_of: np.datetime64,
    models: Mapping[str, LossModel],
    *,
    segments: Mapping[str, NDArray[Any]] | None = None,
    received_by: str = "",
    shown: int | None = None,
) -> Series:
    """Take stock of every window, version and segment; pure.

    Windows teach the later ones of their version and segment how far estimates are off: of each the mean of its labels,
    as far as they are not revised since, counts from when all its rows are due and 95 % labelled. A version with fewer
    than four such windows also learns from those of the others.

    Args:
        spec: The model's declaration.
        found: Predictions with their labels, as known at ``as_of``.
        columns: The model's columns, ``(n,)`` each, as they were used.
        edges: ``k + 1`` rising moments that bound ``k`` windows, end exclusive.
        as_of: The moment of the look, ``datetime64`` in UTC.
        models: Loss model by version; a version without one is only corrected and realised.
        segments: Columns by which to break down, shape ``(n,)`` each.
        received_by: Noted in the result.
        shown: How many of the last windows are told; earlier ones only teach. None tells all.
    """
    rows = _Rows(spec, found, columns, models, as_of)
    bounds = np.asarray(edges).astype("datetime64[us]")
    window = np.searchsorted(bounds, found.times, side="right") - 1
    names = {"": np.full(len(found.times), "")}
    names |= {name: np.asarray(values).astype(str) for name, values in (segments or {}).items()}
    points: list[Point] = []
    taught: dict[tuple[str, str], list[Lesson]] = {}
    first_shown = 0 if shown is None else max(0, len(bounds) - 1 - shown)
    for index in range(len(bounds) - 1):
        inside = window == index
        learnt: list[tuple[tuple[str, str], Lesson]] = []
        for version in np.unique(rows.versions[inside]):
            mine = inside & (rows.versions == version)
            for name, values in names.items():
                for value in np.unique(values[mine]):
                    chosen = mine & (values == value) if name else mine
                    if not name or chosen.sum() >= _FEWEST_OF_SEGMENT:
                        period, key = (bounds[index], bounds[index + 1]), (name, str(value))
                        lesson = rows.lesson(index, str(version), chosen)
                        if lesson is not None:
                            learnt.append((key, lesson))
                        if index >= first_shown:
                            past = learnt_by(taught.get(key, []), str(version), period[1])
                            points.append(rows.point(index, *period, str(version), *key, chosen, past))
        for key, lesson in learnt:
            taught.setdefault(key, []).append(lesson)
    points = _flagged(points, spec)
    whole = tuple(p for p in points if not p.segment)
    versions = sorted({p.version for p in whole})
    return Series(
        spec.name,
        _iso(as_of),
        received_by,
        whole,
        tuple(p for p in points if p.segment),
        tuple(_track(version, [p for p in whole if p.version == version]) for version in versions),
    )


class _Rows:
    """All predictions, with what is expected of each by its own version's loss model."""

    def __init__(
        self,
        spec: ModelSpec,
        found: Labelled,
        columns: Batch,
        models: Mapping[str, LossModel],
        as_of: np.datetime64,
    ) -> None:
        self.spec, self.found, self.models = spec, found, models
        self.versions = found.rows["version"].to_numpy(dtype=str)
        table = found.score if found.score.ndim == 2 else found.score[:, None]
        self.scored: Mask = np.asarray(np.all(np.isfinite(table), axis=1))
        self.days = found.times.astype("datetime64[D]").astype(np.int64)
        self.ripe = due_at(found.times, spec)
        self.due = self.ripe <= as_of
        score = np.where(self.scored[:, None], table, 0.5)
        score = score[:, 0] if found.score.ndim == 1 else score
        self.strata = score if score.ndim == 1 else score.max(axis=1)
        self.expected: dict[str, Expected] = {v: models[v].expect(score, columns) for v in sorted(models)}

    def lesson(self, index: int, version: str, chosen: Mask) -> Lesson | None:
        """Return how far a window turned out from its estimate; None until it is realised."""
        model, expected = self.models.get(version), self.expected.get(version)
        rows = chosen & self.scored
        told = rows & self.found.told
        if model is None or expected is None or not self.complete(rows):
            return None
        guess = estimated(model, expected, rows, self.days, level=LEVEL)
        if guess is None:
            return None
        needed = math.ceil(COMPLETE * int(rows.sum()))
        enough = np.sort(self.found.known.observed_at[told])[needed - 1]
        ready = max(enough, self.ripe[rows].max())
        off = float(self.found.loss[told].mean()) - guess.value
        return Lesson(version, ready, Past(float(index), off, guess.deviation))

    def complete(self, rows: Mask) -> bool:
        """Return whether all rows are due and 95 % of them labelled."""
        return bool(self.due[rows].all()) and int((rows & self.found.told).sum()) >= COMPLETE * int(rows.sum()) > 0

    def point(
        self,
        index: int,
        start: np.datetime64,
        end: np.datetime64,
        version: str,
        segment: str,
        value: str,
        chosen: Mask,
        past: Sequence[Past],
    ) -> Point:
        loss, days, model = self.found.loss, self.days, self.models.get(version)
        rows = chosen & self.scored
        known = rows & self.found.told
        labels, count = int(known.sum()), int(rows.sum())
        expected = self.expected.get(version)
        guess = estimated(model, expected, rows, days, level=LEVEL) if model and expected else None
        between = between_windows(past, float(index))
        if guess is not None and between is not None:
            guess = widened(guess, between, level=LEVEL)
        better = corrected(loss, expected, model, rows, self.due, days, strata=self.strata, level=LEVEL)
        truth = realised(loss, rows, days, level=LEVEL)
        complete = self.complete(rows)
        reached = ("realised", complete), ("corrected", better is not None), ("estimated", guess is not None)
        stage = next((name for name, there in reached if there), "none")
        flags: list[str] = []
        confirmed = None
        if model is None or expected is None:
            flags.append("no_reference")
        else:
            confirmed = agreement(loss, expected, model, rows, self.due, days)
            if count and expected.outside[rows].mean() > _OUTSIDE:
                flags.append("extrapolates")
            apart, p_value = selection(expected, loss, rows, self.due)
            if abs(apart) > _SELECTED and p_value < _UNTRUSTED:
                flags.append("selected_labels")
        reach = None if complete else covered(self.strata, known & self.due, rows)
        if reach is not None:
            flags.append("labels_cover_part")
        # Labels known by the window's end, as far as they have not been revised since.
        early = np.where((self.found.known.observed_at <= end) & (self.found.known.revisions == 1), loss, np.nan)
        first = None
        if guess is not None:
            ripe = self.ripe <= end
            first = corrected(early, expected, model, rows, ripe, days, strata=self.strata, level=LEVEL) or guess
        held = first.low <= truth.value <= first.high if complete and first is not None and truth is not None else None
        whole = not segment
        return Point(
            _iso(start),
            _iso(end),
            version,
            int(chosen.sum()),
            labels,
            truth.value if truth else None,
            self._metrics(known) if whole and labels >= _LEAST_FOR_METRICS else {},
            segment,
            value,
            int((rows & self.due).sum()),
            stage,
            guess,
            better,
            truth,
            first,
            held,
            confirmed,
            reach,
            None if between is None else math.sqrt(between.variance),
            self._expected_metrics(model, rows) if whole and model is not None and count else {},
            tuple(flags),
        )

    def _metrics(self, known: Mask) -> dict[str, float]:
        return compute(self.spec.task, self.found.known.value[known], self.found.score[known])

    def _expected_metrics(self, model: LossModel, rows: Mask) -> dict[str, float]:
        if self.spec.task != "binary":
            return {}
        score = self.found.score[rows]
        return expected_metrics(model.probability(score), score)


def expected_metrics(probability: Floats, score: Floats) -> dict[str, float]:
    """Return binary metrics as expected from calibrated probabilities (CBPE); ``auc`` only where it is defined.

    Args:
        probability: Calibrated probability of the positive class, shape ``(n,)``.
        score: The model's score, shape ``(n,)``.
    """
    curves = from_histograms(*(counts[None, :] for counts in curve_counts(probability, ranks_of(score))))
    found = {name: float(values[0]) for name, values in curves.items()}
    found["brier"] = float((probability * (1 - 2 * score) + score**2).mean())
    found["accuracy"] = float(np.where(score >= 0.5, probability, 1 - probability).mean())
    found["base_rate"] = float(probability.mean())
    return {name: value for name, value in found.items() if math.isfinite(value)}


def flag_level(policy: DriftPolicy) -> float:
    """Return the level of one look's test for concept drift: four fifths of its share of the alarm budget.

    The rest is for what rows of a day share, which is estimated from so many days only.
    """
    return 0.8 * min(0.5, policy.false_alarms_per_month / max(1.0, policy.looks_per_month))


def _flagged(points: Sequence[Point], spec: ModelSpec) -> list[Point]:
    """Flag labels that contradict their estimate: surely, within the alarm budget, and by an amount that counts.

    The look's share of the budget is divided by the number of comparisons (Bonferroni).
    """
    policy = spec.drift
    alpha = flag_level(policy) / max(1, sum(p.agreement is not None for p in points))
    result = []
    for point in points:
        seen = point.agreement
        if seen is not None and seen.p_value <= alpha and abs(seen.gap) >= policy.max_loss_increase / 2:
            point = replace(point, flags=("concept_drift", *point.flags))
        result.append(point)
    return result


def _track(version: str, points: Sequence[Point]) -> Track:
    scored = [p for p in points if p.held is not None and p.first is not None and p.realised is not None]
    held = sum(bool(p.held) for p in scored)
    errors = [abs(p.first.value - p.realised.value) for p in scored if p.first and p.realised]
    chance = sum(math.comb(len(scored), k) * LEVEL**k * (1 - LEVEL) ** (len(scored) - k) for k in range(held + 1))
    return Track(
        version, len(scored), held, float(np.mean(errors)) if errors else None, not scored or chance >= _UNTRUSTED
    )


def _iso(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[s]")) + "Z"
