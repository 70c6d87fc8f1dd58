"""Served rows against declaration and training: schema, types, ranges, nulls, categories, repeats, clocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import Field, QualityPolicy
from trellis.quality.clocks import ahead_of_clock, received_with

_LEAST_FOR_CONSTANT = 100
_NULL_JUMP = 0.1
_EXAMPLES = 3

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ColumnHistory:
    """What training showed of a column.

    Attributes:
        null_rate: Largest share of nulls in any training period.
        constant: Whether it held one value.
        values: Every category seen; None where it is a number or training saw too many to list.
    """

    null_rate: float = 0.0
    constant: bool = False
    values: frozenset[str] | None = None


@dataclass(frozen=True)
class QualityFinding:
    """Something wrong with served rows.

    Attributes:
        kind: ``missing_column``, ``unexpected_column``, ``type_changed``, ``infinite``, ``all_null``, ``nulls``,
            ``constant``, ``out_of_range``, ``new_category``, ``duplicates``, ``outliers``, ``stale`` or ``clock_skew``.
        column: The field or view; empty for whole rows.
        rows: Rows concerned.
        share: Their share.
        text: What was found, with numbers.
        examples: Ids of up to three predictions.
    """

    kind: str
    column: str
    rows: int
    share: float
    text: str
    examples: tuple[str, ...] = ()


def check_rows(
    frame: pd.DataFrame,
    fields: Sequence[Field],
    policy: QualityPolicy,
    *,
    history: Mapping[str, ColumnHistory] | None = None,
    later: pd.DataFrame | None = None,
) -> tuple[QualityFinding, ...]:
    """Look through served rows; an empty frame has no finding.

    Args:
        frame: Predictions as ``read_predictions`` returns them.
        fields: The declared fields; a feature's stored value wins over what a caller sent.
        policy: From which shares something is a finding.
        history: What training showed, by column.
        later: Predictions whose event time is after the rows' window; those received with them that are ahead of the
            clock belong to them.
    """
    if not len(frame):
        return ()
    ids = frame["id"].to_numpy(dtype=str)
    found = [*_schema(frame, fields)]
    for field in fields:
        source = next((c for c in (f"features.{field.name}", f"request.{field.name}") if c in frame), None)
        if source is None:
            found.append(QualityFinding("missing_column", field.name, len(frame), 1.0, f"{field.name} is in no row"))
        elif field.kind != "tensor":
            found += _column(frame[source], field, policy, (history or {}).get(field.name, ColumnHistory()), ids)
    found += _repeats(frame, policy, ids)
    found += _ages(frame, policy, ids)
    found += _clocks(frame, frame.head(0) if later is None else later)
    return tuple(found)


def finding(kind: str, column: str, rows: Mask, text: str, ids: NDArray[np.str_]) -> QualityFinding:
    """Return a finding about some rows; ``text`` follows the share."""
    share = float(rows.mean())
    told = f"{column or 'rows'}: {text} in {share:.1%} of rows"
    return QualityFinding(kind, column, int(rows.sum()), share, told, tuple(ids[rows][:_EXAMPLES].tolist()))


def _schema(frame: pd.DataFrame, fields: Sequence[Field]) -> Iterator[QualityFinding]:
    declared = {f.name for f in fields}
    for column in frame:
        part, _, name = str(column).partition(".")
        if part in ("request", "features") and name not in declared:
            rows = frame[column].notna().to_numpy()
            if rows.any():
                yield finding(
                    "unexpected_column", name, rows, "is not declared and is there", frame["id"].to_numpy(str)
                )


def _column(
    values: pd.Series[Any], field: Field, policy: QualityPolicy, history: ColumnHistory, ids: NDArray[np.str_]
) -> Iterator[QualityFinding]:
    null = values.isna().to_numpy() | (values == "").fillna(False).to_numpy(dtype=bool)
    if null.all():
        if history.null_rate < 1:
            yield finding("all_null", field.name, null, "no value", ids)
        return
    allowed = max(history.null_rate + _NULL_JUMP, policy.max_invalid) if field.nullable else policy.max_invalid
    if null.mean() > allowed:
        yield finding("nulls", field.name, null, f"no value (at most {allowed:.1%} expected)", ids)
    wrong, numbers = _types(values, field, null)
    if wrong.mean() > policy.max_invalid:
        example = str(values[wrong].iloc[0])[:40]
        yield finding("type_changed", field.name, wrong, f"no {field.kind} (such as {example!r})", ids)
    if numbers is not None:
        infinite = np.isinf(numbers)
        if infinite.any():
            yield finding("infinite", field.name, infinite, "infinite", ids)
        low = -np.inf if field.minimum is None else field.minimum
        high = np.inf if field.maximum is None else field.maximum
        out = np.isfinite(numbers) & ((numbers < low) | (numbers > high))
        if out.mean() > policy.max_invalid:
            yield finding("out_of_range", field.name, out, f"outside {low:g} to {high:g}", ids)
    if field.kind == "category":
        known = frozenset(field.choices) if field.choices is not None else history.values
        if known is not None:
            new = ~null & ~wrong & ~values.astype(str).isin(known).to_numpy()
            if new.mean() > policy.max_invalid:
                names = sorted(set(values[new].astype(str)))[:3]
                yield finding("new_category", field.name, new, f"a category never seen ({', '.join(names)})", ids)
    filled = ~null
    if filled.sum() >= _LEAST_FOR_CONSTANT and not history.constant and field.kind != "timestamp":
        distinct = values[filled].map(str).nunique()
        if distinct == 1:
            yield finding("constant", field.name, filled, f"one value ({values[filled].iloc[0]!s:.40})", ids)


def _types(values: pd.Series[Any], field: Field, null: Mask) -> tuple[Mask, NDArray[np.float64] | None]:
    """Return the rows whose value is not of the declared kind and, for numbers, the values."""
    if field.kind in ("float", "int"):
        scalars = values.map(lambda v: v if isinstance(v, int | float | np.number) else None)
        numbers = pd.to_numeric(scalars, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = np.isnan(numbers) & ~null
        if field.kind == "int":
            finite = np.isfinite(numbers)
            wrong |= finite & (np.where(finite, numbers, 0.0) % 1 != 0)
        return wrong, numbers
    if field.kind == "timestamp":
        times = pd.to_datetime(values.where(~null), utc=True, errors="coerce", format="ISO8601")
        return times.isna().to_numpy() & ~null, None
    if field.kind in ("category", "text"):
        return ~values.map(lambda v: isinstance(v, str)).to_numpy(dtype=bool) & ~null, None
    return np.zeros(len(values), dtype=bool), None


def _repeats(frame: pd.DataFrame, policy: QualityPolicy, ids: NDArray[np.str_]) -> Iterator[QualityFinding]:
    """Rows that repeat another's request and time under another id: counted twice, they would weigh twice."""
    names = [c for c in frame if str(c).startswith("request.")]
    if not names:
        return
    keys = frame[[*names, "time"]].astype(str)
    again = keys.duplicated().to_numpy()
    if again.mean() > policy.max_duplicates:
        yield finding("duplicates", "", again, "repeats of another request", ids)


def _ages(frame: pd.DataFrame, policy: QualityPolicy, ids: NDArray[np.str_]) -> Iterator[QualityFinding]:
    """Rows that the service marked, because a view's features were past their SLA when they were served."""
    for column in frame:
        if str(column).startswith("stale."):
            old = frame[column].notna().to_numpy()
            if old.mean() > policy.max_invalid:
                yield finding("stale", str(column).removeprefix("stale."), old, "features past their SLA", ids)


def _clocks(frame: pd.DataFrame, later: pd.DataFrame) -> Iterator[QualityFinding]:
    """Event times ahead of the log's clock; where all are, time is simulated and no clock is wrong."""
    rows = pd.concat([part[["id", "time", "received_at"]] for part in (frame, received_with(frame, later))])
    ahead = ahead_of_clock(rows)
    if ahead.any():
        ids = rows["id"].to_numpy(dtype=str)
        yield finding("clock_skew", "", ahead, "an event time ahead of the log's clock", ids)
