"""The join of predictions and labels: labels late, revised, twice, out of order or never; repeatable for any past day.

Time has two axes. *Event time*: when a truth was observed. *System time*: when it reached the log. ``as_of`` asks what
had been observed by a moment; ``received_by`` what the log held at a moment. With both, any past look can be taken
again exactly, whatever has arrived since. The join does not depend on the order of rows, and joining twice changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import Batch, Task
from trellis.errors import DataError

# Clocks of well-kept machines differ by less.
CLOCK_TOLERANCE = np.timedelta64(300, "s")
_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """Something about the labels that a person should know; the labels stay in the log.

    Attributes:
        kind: ``unknown_id`` (no such prediction), ``impossible_value``, ``no_time`` (no readable time of observation),
            ``observed_too_early`` (before its prediction), ``observed_after_received`` (the sender's clock is ahead;
            counted as observed when received), ``contradiction`` (two values, same times), ``duplicate``, or
            ``no_score`` (a prediction without a usable score).
        count: How many labels or, for ``contradiction`` and ``no_score``, predictions.
        examples: Ids of up to five, in alphabetical order.
    """

    kind: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Join:
    """Predictions with the labels known at a moment.

    Attributes:
        known: Whether a prediction has a usable label, shape ``(n,)``, in the order of the predictions given.
        value: The label: 0/1, class index or number; NaN where not known.
        observed_at: When that revision was observed, ``datetime64[us]``; NaT where not known.
        revisions: How many distinct revisions were known by then, shape ``(n,)``.
        findings: What was left out or mended, and why.
    """

    known: NDArray[np.bool_]
    value: NDArray[np.float64]
    observed_at: NDArray[np.datetime64]
    revisions: NDArray[np.int64]
    findings: tuple[Finding, ...]


def join(
    predictions: Batch,
    labels: Batch,
    *,
    task: Task,
    classes: Sequence[str] = (),
    as_of: np.datetime64 | None = None,
    received_by: np.datetime64 | None = None,
) -> Join:
    """Give every prediction the label that was known at a moment.

    Of several revisions the one observed last counts, then the one received last; of two that contradict each other in
    all but value, the larger value (and a finding). The same label sent twice counts once. A label that claims to have
    been observed more than five minutes after it was received counts as observed when it was received, unless the
    prediction too lies ahead of the clock (a simulation).

    Args:
        predictions: ``id`` (unique strings) and ``time`` (``datetime64``), shape ``(n,)``.
        labels: ``id``, ``value`` (number, or one of ``classes``), ``observed_at`` and ``received_at``
            (``datetime64``), shape ``(m,)``.
        task: What values are possible: ``binary`` 0/1, ``multiclass`` an index of ``classes``, ``regression`` finite.
        classes: Names of the classes, negative first.
        as_of: Labels observed later are not known yet; None knows all.
        received_by: Labels that reached the log later are not known yet; None knows all.

    Raises:
        DataError: A prediction id is there twice.
    """
    ids = pd.Index(np.asarray(predictions["id"]).astype(str))
    if not ids.is_unique:
        twice = sorted(set(ids[ids.duplicated()]))[:_EXAMPLES]
        raise DataError(f"Prediction ids are not unique: {twice}.", remedy="Keep one row per prediction id.")
    frame = pd.DataFrame(
        {
            "id": np.asarray(labels["id"]).astype(str),
            "value": _values(np.asarray(labels["value"]), task, classes),
            "observed_at": _moments(labels["observed_at"]),
            "received_at": _moments(labels["received_at"]),
        }
    )
    if received_by is not None:
        frame = frame[~(frame["received_at"] > _moments(received_by))]
    frame = frame.assign(place=ids.get_indexer(pd.Index(frame["id"])))
    frame["made"] = np.append(_moments(predictions["time"]), np.datetime64("NaT", "us"))[frame["place"]]
    ahead = (frame["observed_at"] > frame["received_at"] + CLOCK_TOLERANCE) & (frame["made"] <= frame["received_at"])
    frame["ahead"], frame["claimed"] = ahead, frame["observed_at"]
    frame["observed_at"] = frame["observed_at"].where(~ahead, frame["received_at"])
    if as_of is not None:
        frame = frame[~(frame["observed_at"] > _moments(as_of))]
    findings: list[Finding] = []

    def found(kind: str, ids: pd.Series[str], count: int | None = None) -> None:
        if len(ids):
            examples = sorted(set(ids))
            findings.append(Finding(kind, len(ids) if count is None else count, tuple(examples[:_EXAMPLES])))

    def left_out(kind: str, chosen: pd.Series[bool]) -> pd.DataFrame:
        found(kind, frame.loc[chosen, "id"])
        return frame[~chosen]

    # The first to arrive of identical ones is kept, whatever the order of the rows. What a clock that is ahead claims
    # is compared as claimed: sent again it is the same label, though it would count as observed when it came again.
    frame = frame.sort_values(["id", "observed_at", "received_at", "value"], ignore_index=True)
    first = frame[~frame.duplicated(["id", "value", "claimed"])].drop_duplicates(["id", "value", "observed_at"])
    frame = left_out("duplicate", ~frame.index.to_series().isin(first.index))
    frame = left_out("unknown_id", frame["place"] < 0)
    frame = left_out("no_time", frame["observed_at"].isna())
    frame = left_out("impossible_value", frame["value"].isna())
    frame = left_out("observed_too_early", frame["observed_at"] < frame["made"])
    found("observed_after_received", frame.loc[frame["ahead"], "id"])
    clash = frame.loc[frame.duplicated(["id", "observed_at", "received_at"], keep=False), "id"].drop_duplicates()
    found("contradiction", clash)
    last = frame.drop_duplicates("id", keep="last")
    value, observed = np.full(len(ids), np.nan), np.full(len(ids), np.datetime64("NaT"), dtype="datetime64[us]")
    at = last["place"].to_numpy(dtype=np.int64)
    value[at] = last["value"].to_numpy()
    observed[at] = last["observed_at"].to_numpy().astype("datetime64[us]")
    revisions = np.bincount(frame["place"].to_numpy(dtype=np.int64), minlength=len(ids)).astype(np.int64)
    return Join(~np.isnan(value), value, observed, revisions, tuple(findings))


def _moments(values: Any) -> NDArray[np.datetime64]:
    return np.asarray(values).astype("datetime64[us]")


def _values(values: NDArray[Any], task: Task, classes: Sequence[str]) -> NDArray[np.float64]:
    """Read labels as numbers; NaN where impossible."""
    index = {name: float(i) for i, name in enumerate(classes)}
    if values.dtype.kind in "OUS":
        scalars = pd.Series(
            [v if isinstance(v, str | int | float | np.generic) else None for v in values], dtype=object
        )
        series = scalars.map(lambda v: index.get(v, v) if isinstance(v, str) else v)
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        numbers = values.astype(np.float64)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    if task == "regression":
        return np.asarray(numbers)
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < max(2, len(classes)))
    return np.where(whole, numbers, np.nan)
