"""Logs as the ledger wants them: the one place where predictions of a model meet their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import ModelSpec
from trellis.ledger.labels import Finding, Join, join
from trellis.metrics import row_loss

_SUM_TOLERANCE = 1e-3
_EXAMPLES = 5


@dataclass(frozen=True)
class Labelled:
    """Predictions with what was known of them at a moment.

    Attributes:
        rows: The predictions, numbered from 0.
        times: Their event times, ``datetime64[us]`` in UTC, shape ``(n,)``.
        known: Their labels.
        score: Their scores, ``(n,)`` or ``(n, classes)``; NaN where missing or malformed.
        loss: Loss of every row; NaN where no label is known, or no score.
        findings: What was left out of the join, and predictions without a score.
    """

    rows: pd.DataFrame
    times: NDArray[np.datetime64]
    known: Join
    score: NDArray[np.float64]
    loss: NDArray[np.float64]
    findings: tuple[Finding, ...]

    @property
    def told(self) -> NDArray[np.bool_]:
        """Rows whose loss is known."""
        return ~np.isnan(self.loss)

    def take(self, rows: NDArray[np.bool_]) -> Labelled:
        """Return some of the rows; the findings stay those of all."""
        known = Join(
            self.known.known[rows],
            self.known.value[rows],
            self.known.observed_at[rows],
            self.known.revisions[rows],
            self.known.findings,
        )
        frame = self.rows[rows].reset_index(drop=True)
        return Labelled(frame, self.times[rows], known, self.score[rows], self.loss[rows], self.findings)

    def due(self, spec: ModelSpec, as_of: np.datetime64 | datetime) -> Labelled:
        """Return the same rows with the labels of those alone that are past the declared delay.

        Where some truths are known sooner than others (a good is good until it is late), the labels of young rows are
        those of the quick truths. Beside rows that have all of theirs they would look like a change.

        Args:
            spec: The model's declaration.
            as_of: The moment by which a row has to be due.
        """
        young = due_at(self.times, spec) > moment(as_of)
        known = Join(
            self.known.known & ~young,
            np.where(young, np.nan, self.known.value),
            np.where(young, np.datetime64("NaT", "us"), self.known.observed_at),
            np.where(young, 0, self.known.revisions),
            self.known.findings,
        )
        return replace(self, known=known, loss=np.where(young, np.nan, self.loss))


def labelled(
    spec: ModelSpec,
    rows: pd.DataFrame,
    labels: pd.DataFrame,
    as_of: np.datetime64 | datetime | None = None,
    *,
    received_by: np.datetime64 | datetime | None = None,
) -> Labelled:
    """Join predictions with their labels as known at a moment; see ``trellis.ledger.join``.

    Args:
        spec: The model's declaration.
        rows: ``id``, ``time``, ``outputs.<score>`` and whatever else, as ``read_predictions`` returns.
        labels: ``id``, ``value``, ``observed_at`` and ``received_at``, as ``read_labels`` returns.
        as_of: Labels observed later are not known yet; None knows all.
        received_by: What reached the log later is not there yet, predictions included; None knows all.
    """
    if received_by is not None:
        rows = rows[moments(rows["received_at"]) <= moment(received_by)]
    rows = rows.reset_index(drop=True)
    times = moments(rows["time"])
    known = join(
        {"id": rows["id"].to_numpy(dtype=str), "time": times},
        {
            "id": labels["id"].to_numpy(dtype=str),
            "value": labels["value"].to_numpy(),
            "observed_at": moments(labels["observed_at"]),
            "received_at": moments(labels["received_at"]),
        },
        task=spec.task,
        classes=spec.target.classes,
        as_of=None if as_of is None else moment(as_of),
        received_by=None if received_by is None else moment(received_by),
    )
    score = scores(rows, spec)
    usable = np.isfinite(score) if score.ndim == 1 else np.isfinite(score).all(axis=1)
    findings = known.findings
    if not usable.all():
        examples = sorted(rows["id"].to_numpy(dtype=str)[~usable].tolist())[:_EXAMPLES]
        findings = (*findings, Finding("no_score", int((~usable).sum()), tuple(examples)))
    told = known.known & usable
    loss = np.full(len(rows), np.nan)
    if told.any():
        loss[told] = row_loss(spec.task, known.value[told], score[told])
    return Labelled(rows, times, known, score, loss, findings)


def due_at(times: NDArray[np.datetime64], spec: ModelSpec) -> NDArray[np.datetime64]:
    """Return when the label of every row is due: the declared delay after its time, ``datetime64[us]``."""
    delay = np.timedelta64(round(spec.target.delay_hours * 3_600_000_000), "us")
    due: NDArray[np.datetime64] = times + delay
    return due


def scores(rows: pd.DataFrame, spec: ModelSpec) -> NDArray[np.float64]:
    """Return the score of every prediction, ``(n,)`` or ``(n, classes)``; NaN where it is missing or no score."""
    width = len(spec.target.classes) if spec.task == "multiclass" else 1
    column = f"outputs.{spec.score.name}"
    if column not in rows:
        return np.full((len(rows), width) if width > 1 else len(rows), np.nan)
    if width == 1:
        score = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
        possible = np.isfinite(score) if spec.task == "regression" else (score >= 0) & (score <= 1)
        return np.where(possible, score, np.nan)
    lists = [r if isinstance(r, list | np.ndarray) and len(r) == width else [np.nan] * width for r in rows[column]]
    table = pd.DataFrame(lists, columns=range(width)).apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    fits = ((table >= 0) & (table <= 1)).all(axis=1) & (np.abs(table.sum(axis=1) - 1) <= _SUM_TOLERANCE)
    return np.where(fits[:, None], table, np.nan)


def moments(values: Any) -> NDArray[np.datetime64]:
    """Turn a column of times with a zone, or of RFC 3339 strings, into ``datetime64[us]`` in UTC; NaT if unreadable."""
    stamps = pd.to_datetime(pd.Series(values), utc=True, errors="coerce", format="ISO8601")
    return stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")


def moment(value: np.datetime64 | datetime) -> np.datetime64:
    """Turn a moment into ``datetime64[us]`` in UTC; without a zone it is UTC."""
    if isinstance(value, datetime):
        plain = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return np.datetime64(plain, "us")
    exact: np.datetime64 = value.astype("datetime64[us]")
    return exact
