"""Per-row losses and point values of the platform's metrics, on numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Task
from trellis.errors import ContractError, DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CALIBRATION_BINS = 15
_EPS = float(np.finfo(np.float64).eps)
_SUM_TOLERANCE = 1e-3

METRICS: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {
        "binary": ("auc", "average_precision", "brier", "log_loss", "accuracy", "base_rate", "calibration_error"),
        "multiclass": ("accuracy", "log_loss", "brier"),
        "regression": ("mae", "rmse", "r2"),
    }
)
# base_rate describes the data and judges no model; it has a direction only so that every metric has one.
GREATER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        "auc": True,
        "average_precision": True,
        "accuracy": True,
        "base_rate": True,
        "r2": True,
        "brier": False,
        "log_loss": False,
        "calibration_error": False,
        "mae": False,
        "rmse": False,
    }
)


def checked(task: Task, target: NDArray[Any], score: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return truth and score as float64, or say what is wrong with them.

    Raises:
        DataError: There are no rows, or the truth is not finite or not one of the task's classes.
        ContractError: The score has another shape than the task's, is not finite, or is no probability.
    """
    if task not in METRICS:
        raise ContractError(f"{task!r} is not a task.", remedy=f"Use one of {sorted(METRICS)}.")
    y, p = np.asarray(target, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if y.ndim != 1 or len(y) == 0:
        raise DataError(
            f"The truth has the shape {y.shape}; nothing can be measured.", remedy="Give one value per row."
        )
    wanted = 2 if task == "multiclass" else 1
    if p.ndim != wanted or len(p) != len(y):
        form = "(rows, classes)" if wanted == 2 else "(rows,)"
        raise ContractError(f"The score has the shape {p.shape} for {len(y)} rows.", remedy=f"Return {form}.")
    for name, values, error in (("truth", y, DataError), ("score", p, ContractError)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise error(f"The {name} has {bad} values that are not finite.", remedy="Remove or mend these rows.")
    if task == "binary" and not np.isin(y, (0.0, 1.0)).all():
        raise DataError("A binary truth has values other than 0 and 1.", remedy="Encode the positive class as 1.")
    if task == "multiclass" and not (np.equal(np.mod(y, 1), 0) & (y >= 0) & (y < p.shape[1])).all():
        raise DataError(f"A class index lies outside 0 to {p.shape[1] - 1}.", remedy="Encode classes by their index.")
    if task != "regression" and (p.min() < 0 or p.max() > 1):
        raise ContractError(f"A probability lies outside [0, 1]: {p.min():g} to {p.max():g}.", remedy="Calibrate it.")
    if task == "multiclass" and float(np.abs(p.sum(axis=1) - 1).max()) > _SUM_TOLERANCE:
        raise ContractError("The probabilities of a row do not sum to 1.", remedy="Normalise them over the classes.")
    return y, p


def row_loss(task: Task, target: NDArray[Any], score: NDArray[Any]) -> Floats:
    """Return the loss of every row, the unit of all margins.

    Binary: the Brier loss ``(p - y)²``, in [0, 1]. Multiclass: half the Brier sum over the classes, in [0, 1].
    Regression: the absolute error, in the target's unit. The first two are strictly proper: no other answer than the
    true probability has a smaller mean.

    Args:
        task: The model's task.
        target: Truth, shape ``(n,)``: 0/1, class index, or a float.
        score: ``(n,)`` probability of the positive class; ``(n, k)`` class probabilities; ``(n,)`` values.

    Returns:
        float64, shape ``(n,)``.

    Raises:
        DataError, ContractError: See ``checked``.
    """
    y, p = checked(task, target, score)
    if task == "binary":
        return np.asarray((p - y) ** 2)
    if task == "regression":
        return np.asarray(np.abs(p - y))
    own = p[np.arange(len(y)), y.astype(np.int64)]
    # Half of Σ(p - onehot)² without the one-hot array: (Σp² - 2·p_y + 1) / 2; rounding may fall just below zero.
    return np.asarray(np.clip((np.einsum("nk,nk->n", p, p) - 2 * own + 1) / 2, 0.0, None))


def compute(task: Task, target: NDArray[Any], score: NDArray[Any]) -> dict[str, float]:
    """Return the task's metrics; see ``METRICS`` for their names.

    ``auc`` is the Mann-Whitney statistic with half credit for ties; ``average_precision`` the step-wise sum over
    distinct scores (no interpolation); ``calibration_error`` the expected calibration error over 15 bins of equal width
    (Guo et al. 2017); ``log_loss`` clips probabilities at the machine epsilon.

    A metric that the data do not define is left out rather than NaN: ``auc`` and ``average_precision`` where only one
    class occurs, ``r2`` where the truth is constant.

    Args:
        task: The model's task.
        target: Truth, shape ``(n,)``.
        score: Score, as in ``row_loss``.

    Raises:
        DataError, ContractError: See ``checked``.
    """
    y, p = checked(task, target, score)
    sums, curve = mean_columns(task, y, p), ranks_of(p) if task == "binary" else None
    ones = np.ones((1, len(y)))
    values = from_sums(task, ones @ sums)
    if curve is not None:
        values |= from_histograms(*(part[None, :] for part in curve_counts(y, curve)))
    return {name: float(values[name][0]) for name in METRICS[task] if np.isfinite(values[name][0])}


def mean_columns(task: Task, y: Floats, p: Floats) -> Floats:
    """Return per-row columns whose sums determine all metrics but the rank ones; the first column counts rows."""
    one = np.ones_like(y)
    if task == "regression":
        centred = y - y.mean()  # keeps r² stable where the mean is large
        return np.column_stack([one, np.abs(p - y), (p - y) ** 2, centred, centred**2])
    if task == "multiclass":
        own = np.clip(p[np.arange(len(y)), y.astype(np.int64)], _EPS, 1.0)
        hit = (p.argmax(axis=1) == y).astype(np.float64)
        return np.column_stack([one, hit, -np.log(own), row_loss(task, y, p)])
    own = np.clip(np.where(y == 1, p, 1 - p), _EPS, 1.0)
    bins = np.minimum((p * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.zeros((len(y), CALIBRATION_BINS))
    gaps[np.arange(len(y)), bins] = p - y
    return np.column_stack([one, (p - y) ** 2, -np.log(own), ((p >= 0.5) == (y == 1)).astype(np.float64), y, gaps])


def from_sums(task: Task, sums: Floats) -> dict[str, Floats]:
    """Return metrics from sums of ``mean_columns``, one set per row of ``sums``; NaN where undefined."""
    mean = sums / sums[:, :1]
    if task == "regression":
        spread = mean[:, 4] - mean[:, 3] ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(spread > 0, 1 - mean[:, 2] / spread, np.nan)
        return {"mae": mean[:, 1], "rmse": np.sqrt(mean[:, 2]), "r2": r2}
    if task == "multiclass":
        return {"accuracy": mean[:, 1], "log_loss": mean[:, 2], "brier": mean[:, 3]}
    names = ("brier", "log_loss", "accuracy", "base_rate")
    values = {name: mean[:, 1 + i] for i, name in enumerate(names)}
    return values | {"calibration_error": np.abs(mean[:, 5:]).sum(axis=1)}


def ranks_of(p: Floats) -> Ints:
    """Return the rank of every row's score among the distinct scores, from 0."""
    return np.unique(p, return_inverse=True)[1].astype(np.int64)


def curve_counts(y: Floats, ranks: Ints) -> tuple[Floats, Floats]:
    """Return how many positives and negatives have each rank."""
    size = int(ranks.max()) + 1
    counts = (np.bincount(ranks, weights=side, minlength=size).astype(np.float64) for side in (y, 1 - y))
    return next(counts), next(counts)


def from_histograms(positive: Floats, negative: Floats) -> dict[str, Floats]:
    """Return AUC and average precision from counts per rising score, one set per row; NaN where a class is missing."""
    below = np.cumsum(negative, axis=1)
    total_pos, total_neg = positive.sum(axis=1), below[:, -1]
    caught = np.cumsum(positive[:, ::-1], axis=1)
    flagged = caught + np.cumsum(negative[:, ::-1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (positive * (below - negative / 2)).sum(axis=1) / (total_pos * total_neg)
        precision = np.where(flagged > 0, caught / flagged, 0.0)
        average = (positive[:, ::-1] * precision).sum(axis=1) / total_pos
    both = (total_pos > 0) & (total_neg > 0)
    return {"auc": np.where(both, auc, np.nan), "average_precision": np.where(both, average, np.nan)}
