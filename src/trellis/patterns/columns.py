"""From Arrow columns to what a predictor sees, held to the declaration as the service holds a request to it.

A null and a NaN are both a missing value, as pandas writes them; an integer with missing values may come as a float.
Timestamps without a zone are UTC, as everywhere in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trellis.contract import Field
from trellis.errors import RequestError

_EARLIEST, _LATEST = np.datetime64("1900-01-01"), np.datetime64("2200-01-01")
_INT64 = 2.0**63


@dataclass(frozen=True)
class Column:
    """One column of some rows.

    Attributes:
        values: As a predictor sees them: float64, int64 (float64 where values are missing), bool, unicode,
            ``datetime64[us]``, or float32 of the declared shape. A refused row holds a stand-in.
        refused: Row to the reason why its value is refused; each row once.
    """

    values: NDArray[Any]
    refused: dict[int, str]


def require_type(field: Field, kind: pa.DataType) -> None:
    """Refuse a column whose type cannot hold the field.

    Raises:
        RequestError: Naming the field, the type and what it should be.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    match field.kind:
        case "float" | "int":
            fits, wanted = number, "numbers"
        case "bool":
            fits, wanted = pa.types.is_boolean(kind), "booleans"
        case "timestamp":
            fits, wanted = pa.types.is_timestamp(kind), "timestamps"
        case "tensor":
            depth, inner = 0, kind
            while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
                depth, inner = depth + 1, inner.value_type
            fits = depth in (1, len(field.shape)) and (pa.types.is_integer(inner) or pa.types.is_floating(inner))
            wanted = f"lists of {math.prod(field.shape)} numbers, or nested as {list(field.shape)}"
        case _:
            fits, wanted = pa.types.is_string(kind) or pa.types.is_large_string(kind), "strings"
    if not fits:
        raise RequestError(field.name, f"a column of {kind} cannot hold it", remedy=f"Write it as {wanted}.")


def read_column(field: Field, array: pa.ChunkedArray | pa.Array, *, may_miss: bool) -> Column:
    """Turn an Arrow column of the right type into a predictor's column, and name what the declaration refuses.

    Args:
        field: Its declaration.
        array: n rows.
        may_miss: Whether a missing value is allowed.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    refused: dict[int, str] = {}
    match field.kind:
        case "float":
            values, missing = _floats(array)
            _refuse(refused, np.isinf(values), "should be a finite number")
        case "int":
            values, missing = _ints(array, refused)
        case "bool":
            missing = np.asarray(array.is_null())
            values = np.asarray(array.cast(pa.bool_()).fill_null(False))
            values = np.where(missing, np.nan, values) if missing.any() else values
        case "timestamp":
            values, missing = _moments(array, refused)
        case "tensor":
            values, missing = _tensors(field, array, refused)
        case _:
            values, missing = _strings(field, array, refused)
    if field.kind in ("float", "int"):
        for bound, wrong, word in (
            (field.minimum, np.less, "greater than or equal to"),
            (field.maximum, np.greater, "less than or equal to"),
        ):
            if bound is not None:
                _refuse(refused, wrong(values, bound), f"should be {word} {bound:g}")
    if not may_miss:
        for row in np.flatnonzero(missing).tolist():
            refused[row] = "is missing"
    return Column(values, refused)


def _refuse(refused: dict[int, str], rows: NDArray[np.bool_], reason: str) -> None:
    for row in np.flatnonzero(rows).tolist():
        refused.setdefault(row, reason)


def _floats(array: pa.Array) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    values = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    return values, np.isnan(values)


def _ints(array: pa.Array, refused: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    if pa.types.is_floating(array.type) or pa.types.is_null(array.type):
        values, missing = _floats(array)
        _refuse(refused, ~missing & (np.floor(values) != values), "should be a whole number")
        _refuse(refused, ~missing & ~((values >= -_INT64) & (values < _INT64)), "should be a whole number of 64 bits")
        if missing.any():
            return values, missing
        values[list(refused)] = 0
        return values.astype(np.int64), missing
    missing = np.asarray(array.is_null())
    whole = np.asarray(array.fill_null(0))
    _refuse(refused, ~missing & (whole > np.iinfo(np.int64).max), "should be a whole number of 64 bits")
    whole = whole.astype(np.int64)
    return (np.where(missing, np.nan, whole) if missing.any() else whole), missing


def _moments(array: pa.Array, refused: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    if pa.types.is_null(array.type):
        array = array.cast(pa.timestamp("us"))
    values = np.array(array.cast(pa.timestamp(array.type.unit)).to_numpy(zero_copy_only=False))  # a copy of our own
    # Compared in the column's own unit, in which nothing can overflow.
    out = (values < _EARLIEST.astype(values.dtype)) | (values >= _LATEST.astype(values.dtype))
    _refuse(refused, out, "should lie between the years 1900 and 2200")
    missing = np.isnat(values)
    values[out] = np.datetime64("NaT")
    return values.astype("datetime64[us]"), missing


def _strings(field: Field, array: pa.Array, refused: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    array = array.cast(pa.large_string()).fill_null("")
    missing = np.asarray(pc.equal(array, ""))
    if field.choices is not None:
        known = np.asarray(pc.is_in(array, pa.array(field.choices, pa.large_string())))
        shown = ", ".join(repr(choice) for choice in field.choices[:20])
        _refuse(refused, ~known & ~missing, f"should be one of {shown}")
    else:
        long = np.asarray(pc.greater(pc.utf8_length(array), field.max_length))
        _refuse(refused, long, f"should have at most {field.max_length} characters")
    if refused:
        # A stand-in keeps one absurdly long string from widening the whole column.
        good = np.ones(len(array), np.bool_)
        good[list(refused)] = False
        array = pc.if_else(pa.array(good), array, pa.scalar("", pa.large_string()))
    return np.asarray(array).astype(np.str_), missing


def _tensors(field: Field, array: pa.Array, refused: dict[int, str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    sizes = field.shape
    if pa.types.is_null(array.type):
        return np.full((len(array), *sizes), np.nan, np.float32), np.ones(len(array), np.bool_)
    missing = np.asarray(array.is_null())
    nested = len(sizes) > 1 and not pa.types.is_primitive(array.type.value_type)
    good, values = _unnest(array, sizes if nested else (math.prod(sizes),))
    values = values.reshape(len(array), *sizes)
    _refuse(refused, ~good & ~missing, f"should hold {math.prod(sizes)} finite numbers in the shape {list(sizes)}")
    rows = values.reshape(len(array), -1)
    for bound, wrong, word in ((field.minimum, np.less, "at least"), (field.maximum, np.greater, "at most")):
        if bound is not None:
            _refuse(refused, wrong(rows, bound).any(axis=1), f"should hold numbers of {word} {bound:g}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32), missing


def _unnest(array: pa.Array, sizes: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which rows have the shape ``sizes`` and finite numbers, and all rows' numbers, NaN where they have not."""
    if not sizes:
        values, _ = _floats(array)
        return np.isfinite(values), values
    fits = np.asarray(pc.equal(pc.list_value_length(array), sizes[0]).fill_null(False))
    inner_good, inner = _unnest(array.filter(pa.array(fits)).flatten(), sizes[1:])
    values = np.full((len(array), *sizes), np.nan)
    values[fits] = inner.reshape(-1, *sizes)
    good = fits.copy()
    good[fits] = inner_good.reshape(-1, sizes[0]).all(axis=1)
    return good, values
