"""Data quality of a window: the declaration's checks, and rows that stand apart from all earlier ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.served import model_columns
from monitoring.subject import Subject
from trellis.contract import QualityPolicy
from trellis.drift import CategorySummary, Reference
from trellis.quality import ColumnHistory, QualityFinding, check_rows, finding

_FEWEST_EARLIER, _MOST_ROWS = 500, 4_000
_TREES, _APART = 100, 0.01
_SURE = 3.0


def quality_of(
    window: pd.DataFrame,
    earlier: pd.DataFrame,
    subject: Subject,
    *,
    later: pd.DataFrame | None = None,
) -> tuple[QualityFinding, ...]:
    """Return what is wrong with a window's rows; nothing for an empty one.

    Args:
        window: Predictions of the window judged.
        earlier: Predictions of the windows before it, which outliers are told from.
        subject: What is watched.
        later: Predictions whose event time is after the window, for clocks that are ahead.
    """
    spec = subject.spec
    found = check_rows(
        window,
        list(spec.fields.values()),
        spec.quality,
        history=history_of(subject.reference),
        later=later,
    )
    apart = outliers(window, earlier, subject)
    return found if apart is None else (*found, apart)


def history_of(reference: Reference) -> dict[str, ColumnHistory]:
    """Return what the drift baseline knows of every column."""
    result = {}
    for name, column in reference.columns.items():
        summary, values = column.summary, None
        if isinstance(summary, CategorySummary) and not summary.other:
            values = frozenset(summary.values)
        result[name] = ColumnHistory(column.nulls_peak, summary.constant, values)
    return result


def outliers(window: pd.DataFrame, earlier: pd.DataFrame, subject: Subject) -> QualityFinding | None:
    """Name rows more isolated than 99 % of earlier ones, where they are too many.

    An isolation forest (Liu, Ting & Zhou 2008) is grown on every other earlier row; the rest of these tell from which
    score on a row stands apart. It sees the numeric inputs, missing ones as their median.

    Returns:
        None where their share is at most the policy's, within chance of 1 %, or below 500 earlier rows.
    """
    policy: QualityPolicy = subject.spec.quality
    names = [n for n in subject.spec.inputs if subject.spec.fields[n].kind in ("float", "int")]
    before, now = _numbers(earlier, subject, names), _numbers(window, subject, names)
    if before is None or now is None or len(before) < _FEWEST_EARLIER:
        return None
    from sklearn.ensemble import IsolationForest

    middle = np.nanmedian(np.where(np.isfinite(before), before, np.nan), axis=0)
    middle = np.where(np.isfinite(middle), middle, 0.0)
    before, now = (np.where(np.isfinite(part), part, middle) for part in (before, now))
    chosen = before[np.unique(np.linspace(0, len(before) - 1, min(2 * _MOST_ROWS, len(before))).astype(np.int64))]
    forest = IsolationForest(n_estimators=_TREES, random_state=0, n_jobs=1).fit(chosen[::2])
    bound = float(np.quantile(forest.score_samples(chosen[1::2]), _APART))
    apart = forest.score_samples(now) < bound
    chance = np.sqrt(_APART * (1 - _APART) * (1 / len(now) + 2 / len(chosen)))
    if apart.mean() <= policy.max_outliers or apart.mean() < _APART + _SURE * chance:
        return None
    spread = np.nanstd(before, axis=0)
    distance = np.abs(now[apart] - middle) / np.where(spread > 0, spread, 1.0)
    worst = names[int(np.argmax(np.median(distance, axis=0)))]
    ids = window["id"].to_numpy(dtype=str)
    return finding("outliers", "", apart, f"stand apart from 99 % of earlier rows, most by {worst},", ids)


def _numbers(frame: pd.DataFrame, subject: Subject, names: list[str]) -> NDArray[np.float64] | None:
    if not names or not len(frame):
        return None
    columns = model_columns(frame, subject.spec)
    table = np.full((len(frame), len(names)), np.nan)
    for place, name in enumerate(names):
        if name in columns:
            values = pd.Series(columns[name]).map(lambda v: v if isinstance(v, int | float) else None)
            table[:, place] = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return table
