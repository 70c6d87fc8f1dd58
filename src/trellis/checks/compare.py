"""Comparing batches, and judging an answer by the declaration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, Field, ModelSpec

# Two ways to the same answer may add in another order: BLAS picks kernels by the number of rows. Float32 keeps about
# seven digits, so sums of a few hundred terms agree to about 1e-5; a real fault is orders of magnitude larger.
RTOL, ATOL = 1e-5, 1e-6

# An exported graph computes in float32 what the original may compute in float64, with other exp and tanh.
ONNX_RTOL, ONNX_ATOL = 1e-4, 1e-5

SUM_ATOL = 1e-4  # how far class probabilities may be from adding up to 1

_KINDS = {"float": "f", "int": "iu", "bool": "b", "category": "UO", "text": "UO", "timestamp": "M", "tensor": "f"}


def identical(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Return whether two arrays agree in dtype, shape and every value, NaN being equal to NaN."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return all(a is b or a == b or (a != a and b != b) for a, b in zip(left.ravel(), right.ravel(), strict=True))
    return left.tobytes() == right.tobytes()


def difference(left: Batch, right: Batch, *, rtol: float = RTOL, atol: float = ATOL) -> tuple[str | None, float]:
    """Compare two answers column by column.

    Returns:
        What differs beyond the tolerance ``atol + rtol * |right|``, or None; and the largest absolute difference.
    """
    if set(left) != set(right):
        return f"columns {sorted(left)} against {sorted(right)}", float("inf")
    worst = 0.0
    for name in left:
        a, b = np.asarray(left[name]), np.asarray(right[name])
        if a.shape != b.shape:
            return f"{name}: shape {a.shape} against {b.shape}", float("inf")
        if a.size == 0:
            continue
        if a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
            if not bool(np.all(a == b)):
                return f"{name}: other values", float("inf")
            continue
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        gap = np.abs(a64 - b64)
        gap = np.where(np.isnan(a64) & np.isnan(b64), 0.0, gap)
        largest = float(np.max(np.nan_to_num(gap, nan=np.inf)))
        worst = max(worst, largest)
        if not bool(np.all(np.nan_to_num(gap, nan=np.inf) <= atol + rtol * np.abs(np.nan_to_num(b64)))):
            row = int(np.argmax(np.nan_to_num(gap, nan=np.inf).reshape(len(gap), -1).max(axis=1)))
            return f"{name}: row {row} differs by {largest:.3g} (allowed {atol:g} + {rtol:g} of the value)", worst
    return None, worst


def answer_problem(spec: ModelSpec, answer: object, rows: int) -> str | None:
    """Return what is wrong with a predictor's answer to ``rows`` rows, or None.

    Looked at: the columns' names, first axis, dtype, shape, finiteness, declared range; probabilities in 0–1, and class
    probabilities that add up to 1.
    """
    if not hasattr(answer, "keys"):
        return f"a {type(answer).__name__} is no batch"
    batch: Batch = answer  # type: ignore[assignment]
    declared = [field.name for field in spec.outputs]
    if set(batch) != set(declared):
        return f"returns the columns {sorted(batch)}, declared are {sorted(declared)}"
    for field in spec.outputs:
        problem = _column_problem(field, batch[field.name], rows)
        if problem:
            return f"{field.name}: {problem}"
    score = np.asarray(batch[spec.score.name], dtype=np.float64) if rows else np.empty(0)
    if spec.task == "regression" or not rows:
        return None
    if float(score.min()) < 0 or float(score.max()) > 1:
        return f"{spec.score.name}: probabilities from {score.min():.4g} to {score.max():.4g} leave 0–1"
    if spec.task == "multiclass":
        if score.shape != (rows, len(spec.target.classes)):
            return f"{spec.score.name}: shape {score.shape} for {len(spec.target.classes)} classes"
        worst = float(np.abs(score.sum(axis=1) - 1).max())
        if worst > SUM_ATOL:
            return (
                f"{spec.score.name}: a row's probabilities add up to 1 only within {worst:.3g} (allowed {SUM_ATOL:g})"
            )
    return None


def _column_problem(field: Field, column: object, rows: int) -> str | None:
    if not isinstance(column, np.ndarray):
        return f"a {type(column).__name__} instead of a numpy array"
    if column.dtype.kind not in _KINDS[field.kind]:
        return f"dtype {column.dtype} for a declared {field.kind}"
    if column.shape != (rows, *field.shape):
        return f"shape {column.shape}, declared is {(rows, *field.shape)}"
    if column.dtype.kind not in "fiu" or not rows:
        return None
    if not field.nullable and not bool(np.all(np.isfinite(column))):
        return f"{int(np.sum(~np.isfinite(column)))} values are not finite"
    low, high = float(np.nanmin(column)), float(np.nanmax(column))
    if field.minimum is not None and low < field.minimum:
        return f"{low:.6g} is below the declared minimum {field.minimum:g}"
    if field.maximum is not None and high > field.maximum:
        return f"{high:.6g} is above the declared maximum {field.maximum:g}"
    return None
