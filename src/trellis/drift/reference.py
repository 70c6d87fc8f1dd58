"""The baseline a model is compared with: its training data, summarised, with how much it moved by itself.

Rows of one day resemble each other (one weather, one strike), so a week of a thousand flights says less than a thousand
independent rows. The baseline therefore measures how much consecutive periods of training differed by themselves: as
noise for the tests, and as the largest step between them for telling a season from a fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trellis.contract import Batch, Field, row_count
from trellis.decision import dumps
from trellis.drift.noise import LEAST_PERIODS, Noise, noise_of, roots
from trellis.drift.outcomes import Outcomes
from trellis.drift.sketch import Layout, NumericSketch
from trellis.drift.statistics import quantile_distance, total_variation
from trellis.drift.summary import (
    CategorySummary,
    NumericSummary,
    Summary,
    Window,
    WindowSketch,
    reference_layout,
    sketch_numeric,
    summarise_category,
    summarise_like,
    summarise_numeric,
    vocabulary,
    without_cells,
)
from trellis.errors import DataError
from trellis.sums import LossSums

BINS = 10
VOCABULARY = 60
# Ages have no reference; an hour is their unit.
_HOURS = Layout((), (0.0, 1.0))
_MIN_PERIOD_ROWS = 30


@dataclass(frozen=True)
class ReferenceColumn:
    """One column of the training data.

    Attributes:
        summary: All training rows.
        latest: The last whole period of training: the healthy window before the first one served; None without times.
        noise: How much its windows' shares per bin differ by themselves.
        natural_step: Largest distance (see ``distance``) between consecutive periods; None below three periods.
        narrowest: Smallest standard deviation of a period over the whole one's; 1 without times. 0 says that being
            constant for a period is normal for this column.
        nulls_peak: Largest share of nulls in any period.
        place_noise: How much windows' place (see ``place_and_width``) differs by itself; knows nothing of categories.
        width_noise: The same of their width.
    """

    summary: Summary
    latest: Summary | None = None
    noise: Noise = field(default_factory=Noise)
    natural_step: float | None = None
    narrowest: float = 1.0
    nulls_peak: float = 0.0
    place_noise: Noise = field(default_factory=Noise)
    width_noise: Noise = field(default_factory=Noise)


@dataclass(frozen=True)
class Reference:
    """A model version's training data, as far as drift needs it.

    Attributes:
        rows: Training rows.
        period_days: Length of the periods in which its own movement was measured; windows should be as long.
        columns: By name; images and other tensors appear as ``NAME.mean`` and ``NAME.std``.
        loss: Loss on rows held out from training, by day; None where unknown.
        until: End of the last period, RFC 3339; None without times.
        outcomes: Scores and labels of held-out rows; None where unknown.
    """

    rows: int
    period_days: float
    columns: dict[str, ReferenceColumn]
    loss: LossSums | None = None
    until: str | None = None
    outcomes: Outcomes | None = None

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
    outcomes: Outcomes | None = None,
) -> Reference:
    """Summarise training data.

    Args:
        batch: Training rows as the predictor saw them.
        fields: Columns to watch; a ``category`` or ``text`` field keeps its 60 most frequent values.
        times: Event time of every row, ``datetime64``, shape ``(n,)``; without it rows count as independent.
        period_days: Length of the windows that will be compared, in days of event time.
        loss: Loss on held-out rows.
        bins: Bins per number before ties get their own.
        outcomes: Scores and labels of held-out rows.
    """
    rows = row_count(batch)
    periods = None
    until: str | None = None
    if times is not None and rows:
        stamps = np.asarray(times).astype("datetime64[s]").astype(np.int64)
        length = max(1, int(period_days * 86_400))
        # Counted back from the end, so that the last period is a whole one.
        periods = -((int(stamps.max()) - stamps) // length)
        periods = periods - periods.min()
        until = _iso(int(stamps.max()) + 1)
    columns = {name: _column(kind, values, bins, periods) for name, (kind, values) in flatten(batch, fields).items()}
    return Reference(rows, period_days, columns, loss, until, outcomes)


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
    window = sketch_window(batch, fields, reference, start=start, end=end).window()
    return replace(window, ages_hours=dict(ages_hours or {}))


def sketch_window(
    batch: Batch,
    fields: Sequence[Field],
    reference: Reference,
    *,
    start: str,
    end: str,
    ages_hours: Mapping[str, NDArray[Any]] | None = None,
) -> WindowSketch:
    """Read a part of a window once; parts are put together with ``merge``, exactly.

    Args:
        batch: Rows served.
        fields: Columns that the reference may hold.
        reference: The baseline that lays the grid.
        start: First moment, RFC 3339 in UTC.
        end: Last moment, exclusive.
        ages_hours: Age of every row's features when used, in hours, by feature view.
    """
    flat = flatten(batch, fields)
    rows = row_count(batch) if batch else 0
    columns = {
        name: _read(flat[name][1], column.summary)
        for name, column in reference.columns.items()
        if name in flat and rows
    }
    ages = {view: sketch_numeric(values, _HOURS) for view, values in (ages_hours or {}).items()}
    return WindowSketch(start, end, rows, columns, ages)


def _read(values: NDArray[Any], summary: Summary) -> NumericSketch | CategorySummary:
    if isinstance(summary, NumericSummary):
        return sketch_numeric(values, summary.layout)
    return summarise_category(values, summary.values)


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
    periods: NDArray[np.int64] | None,
) -> ReferenceColumn:
    whole: Summary
    if kind == "numeric":
        whole = summarise_numeric(values, reference_layout(values, bins))
    else:
        whole = summarise_category(values, vocabulary(values, VOCABULARY))
    if periods is None:
        return ReferenceColumn(whole, nulls_peak=null_rate(whole))
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
        without_cells(parts[-1]) if parts else None,
        period_noise(parts),
        max(steps) if len(steps) >= 2 else None,
        narrowest,
        max((null_rate(p) for p in parts), default=null_rate(whole)),
        *place_noise(parts, whole),
    )


def period_noise(parts: Sequence[Summary]) -> Noise:
    """Measure by how much periods of one column differ (see ``trellis.drift.noise``)."""
    if len(parts) < LEAST_PERIODS:
        return Noise()
    cells = np.array([p.cells for p in parts])
    used = int((cells.sum(axis=0) > 0).sum())
    return noise_of(np.array([roots(c) for c in cells]), [p.rows for p in parts], used - 1)


def place_noise(parts: Sequence[Summary], whole: Summary) -> tuple[Noise, Noise]:
    """Measure by how much periods of a number differ in their place, and in their width."""
    found = [(*at, p.rows - p.nulls) for p in parts if (at := place_and_width(p, whole)) is not None]
    rows = [r for *_, r in found]
    first, second = (noise_of(np.array([[at[k]] for at in found]), rows, 1) for k in (0, 1))
    return first, second


def place_and_width(summary: Summary, whole: Summary) -> tuple[float, float] | None:
    """Where a number's middle 95 % lies and how wide it is, beside the whole's; None for what has no such thing.

    Returns:
        Its mean in standard deviations of the whole's, and the logarithm of its standard deviation over the whole's
        times the root of two: of both, rows of a normal distribution have a variance of about one over their number.
    """
    if not isinstance(summary, NumericSummary) or not isinstance(whole, NumericSummary):
        return None
    if not summary.quantiles or not whole.quantiles:
        return None
    before, now = np.array(whole.quantiles)[1:-1], np.array(summary.quantiles)[1:-1]
    spread = float(before.std())
    if not spread:
        return None
    # A window of one value is a thousandth as wide, not infinitely narrow.
    narrow = max(float(now.std()) / spread, 1e-3)
    return float(now.mean() - before.mean()) / spread, math.sqrt(2) * math.log(narrow)


def _iso(seconds: int) -> str:
    return str(np.datetime64(seconds, "s")) + "Z"


_ADAPTER = TypeAdapter(Reference)
