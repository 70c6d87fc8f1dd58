"""Between JSON rows and the named columns that a predictor sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Field


def column(field: Field, values: Sequence[Any]) -> NDArray[Any]:
    """Turn one field's validated values into a column.

    A missing value becomes NaN for numbers, NaT for timestamps and the empty string for strings (unicode
    arrays); integers with a missing value become float64, as they do in pandas.
    """
    match field.kind:
        case "float":
            if None in values:
                return np.array([np.nan if v is None else v for v in values], np.float64)
            return np.array(values, np.float64)
        case "int":
            if None in values:
                return np.array([np.nan if v is None else v for v in values], np.float64)
            return np.array(values, np.int64)
        case "bool":
            if None in values:
                return np.array([np.nan if v is None else v for v in values], np.float64)
            return np.array(values, np.bool_)
        case "timestamp":
            return np.array([np.datetime64("NaT") if v is None else _naive_utc(v) for v in values], "datetime64[us]")
        case "tensor":
            missing = np.full(field.shape, np.nan, np.float32)
            return np.array([missing if v is None else v for v in values], np.float32).reshape(-1, *field.shape)
        case _:
            return np.array(["" if v is None else v for v in values], np.str_)


def batch(
    fields: Mapping[str, Field], names: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, NDArray[Any]]:
    """Turn rows into the columns ``names``."""
    if len(rows) == 1:
        row = rows[0]
        return {name: column(fields[name], (row.get(name),)) for name in names}
    return {name: column(fields[name], [row.get(name) for row in rows]) for name in names}


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which rows of a column have no value."""
    kind = values.dtype.kind
    if kind == "f":
        missing = np.isnan(values)
        return missing if missing.ndim == 1 else missing.reshape(len(values), -1).all(axis=1)
    if kind == "M":
        return np.isnat(values)
    if kind in "OU":
        # The last comparison finds NaN, which pandas puts where a string is missing.
        return np.array([v is None or v == "" or v != v for v in values], np.bool_)
    return np.zeros(len(values), np.bool_)


def to_json(value: Any) -> Any:
    """Turn a cell into a JSON value: NaN, NaT and missing into null, times into RFC 3339 in UTC."""
    if isinstance(value, float | np.floating):
        return None if value != value else float(value)
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else f"{np.datetime_as_string(value, unit='us').removesuffix('.000000')}Z"
    if isinstance(value, np.ndarray):
        return [to_json(part) for part in value] if value.dtype.kind == "f" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value


def rfc3339(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _naive_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)
