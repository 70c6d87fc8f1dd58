"""The baseline a model is compared with: its training data, summarised, with how much it moved by itself.

Rows of one day resemble each other (one weather, one strike), so a week of a thousand flights says less than a thousand
independent rows. Two numbers per column carry that: a design effect (by how much day-to-day variation exceeds that of
independent rows) and the largest step between consecutive periods of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trellis.contract import Batch, Field, row_count
from trellis.decision import dumps
from trellis.drift.statistics import quantile_distance, total_variation
from trellis.drift.summary import (
    NumericSummary,
    Summary,
    Window,
    numbers,
    reference_edges,
    summarise_category,
    summarise_like,
    summarise_numeric,
    texts,
    vocabulary,
)
from trellis.errors import DataError
from trellis.sums import LossSums

BINS = 10
VOCABULARY = 60
_MIN_PERIOD_ROWS = 30


@dataclass(frozen=True)
class ReferenceColumn:
    """One column of the training data.

    Attributes:
        summary: All training rows.
        latest: The last whole period of training: the healthy window before the first one served; None without times.
        design_effect: Variance of a cell's share over independent rows' variance, at least 1.
        natural_step: Largest distance (see ``distance``) between consecutive periods; None below three periods.
        narrowest: Smallest standard deviation of a period over the whole one's; 1 without times. 0 says that being
            constant for a period is normal for this column.
        nulls_peak: Largest share of nulls in any period.
    """

    summary: Summary
    latest: Summary | None = None
    design_effect: float = 1.0
    natural_step: float | None = None
    narrowest: float = 1.0
    nulls_peak: float = 0.0


@dataclass(frozen=True)
class Reference:
    """A model version's training data, as far as drift needs it.

    Attributes:
        rows: Training rows.
        period_days: Length of the periods in which its own movement was measured; windows should be as long.
        columns: By name; images and other tensors appear as ``NAME.mean`` and ``NAME.std``.
        loss: Loss on rows held out from training, by day; None where unknown.
        until: End of the last period, RFC 3339; None without times.
    """

    rows: int
    period_days: float
    columns: dict[str, ReferenceColumn]
    loss: LossSums | None = None
    until: str | None = None

    def dumps(self) -> str:
        """Serialise to canonical JSON."""
        return dumps(self)

    @staticmethod
    def loads(text: str | bytes, *, where: object = None) -> Reference:
        """Read what ``dumps`` wrote.

        Raises:
            DataError: It is no reference.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise DataError(
                f"The drift reference cannot be read: {error.errors()[0]['msg']}.",
                where=where,
                remedy="Build it again from the training data.",
            ) from error

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON: names the baseline in evidence."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()


def flatten(batch: Batch, fields: Sequence[Field]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return the columns of ``fields`` that can be summarised: name to kind (``numeric`` or ``category``) and values.

    Tensors become their mean and standard deviation per row; timestamps are left out (time always moves); columns that
    are not in the batch are left out.
    """
    result: dict[str, tuple[str, NDArray[Any]]] = {}
    for item in fields:
        if item.name not in batch or item.kind == "timestamp":
            continue
        values = np.asarray(batch[item.name])
        if item.kind == "tensor":
            flat = values.reshape(len(values), -1) if values.dtype.kind in "fiub" else np.full((len(values), 1), np.nan)
            result[f"{item.name}.mean"] = ("numeric", flat.mean(axis=1))
            result[f"{item.name}.std"] = ("numeric", flat.std(axis=1))
        else:
            result[item.name] = ("category" if item.kind in ("category", "text") else "numeric", values)
    return result


def build_reference(
    batch: Batch,
    fields: Sequence[Field],
    *,
    times: NDArray[np.datetime64] | None = None,
    period_days: float = 7.0,
    loss: LossSums | None = None,
    bins: int = BINS,
) -> Reference:
    """Summarise training data.

    Args:
        batch: Training rows as the predictor saw them.
        fields: Columns to watch; a ``category`` or ``text`` field keeps its 60 most frequent values.
        times: Event time of every row, ``datetime64``, shape ``(n,)``; without it rows count as independent.
        period_days: Length of the windows that will be compared, in days of event time.
        loss: Loss on held-out rows.
        bins: Bins per number before ties get their own.
    """
    rows = row_count(batch)
    days = periods = None
    until: str | None = None
    if times is not None and rows:
        stamps = np.asarray(times).astype("datetime64[s]").astype(np.int64)
        days = np.unique(stamps // 86_400, return_inverse=True)[1]
        length = max(1, int(period_days * 86_400))
        # Counted back from the end, so that the last period is a whole one.
        periods = -((int(stamps.max()) - stamps) // length)
        periods = periods - periods.min()
        until = _iso(int(stamps.max()) + 1)
    columns = {
        name: _column(kind, values, bins, days, periods) for name, (kind, values) in flatten(batch, fields).items()
    }
    return Reference(rows, period_days, columns, loss, until)


def summarise_window(
    batch: Batch,
    fields: Sequence[Field],
    reference: Reference,
    *,
    start: str,
    end: str,
    ages_hours: Mapping[str, float] | None = None,
) -> Window:
    """Summarise served rows on the reference's bins; columns that are not there are left out, never an error."""
    flat = flatten(batch, fields)
    rows = row_count(batch) if batch else 0
    columns = {
        name: summarise_like(flat[name][1], column.summary)
        for name, column in reference.columns.items()
        if name in flat and rows
    }
    return Window(start, end, rows, columns, dict(ages_hours or {}))


def distance(first: Summary, second: Summary, whole: Summary) -> float:
    """How far two windows of one column lie apart, free of units.

    For numbers the Wasserstein-1 distance between the 2.5 % and 97.5 % quantiles, so that a single wild value moves
    nothing, in spreads of ``whole`` (see ``scale``); for categories the total variation distance.
    """
    if isinstance(first, NumericSummary) and isinstance(second, NumericSummary):
        if not first.quantiles or not second.quantiles:
            return 0.0
        return quantile_distance(np.array(first.quantiles), np.array(second.quantiles), trim=1) / scale(whole)
    return total_variation(first.cells[:-1], second.cells[:-1])


def scale(summary: Summary) -> float:
    """Return the unit in which movements of a number are measured: its spread in training.

    The middle 95 % over 3.92, which is the standard deviation of a normal distribution and ignores wild values; the
    standard deviation itself, the absolute mean or 1 where that is zero.
    """
    if not isinstance(summary, NumericSummary) or not summary.quantiles:
        return 1.0
    middle = (summary.quantiles[-2] - summary.quantiles[1]) / 3.92
    return middle or summary.std or abs(summary.mean or 0.0) or 1.0


def null_rate(summary: Summary) -> float:
    """Share of rows without a value."""
    return summary.nulls / summary.rows if summary.rows else 0.0


def _column(
    kind: str,
    values: NDArray[Any],
    bins: int,
    days: NDArray[np.intp] | None,
    periods: NDArray[np.int64] | None,
) -> ReferenceColumn:
    whole: Summary
    if kind == "numeric":
        whole = summarise_numeric(values, reference_edges(numbers(values)[0], bins))
    else:
        whole = summarise_category(values, vocabulary(values, VOCABULARY))
    if days is None or periods is None:
        return ReferenceColumn(whole, nulls_peak=null_rate(whole))
    cells = _cells(values, whole)
    parts = [
        summarise_like(values[chosen], whole)
        for p in range(int(periods.max()) + 1)
        if (chosen := periods == p).sum() >= _MIN_PERIOD_ROWS
    ]
    steps = [distance(a, b, whole) for a, b in pairwise(parts)]
    narrowest = 1.0
    if isinstance(whole, NumericSummary) and parts and whole.std:
        narrowest = min(p.std for p in parts if isinstance(p, NumericSummary)) / whole.std
    elif parts:
        narrowest = 0.0 if any(p.constant for p in parts) else 1.0
    return ReferenceColumn(
        whole,
        parts[-1] if parts else None,
        design_effect(days, cells, len(whole.cells)),
        max(steps) if len(steps) >= 2 else None,
        narrowest,
        max((null_rate(p) for p in parts), default=null_rate(whole)),
    )


def _cells(values: NDArray[Any], summary: Summary) -> NDArray[np.int64]:
    """Index of every row's cell: bins or values, then (for categories) other, then nulls."""
    if isinstance(summary, NumericSummary):
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            array = pd.to_numeric(pd.Series(array), errors="coerce").to_numpy()
        with np.errstate(over="ignore"):
            single = array.astype(np.float32).astype(np.float64)
        bins = np.searchsorted(np.asarray(summary.edges), single, side="left")
        return np.where(np.isfinite(single), bins, len(summary.edges) + 1)
    index = {value: i for i, value in enumerate(summary.values)}
    strings = texts(values)
    cells = strings.map(index).fillna(len(index)).to_numpy(dtype=np.int64)
    return np.where(strings.isna().to_numpy(), len(index) + 1, cells)


def design_effect(blocks: NDArray[np.intp], cells: NDArray[np.int64], width: int) -> float:
    """Average over cells of the variance of a share with whole blocks drawn, over that with rows drawn (at least 1).

    Rao & Scott (1981): the mean of the cells' design effects, weighted by ``1 - p``. Blocks are taken as independent.

    Args:
        blocks: Block (day) of every row, 0, 1, ..., shape ``(n,)``.
        cells: Cell of every row, below ``width``, shape ``(n,)``.
        width: Number of cells.
    """
    count, rows = int(blocks.max()) + 1, len(cells)
    if count < 3:
        return 1.0
    table = np.bincount(blocks * width + cells, minlength=count * width).reshape(count, width).astype(np.float64)
    share = table.sum(axis=0) / rows
    used = (share > 0) & (share < 1)
    if not used.any():
        return 1.0
    residual = table[:, used] - table.sum(axis=1, keepdims=True) * share[used]
    clustered = count / (count - 1) * np.square(residual).sum(axis=0) / rows**2
    effects = clustered / (share[used] * (1 - share[used]) / rows)
    return max(1.0, float(np.average(effects, weights=1 - share[used])))


def _iso(seconds: int) -> str:
    return str(np.datetime64(seconds, "s")) + "Z"


_ADAPTER = TypeAdapter(Reference)
