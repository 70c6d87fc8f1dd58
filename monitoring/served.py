"""The prediction log as batches: what was served, in the columns the model's declaration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.contract import ModelSpec
from trellis.ledger import moments

Columns = dict[str, NDArray[Any]]


def model_columns(frame: pd.DataFrame, spec: ModelSpec) -> Columns:
    """Return the model's fields out of a prediction frame: as used, so a feature wins over what a caller sent.

    A field that no row has is left out; the drift verdict reports it.
    """
    result: Columns = {}
    for name, item in spec.fields.items():
        source = next((c for c in (f"features.{name}", f"request.{name}") if c in frame), None)
        if source is None or (values := frame[source]).isna().all():
            continue
        result[name] = tensors(values) if item.kind == "tensor" else values.to_numpy()
    return result


def segments_of(frame: pd.DataFrame, spec: ModelSpec) -> Columns:
    """Return the columns by which quality is broken down, as strings."""
    return {
        name: frame[column].astype(str).to_numpy()
        for name in spec.segments
        for column in (f"request.{name}", f"features.{name}")
        if column in frame
    }


def tensors(values: pd.Series[Any]) -> NDArray[Any]:
    """Stack nested lists; rows of differing shapes stay objects, which count as no numbers."""
    try:
        return np.asarray(values.tolist(), dtype=np.float32)
    except (TypeError, ValueError):
        return values.to_numpy(dtype=object)


def ages_hours(frame: pd.DataFrame) -> Mapping[str, float]:
    """Return the median age of every view's features when they were used, in hours."""
    times = moments(frame["time"])
    result: dict[str, float] = {}
    for column in frame.columns:
        if column.startswith("feature_times."):
            used = moments(frame[column])
            known = ~np.isnat(used)
            if known.any():
                age = (times[known] - used[known]) / np.timedelta64(1, "h")
                result[column.removeprefix("feature_times.")] = float(np.median(age))
    return result
