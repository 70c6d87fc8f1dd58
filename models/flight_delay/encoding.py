"""From a batch to the two matrices every recipe works on: numbers as float32, categories as small whole numbers.

Numbers are float32 from the start. In float64 a value can fall on the other side of a tree's threshold than it does in
the exported graph, which knows only float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trellis.contract import Batch
from trellis.errors import ContractError

from .spec import SPEC

CATEGORIES = tuple(name for name in SPEC.inputs if SPEC.fields[name].kind in ("category", "text"))
NUMBERS = tuple(name for name in SPEC.inputs if name not in CATEGORIES)
UNKNOWN = 0


@dataclass(frozen=True)
class Encoding:
    """How categories become numbers.

    Attributes:
        codes: Category column to value to code; codes start at 1, and 0 is everything never seen, and missing.
    """

    codes: Mapping[str, Mapping[str, int]]

    @classmethod
    def fit(cls, batch: Batch, target: np.ndarray, *, strength: float = 50.0) -> Encoding:
        """Give every value of the training rows a code, in the order of its smoothed rate of positives.

        Ordered so, one split of a tree can part any two groups of values that differ in risk (Fisher 1958; Breiman et
        al. 1984, section 4.2.2, for a binary target); ties are broken by name.

        Args:
            batch: Training columns.
            target: 0/1, shape (n,).
            strength: How many rows of the overall rate are added to every value.
        """
        overall = float(target.mean()) if len(target) else 0.0
        codes = {}
        for name in CATEGORIES:
            values, inverse = np.unique(_strings(batch, name), return_inverse=True)
            count = np.bincount(inverse, minlength=len(values))
            rate = (np.bincount(inverse, target, len(values)) + strength * overall) / (count + strength)
            order = np.lexsort((values, rate))
            codes[name] = {str(values[i]): rank for rank, i in enumerate(order, start=1) if values[i] != ""}
        return cls(codes)

    def sizes(self) -> list[int]:
        """Return the number of codes of each category, the unknown one included."""
        return [max(codes.values(), default=UNKNOWN) + 1 for codes in self.codes.values()]

    def categories(self, batch: Batch) -> np.ndarray:
        """Return the codes, int64 (n, number of categories)."""
        columns = []
        for name in CATEGORIES:
            known = self.codes[name]
            columns.append([known.get(value, UNKNOWN) for value in _values(batch, name).tolist()])
        return np.array(columns, dtype=np.int64).T.reshape(-1, len(CATEGORIES))

    def numbers(self, batch: Batch) -> np.ndarray:
        """Return the numbers, float32 (n, number of numbers), NaN where missing.

        Raises:
            ContractError: A column is missing, or does not hold numbers.
        """
        return np.stack([_floats(batch, name) for name in NUMBERS], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {"codes": {name: dict(codes) for name, codes in self.codes.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Encoding:
        """Read back ``to_json``."""
        return cls({name: {str(k): int(v) for k, v in data["codes"][name].items()} for name in CATEGORIES})


def days(time: np.ndarray | None, rows: int) -> np.ndarray:
    """Return each row's day as a whole number, to keep days together in splits; without time, a row is a day."""
    return np.arange(rows) if time is None else time.astype("datetime64[D]").astype(np.int64)


def halves(time: np.ndarray | None, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Split validation rows into those that stop the training and those that calibrate, as two index arrays.

    Every other day each: both cover the whole season, and the flights of one storm are on one side only. Where that
    leaves one side empty (a sample of a single day), rows take turns instead.
    """
    day = days(time, rows)
    even = (day - day.min(initial=0)) % 2 == 0
    if even.all():
        even = np.arange(rows) % 2 == 0
    return np.flatnonzero(even), np.flatnonzero(~even)


def names_of(columns: Sequence[str]) -> str:
    """Return column names for an error message."""
    return ", ".join(columns)


def _values(batch: Batch, name: str) -> np.ndarray:
    if name not in batch:
        raise ContractError(
            f"The flight model needs {name!r}, which the batch lacks.", remedy=f"Give {names_of(SPEC.inputs)}."
        )
    column = np.asarray(batch[name])
    if column.ndim != 1:
        raise ContractError(f"{name!r} has shape {column.shape}, not one value per row.")
    return column


def _strings(batch: Batch, name: str) -> np.ndarray:
    column = _values(batch, name)
    return np.array(["" if value is None else str(value) for value in column.tolist()], dtype=np.str_)


def _floats(batch: Batch, name: str) -> np.ndarray:
    column = _values(batch, name)
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which both recipes and their graphs can order
            return column.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{name!r} holds {column.dtype} values that are no numbers: {error}.") from error
