"""Odd batches: no rows, a row without a value, a row with a value never seen.

A native library may end the whole process on one of them (ONNX Runtime aborts on some graphs when there are no rows),
so the fresh interpreter tries each first; what kills it is reported and not tried again here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, Field, ModelSpec, take

ODD_ROW, FEW = 3, 8
Kind = Literal["empty", "missing", "unknown"]


@dataclass(frozen=True)
class OddBatch:
    """A batch that a predictor must survive.

    Attributes:
        kind: What is odd about it.
        label: The case in a few words.
        batch: Eight rows of which the fourth is odd, or none at all.
        must_answer: Whether a named error will not do.
        admitted: Whether the declaration lets a caller send it, so that it reaches what is served.
    """

    kind: Kind
    label: str
    batch: Batch
    must_answer: bool
    admitted: bool


def odd_batches(spec: ModelSpec, probe: Batch) -> list[OddBatch]:
    """Return every odd batch that the declaration admits, made from the first rows of ``probe``."""
    few = take(probe, slice(0, FEW))
    fields = [spec.fields[name] for name in spec.inputs]
    cases = [OddBatch("empty", "no rows", take(probe, slice(0, 0)), True, False)]
    nullable: dict[str, NDArray[Any]] = {}
    for f in fields:
        for label, column in _without_value(f, few[f.name]):
            cases.append(OddBatch("missing", f"{f.name} = {label}", {**few, f.name: column}, f.nullable, f.nullable))
            if f.nullable:
                nullable.setdefault(f.name, column)
    if len(nullable) > 1:
        cases.append(OddBatch("missing", "every nullable field missing", {**few, **nullable}, True, True))
    for f in fields:
        if f.kind in ("category", "text"):
            strange = ("never seen"[: f.max_length], "☃" * min(f.max_length, 40))
            cases += [
                OddBatch(
                    "unknown",
                    f"{f.name} = {s[:12]!r}",
                    {**few, f.name: _with(few[f.name], s)},
                    False,
                    f.choices is None,
                )
                for s in strange
            ]
    return cases


def _without_value(f: Field, column: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the column with no value in one row, in each way a value of this kind can be missing."""
    if f.kind in ("float", "int", "tensor"):
        odd = column.astype(column.dtype if column.dtype.kind == "f" else np.float64)
        odd[ODD_ROW] = np.nan
        yield "NaN", odd
    elif f.kind == "timestamp":
        odd = column.copy()
        odd[ODD_ROW] = np.datetime64("NaT")
        yield "NaT", odd
    elif f.kind in ("category", "text"):
        yield "None", _with(column, None)
        yield "''", _with(column, "")


def _with(column: NDArray[Any], value: str | None) -> NDArray[Any]:
    odd = column.astype(object)
    odd[ODD_ROW] = value
    return odd
