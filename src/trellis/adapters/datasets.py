"""Datasets on disk: one Parquet file, scalar columns as columns and tensors as fixed-size lists."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trellis.contract import Dataset
from trellis.errors import CorruptSnapshotError, StorageError

# Names of the parts beside the model's columns; no declared field can begin with an underscore.
_PARTS = {"_target": "target", "_row_id": "row_id", "_time": "time", "_known": "known"}
_SHAPE = b"trellis.shape"


def save_dataset(dataset: Dataset, path: Path) -> str:
    """Write a dataset whole or not at all, the same rows always as the same bytes.

    Returns:
        SHA-256 of the file.

    Raises:
        StorageError: The disk refused the write.
    """
    columns: dict[str, NDArray[Any]] = dict(dataset.columns)
    columns |= {name: part for name, attr in _PARTS.items() if (part := getattr(dataset, attr)) is not None}
    fields, arrays = [], []
    for name, values in columns.items():
        array = _to_arrow(values)
        metadata = {_SHAPE: repr(values.shape[1:]).encode()} if values.ndim > 1 else None
        fields.append(pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(arrays, schema=pa.schema(fields)), partial, compression="zstd")
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"A dataset could not be written: {error.strerror or error}.",
            where=path,
            remedy="Free disk space and run again.",
        ) from error
    return digest


def load_dataset(path: Path) -> Dataset:
    """Read what ``save_dataset`` wrote.

    Raises:
        CorruptSnapshotError: The file is missing or no dataset.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise CorruptSnapshotError(
            f"A dataset cannot be read: {error}.", where=path, remedy="Delete it and run the flow again."
        ) from error
    columns = {field.name: _from_arrow(table.column(field.name), field) for field in table.schema}
    parts = {attr: columns.pop(name) for name, attr in _PARTS.items() if name in columns}
    return Dataset(columns=columns, **parts)


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    if values.ndim > 1:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    if values.dtype.kind == "U":
        return pa.array(values.astype(object), pa.string())
    return pa.array(values)


def _from_arrow(column: pa.ChunkedArray, field: pa.Field) -> NDArray[Any]:
    array = column.combine_chunks()
    if field.metadata and _SHAPE in field.metadata:
        shape = tuple(int(n) for n in field.metadata[_SHAPE].decode().strip("()").split(",") if n.strip())
        return np.asarray(array.flatten().to_numpy()).reshape(len(array), *shape)
    values = array.to_numpy(zero_copy_only=False)
    return values.astype(str) if field.name == "_row_id" else np.asarray(values)
