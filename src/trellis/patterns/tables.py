"""A model's outputs as an Arrow table: one row per input row, nulls where a row was refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trellis.contract import Batch, Field, ModelSpec


def output_schema(spec: ModelSpec, kept: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of the output: the kept columns, then the model's outputs in their order.

    A type follows from the declaration alone, so that every part of an output has the same.
    """
    return pa.schema([*(pa.field(f.name, f.type) for f in kept), *(_field(f) for f in spec.outputs)])


def output_table(
    spec: ModelSpec, outputs: Batch, good: NDArray[np.bool_], kept: pa.Table, schema: pa.Schema
) -> pa.Table:
    """Spread the outputs of the good rows over all rows.

    Args:
        spec: The model's declaration.
        outputs: Its outputs for the good rows; empty where there are none.
        good: Which of all rows those are.
        kept: Columns carried over, all rows.
        schema: Of the output.
    """
    columns = [kept.column(i) for i in range(kept.num_columns)]
    for field in spec.outputs:
        kind = schema.field(field.name).type
        if field.shape:
            size = math.prod(field.shape)
            inner = np.asarray(outputs.get(field.name, np.empty(0)), np.float32).reshape(-1)
            ends = pa.array(np.concatenate([[0], np.cumsum(np.where(good, size, 0))]).astype(np.int32))
            columns.append(pa.ListArray.from_arrays(ends, pa.array(inner), type=kind, mask=pa.array(~good)))
            continue
        cells: NDArray[Any] = np.empty(len(good), object)
        if field.name in outputs:
            cells = np.zeros(len(good), outputs[field.name].dtype)
            cells[good] = outputs[field.name]
        columns.append(pa.array(cells, mask=~good).cast(kind) if field.name in outputs else pa.nulls(len(good), kind))
    return pa.table(columns, schema=schema)


def _field(field: Field) -> pa.Field:
    match field.kind:
        case "float":
            kind = pa.float64()
        case "int":
            kind = pa.int64()
        case "bool":
            kind = pa.bool_()
        case "timestamp":
            kind = pa.timestamp("us", "UTC")
        case "tensor":
            # Not of a fixed size: Arrow writes nulls among fixed-size lists to Parquet, and then cannot read them.
            kind = pa.list_(pa.float32())
        case _:
            kind = pa.string()
    # The shape as ``trellis.adapters.datasets`` notes it, so that both read each other's tensors.
    return pa.field(field.name, kind, metadata={b"trellis.shape": repr(field.shape).encode()} if field.shape else None)
