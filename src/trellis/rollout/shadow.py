"""A shadow as a paired experiment: what it would have answered, beside what was answered, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Task
from trellis.errors import DataError
from trellis.rollout.stream import reach

OTHERS = "(others)"


@dataclass(frozen=True)
class Interval:
    """A mean with bounds that hold however often one looks.

    Attributes:
        lower, upper: Bounds; infinite where there are too few rows to say.
        mean: The mean over the rows.
        rows: How many there are.
    """

    lower: float
    mean: float
    upper: float
    rows: int


@dataclass(frozen=True)
class Comparison:
    """How a shadow differs from the primary on some rows.

    Attributes:
        segment: Name of the rows; empty for all of them.
        disagreement: Share of rows whose decision differs, in [0, 1].
        difference: Mean of shadow less primary, in the score's unit; for several classes the mean total variation
            distance, in [0, 1].
    """

    segment: str
    disagreement: Interval
    difference: Interval


def compare(
    task: Task,
    primary: NDArray[Any],
    shadow: NDArray[Any],
    segments: NDArray[Any] | None = None,
    *,
    alpha: float = 0.05,
    threshold: float = 0.5,
    tolerance: float = 0.0,
    min_rows: int = 30,
) -> tuple[Comparison, ...]:
    """Compare a shadow with the primary on the same rows, overall and by segment.

    Pairing takes everything out that makes rows differ from each other, so far fewer rows tell two versions apart than
    a split needs. The bounds are Robbins' normal mixture in its asymptotic, time-uniform form (Waudby-Smith, Arbour,
    Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of
    Statistics 52): with probability ``1 - alpha`` the overall mean lies within them at every look. Those of the
    segments hold together (Bonferroni). A share of zero or one is given the spread of one row more of either kind
    (Agresti & Coull 1998, The American Statistician 52), or its bounds would be of no width.

    Assumed are rows that are sampled by chance, as the keyed hash of the prediction's id does. What a difference is
    worth cannot be said without labels: this tells how much would change, not whether for the better.

    Args:
        task: The model's task.
        primary: What was answered: ``(n,)``, or ``(n, classes)`` for several classes.
        shadow: What the shadow would have answered, same shape.
        segments: Name of each row's segment, ``(n,)``; None for none.
        alpha: Chance of being wrong, ever, for the overall figures and for all segments together.
        threshold: From which on a probability means yes (binary).
        tolerance: Up to which two values are the same (regression), in their unit.
        min_rows: Segments below it are pooled as ``(others)``.

    Returns:
        The overall comparison, then the segments by name.

    Raises:
        DataError: The parts do not line up, or a score is not finite.
    """
    ours, theirs = np.asarray(primary, np.float64), np.asarray(shadow, np.float64)
    if ours.shape != theirs.shape or ours.ndim != (2 if task == "multiclass" else 1):
        raise DataError(
            f"Answers of the shapes {ours.shape} and {theirs.shape} are no pairs of a {task} model.",
            remedy="Give one answer of each per row.",
        )
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise DataError("A score is not finite.", remedy="Leave out the rows that the shadow could not score.")
    if segments is not None and len(segments) != len(ours):
        raise DataError(f"{len(segments)} segments do not line up with {len(ours)} rows.", remedy="Name one per row.")
    if task == "multiclass":
        differs, moved = ours.argmax(axis=1) != theirs.argmax(axis=1), np.abs(ours - theirs).sum(axis=1) / 2
    elif task == "binary":
        differs, moved = (ours >= threshold) != (theirs >= threshold), theirs - ours
    else:
        differs, moved = np.abs(theirs - ours) > tolerance, theirs - ours
    made = [_comparison("", differs, moved, alpha)]
    if segments is not None and len(ours):
        names, counts = np.unique(np.asarray(segments, np.str_), return_counts=True)
        few = set(names[counts < min_rows].tolist())
        label = np.array([OTHERS if name in few else name for name in np.asarray(segments, np.str_).tolist()])
        pooled = sorted(set(label.tolist()))
        made += [
            _comparison(name, differs[label == name], moved[label == name], alpha / len(pooled)) for name in pooled
        ]
    return tuple(made)


def _comparison(name: str, differs: NDArray[np.bool_], moved: NDArray[np.float64], alpha: float) -> Comparison:
    rows = len(differs)
    changed = float(differs.sum())
    smoothed = (changed + 1) / (rows + 2)
    disagreement = _interval(changed / rows if rows else 0.0, smoothed * (1 - smoothed), rows, alpha)
    difference = _interval(
        float(moved.mean()) if rows else 0.0, float(moved.var(ddof=1)) if rows > 1 else math.inf, rows, alpha
    )
    bounded = Interval(max(0.0, disagreement.lower), disagreement.mean, min(1.0, disagreement.upper), rows)
    return Comparison(name, bounded, difference)


def _interval(mean: float, variance: float, rows: int, alpha: float) -> Interval:
    if rows < 2 or not math.isfinite(variance):
        return Interval(-math.inf, mean, math.inf, rows)
    distance = reach(float(rows), variance, alpha / 2)
    return Interval(mean - distance, mean, mean + distance, rows)
