"""The label ledger: predictions first, labels late, revised, twice or never; one join that can be repeated for any day.

``join`` answers "what was known on that day": of every prediction the last revision of its label observed by then. It
does not depend on the order in which rows arrive, and joining again changes nothing. ``performance`` turns the join
into sums of losses and label coverage per window, version and segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import Batch, Task, row_count
from trellis.errors import DataError
from trellis.metrics import row_loss
from trellis.sums import LossSums, loss_sums

_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """Something about the labels that a person should know.

    Attributes:
        kind: ``unknown_id``, ``impossible_value``, ``observed_too_early``, ``contradiction`` or ``duplicate``.
        count: How many labels.
        examples: Ids of up to five, in alphabetical order.
    """

    kind: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Join:
    """Predictions with the labels known on a day.

    Attributes:
        known: Whether a prediction has a usable label, shape ``(n,)``, in the order of the predictions given.
        value: The label: 0/1, class index or number; NaN where not known.
        observed_at: When that revision was observed, ``datetime64[us]``; NaT where not known.
        revisions: How many distinct revisions were known by then, shape ``(n,)``.
        findings: What was left out, and why.
    """

    known: NDArray[np.bool_]
    value: NDArray[np.float64]
    observed_at: NDArray[np.datetime64]
    revisions: NDArray[np.int64]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Cell:
    """Performance of one version in one window, over all rows or one segment.

    Attributes:
        window: Index of the window.
        version: The version that answered.
        segment: Column name; empty for all rows.
        value: The segment's value; empty for all rows.
        predictions: Predictions made.
        loss: Sums over those whose label is known, by day.
    """

    window: int
    version: str
    segment: str
    value: str
    predictions: int
    loss: LossSums

    @property
    def coverage(self) -> float:
        """Share of predictions whose label is known."""
        return self.loss.rows / self.predictions if self.predictions else 0.0


def join(
    predictions: Batch,
    labels: Batch,
    *,
    task: Task,
    classes: Sequence[str] = (),
    as_of: np.datetime64 | None = None,
) -> Join:
    """Give every prediction the label that was known on a day.

    Of several revisions the one observed last counts, then the one received last; of two that contradict each other in
    all but value, the larger value (and a finding). The same label sent twice counts once.

    Args:
        predictions: ``id`` (unique strings) and ``time`` (``datetime64``), shape ``(n,)``.
        labels: ``id``, ``value`` (number, or one of ``classes``), ``observed_at`` and ``received_at``
            (``datetime64``), shape ``(m,)``.
        task: What values are possible: ``binary`` 0/1, ``multiclass`` an index of ``classes``, ``regression`` finite.
        classes: Names of the classes, negative first.
        as_of: Labels observed later are not known yet; None knows all.

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
    if as_of is not None:
        frame = frame[frame["observed_at"] <= np.asarray(as_of).astype("datetime64[us]")]
    findings: list[Finding] = []

    def left_out(kind: str, chosen: pd.Series[bool]) -> pd.DataFrame:
        if chosen.any():
            examples = sorted(set(frame.loc[chosen, "id"]))[:_EXAMPLES]
            findings.append(Finding(kind, int(chosen.sum()), tuple(examples)))
        return frame[~chosen]

    # The first to arrive of identical ones is kept, whatever the order of the rows.
    frame = frame.sort_values(["id", "observed_at", "received_at", "value"], ignore_index=True)
    frame = left_out("duplicate", frame.duplicated(["id", "value", "observed_at"]))
    place = pd.Series(ids.get_indexer(pd.Index(frame["id"])), index=frame.index)
    frame = frame.assign(place=place)
    frame = left_out("unknown_id", frame["place"] < 0)
    frame = left_out("impossible_value", frame["value"].isna() | frame["observed_at"].isna())
    made = _moments(predictions["time"])
    frame = left_out(
        "observed_too_early", pd.Series(frame["observed_at"].to_numpy() < made[frame["place"]], frame.index)
    )
    clash = frame.duplicated(["id", "observed_at", "received_at"], keep=False)
    if clash.any():
        examples = sorted(set(frame.loc[clash, "id"]))
        findings.append(Finding("contradiction", len(examples), tuple(examples[:_EXAMPLES])))
    last = frame.drop_duplicates("id", keep="last")
    value, observed = np.full(len(ids), np.nan), np.full(len(ids), np.datetime64("NaT"), dtype="datetime64[us]")
    at = last["place"].to_numpy(dtype=np.int64)
    value[at] = last["value"].to_numpy()
    observed[at] = last["observed_at"].to_numpy().astype("datetime64[us]")
    revisions = np.bincount(frame["place"].to_numpy(dtype=np.int64), minlength=len(ids)).astype(np.int64)
    return Join(~np.isnan(value), value, observed, revisions, tuple(findings))


def performance(
    predictions: Batch,
    joined: Join,
    *,
    task: Task,
    score: NDArray[Any],
    edges: NDArray[np.datetime64],
    segments: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[Cell, ...]:
    """Sum losses per window, version and segment.

    Args:
        predictions: ``time`` and ``version``, shape ``(n,)``, in the order given to ``join``.
        joined: Their labels.
        task: Chooses the loss (``trellis.metrics.row_loss``).
        score: The model's score, shape ``(n,)`` or ``(n, classes)``.
        edges: ``k + 1`` rising moments that bound ``k`` windows, end exclusive.
        segments: Columns by which to break down, shape ``(n,)`` each.

    Returns:
        Cells with at least one prediction: by window, version, then all rows before segments.
    """
    if not row_count(predictions):
        return ()
    times = _moments(predictions["time"])
    windows = np.searchsorted(_moments(edges), times, side="right") - 1
    inside = (windows >= 0) & (windows < len(edges) - 1)
    versions = np.asarray(predictions["version"]).astype(str)
    usable = joined.known & (np.isfinite(np.asarray(score, dtype=np.float64).reshape(len(times), -1)).all(axis=1))
    losses = np.full(len(times), np.nan)
    if usable.any():
        losses[usable] = row_loss(task, joined.value[usable], np.asarray(score)[usable])
    days = times.astype("datetime64[D]")
    columns = {"": np.full(len(times), ""), **{k: np.asarray(v).astype(str) for k, v in (segments or {}).items()}}
    cells: list[Cell] = []
    for window in np.unique(windows[inside]):
        for version in np.unique(versions[windows == window]):
            here = (windows == window) & (versions == version)
            for name, values in columns.items():
                for value in np.unique(values[here]):
                    rows = here & (values == value)
                    labelled = rows & usable
                    sums = loss_sums(losses[labelled], days[labelled])
                    cells.append(Cell(int(window), str(version), name, str(value), int(rows.sum()), sums))
    return tuple(cells)


def _moments(values: Any) -> NDArray[np.datetime64]:
    return np.asarray(values).astype("datetime64[us]")


def _values(values: NDArray[Any], task: Task, classes: Sequence[str]) -> NDArray[np.float64]:
    """Read labels as numbers; NaN where impossible."""
    index = {name: float(i) for i, name in enumerate(classes)}
    if values.dtype.kind in "OUS":
        series = pd.Series(values.astype(object)).map(lambda v: index.get(v, v) if isinstance(v, str) else v)
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        numbers = values.astype(np.float64)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    if task == "regression":
        return np.asarray(numbers)
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < max(2, len(classes)))
    return np.where(whole, numbers, np.nan)
