"""Upstream faults: the world is as it was, what arrives of it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.drift.simulate.change import Array, Change
from trellis.drift.summary import texts
from trellis.errors import DataError

_HOURS_OF_DAY = 24


def converted(values: NDArray[Any], change: Change, hit: NDArray[np.bool_]) -> NDArray[Any]:
    """Turn the rows ``hit`` into the other unit; integers become floats.

    Raises:
        DataError: The column holds no numbers.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(
            f"A column of {values.dtype} has no unit to change.", where=change.columns, remedy="Name a number."
        )
    result = values.astype(np.float64 if values.dtype.kind in "iu" else values.dtype)
    result[hit] = result[hit] * change.unit.factor + change.unit.offset
    return result


def emptied(values: NDArray[Any], hit: NDArray[np.bool_]) -> NDArray[Any]:
    """Take the values of the rows ``hit`` away: NaN, NaT or None, whatever the type calls missing."""
    kind = values.dtype.kind
    if kind == "M":
        result: NDArray[Any] = values.copy()
        result[hit] = np.datetime64("NaT")
    elif kind in "fiub":
        result = values.astype(np.float64 if kind in "iub" else values.dtype)
        result[hit] = np.nan
    else:
        result = values.astype(object)
        result[hit] = None
    return result


class Feed:
    """What a feed showed last before it stopped, by entity."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._last: dict[tuple[str, Any], tuple[Any, float]] = {}

    def learn(self, columns: dict[str, NDArray[Any]], at: Array, healthy: NDArray[np.bool_]) -> None:
        """Remember the newest healthy value of every entity; rows are in the order of time."""
        rows = np.flatnonzero(healthy)
        if not len(rows):
            return
        keys = self._keys(columns, rows)
        newest = pd.Series(rows, index=keys).groupby(level=0).last()
        for name in self._change.columns:
            for key, row in newest.items():
                self._last[name, key] = (columns[name][row], float(at[row]))

    def frozen(
        self, name: str, columns: dict[str, NDArray[Any]], at: Array, hit: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], Array]:
        """Return the column with the rows ``hit`` as last seen, and its age in hours by row (0 where it is fresh).

        An entity never seen before has no value to go stale: its rows are left as they are.
        """
        result, age = columns[name].copy(), np.zeros(len(at))
        for row, key in zip(np.flatnonzero(hit), self._keys(columns, np.flatnonzero(hit)), strict=True):
            if (name, key) in self._last:
                result[row], seen = self._last[name, key]
                age[row] = (at[row] - seen) / 3600
        return result, age

    def _keys(self, columns: dict[str, NDArray[Any]], rows: NDArray[Any]) -> NDArray[Any]:
        key = self._change.key
        return np.zeros(len(rows), dtype=np.int64) if key is None else columns[key][rows]


class Codebook:
    """New codes for a share of a column's categories, or for all that a mapping names."""

    def __init__(self, change: Change, values: NDArray[Any], rng: np.random.Generator) -> None:
        self._number = values.dtype.kind in "iu"
        if change.mapping:
            self._codes = dict(change.mapping)
            return
        counts = pd.Series(values).dropna().value_counts()
        known = [v for v, _ in sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))]
        chosen = rng.permutation(len(known))[: max(1, round(change.size * len(known)))] if known else ()
        top = int(np.max(values)) + 1 if self._number and known else 0
        self._codes = {known[i]: top + int(i) if self._number else f"{known[i]}_{i:02d}" for i in chosen}

    def recoded(self, values: NDArray[Any], hit: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the column with the rows ``hit`` in the new codes."""
        codes = pd.Series(values[hit]).map(self._codes)
        new = codes.where(codes.notna(), pd.Series(values[hit])).to_numpy()
        if self._number and codes.dropna().map(lambda c: isinstance(c, (int, np.integer))).all():
            result = values.copy()
            result[hit] = new.astype(values.dtype)
            return result
        result = values.astype(object)
        result[hit] = new
        return result


def zoned(values: NDArray[Any], hours: float, hit: NDArray[np.bool_]) -> NDArray[Any]:
    """Shift the times of the rows ``hit``; numbers are hours of a day and wrap at 24, texts are RFC 3339 times.

    Raises:
        DataError: The column holds neither.
    """
    result = values.copy()
    if values.dtype.kind == "M":
        result[hit] = values[hit] + np.timedelta64(round(hours * 3_600_000_000), "us")
    elif values.dtype.kind in "fiu":
        result[hit] = (values[hit] + hours) % _HOURS_OF_DAY
    else:
        stamps = pd.to_datetime(texts(values[hit]), errors="coerce", utc=True, format="ISO8601")
        if stamps.isna().any():
            raise DataError("A time-zone shift needs times.", remedy="Name a column of times or of hours of a day.")
        result = values.astype(object)
        moved = (stamps + pd.Timedelta(hours=hours)).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        result[hit] = moved.to_numpy(dtype=object)
    return result
