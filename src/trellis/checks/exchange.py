"""Batches as files, for the fresh interpreter: numbers as npz, Python objects as JSON, never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, Dataset


def write_batch(path: Path, batch: Batch) -> None:
    """Write ``path.npz`` and, for columns of Python strings and None, ``path.json``."""
    objects = {name: column.tolist() for name, column in batch.items() if column.dtype == object}
    arrays: dict[str, Any] = {name: column for name, column in batch.items() if column.dtype != object}
    path.with_suffix(".json").write_text(json.dumps({"order": list(batch), "objects": objects}))
    np.savez(path.with_suffix(".npz"), **{f"c_{name}": column for name, column in arrays.items()})


def read_batch(path: Path) -> dict[str, NDArray[Any]]:
    """Read back what ``write_batch`` wrote, columns in their order."""
    text = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        columns = {key.removeprefix("c_"): arrays[key] for key in arrays.files}
    for name, values in text["objects"].items():
        columns[name] = np.empty(len(values), dtype=object)
        columns[name][:] = values
    return {name: columns[name] for name in text["order"]}


def write_dataset(path: Path, data: Dataset) -> None:
    """Write a dataset as one batch, its truth beside its columns."""
    parts = {"target": data.target, "row_id": data.row_id, "time": data.time, "known": data.known}
    truth = {f"truth_{name}": np.asarray(part) for name, part in parts.items() if part is not None}
    write_batch(path, {**{f"column_{name}": column for name, column in data.columns.items()}, **truth})


def read_dataset(path: Path) -> Dataset:
    """Read back what ``write_dataset`` wrote."""
    batch = read_batch(path)
    columns = {name.removeprefix("column_"): c for name, c in batch.items() if name.startswith("column_")}
    return Dataset(
        columns=columns,
        target=batch["truth_target"],
        row_id=batch["truth_row_id"],
        time=batch.get("truth_time"),
        known=batch.get("truth_known"),
    )
