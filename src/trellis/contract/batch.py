"""A batch is named columns of numpy arrays; the first axis of each is rows.

It fits tables, images, text and sequences, costs nothing on a one-row request, and maps one to one to ONNX inputs and
Open Inference Protocol tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.errors import ContractError

Batch = Mapping[str, NDArray[Any]]


def row_count(batch: Batch) -> int:
    """Return the number of rows of ``batch``.

    Raises:
        ContractError: The batch is empty of columns, or its columns differ in length.
    """
    found = set(map(len, batch.values()))
    if not found:
        raise ContractError("A batch has no columns.", remedy="Give at least one named column.")
    if len(found) != 1:
        lengths = {name: len(column) for name, column in batch.items()}
        raise ContractError(f"The columns of a batch differ in length: {lengths}.", remedy="Give each the same rows.")
    return found.pop()


def take(batch: Batch, rows: NDArray[Any] | slice) -> dict[str, NDArray[Any]]:
    """Return the rows that an index array, a mask or a slice chooses."""
    return {name: column[rows] for name, column in batch.items()}


def select(batch: Batch, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the columns ``names`` in that order.

    Raises:
        ContractError: A column is not there.
    """
    missing = [name for name in names if name not in batch]
    if missing:
        raise ContractError(f"The batch lacks the columns {missing}.", remedy=f"It has {sorted(batch)}.")
    return {name: batch[name] for name in names}


def concat(batches: Sequence[Batch]) -> dict[str, NDArray[Any]]:
    """Stack batches of the same columns, in order.

    Raises:
        ContractError: There is none, or their columns differ.
    """
    if not batches or any(set(b) != set(batches[0]) for b in batches):
        raise ContractError("Only batches with the same columns can be stacked.", remedy="Select the columns first.")
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


@dataclass(frozen=True)
class Dataset:
    """Rows with their truth: what a model is trained and judged on.

    Attributes:
        columns: The model's request fields and features (more columns are allowed), each of ``n`` rows.
        target: Truth, shape ``(n,)``: 0/1 for binary, class index for multiclass, a float for regression.
        row_id: Stable unique id of every row, shape ``(n,)``, unicode.
        time: When the prediction would be made, ``datetime64[us]`` in UTC, shape ``(n,)``; None for rows without time.
        known: When the truth became known, same form; None where it is known at once.
    """

    columns: Batch
    target: NDArray[Any]
    row_id: NDArray[np.str_]
    time: NDArray[np.datetime64] | None = None
    known: NDArray[np.datetime64] | None = None

    def __post_init__(self) -> None:
        """Refuse a dataset whose parts do not line up."""
        rows = row_count(self.columns)
        for name in ("target", "row_id", "time", "known"):
            part = getattr(self, name)
            if part is not None and len(part) != rows:
                raise ContractError(f"A dataset's {name} has {len(part)} rows, its columns {rows}.")

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[Any] | slice) -> Dataset:
        """Return the rows that an index array, a mask or a slice chooses."""
        return Dataset(
            columns=take(self.columns, rows),
            target=self.target[rows],
            row_id=self.row_id[rows],
            time=None if self.time is None else self.time[rows],
            known=None if self.known is None else self.known[rows],
        )

    def frame(self) -> pd.DataFrame:
        """Return the one-dimensional columns with ``target``, ``row_id``, ``time`` and ``known`` as a DataFrame."""
        data = {name: column for name, column in self.columns.items() if column.ndim == 1}
        frame = pd.DataFrame({**data, "target": self.target, "row_id": self.row_id})
        for name, part in (("time", self.time), ("known", self.known)):
            if part is not None:
                frame[name] = part
        return frame
