"""The prediction and label logs as batches: what was served, in the columns the model's declaration names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.contract import ModelSpec

Columns = dict[str, NDArray[Any]]


def read_served(home: Path, model: str, until: datetime) -> tuple[pd.DataFrame, Columns]:
    """Read predictions made and labels, as far as they are in the log.

    Returns:
        A frame of predictions before ``until`` in order of event time, and the columns of all labels.
    """
    labels = read_labels(home, model)
    columns: Columns = {
        "id": labels["id"].to_numpy(dtype=str) if len(labels) else np.empty(0, dtype=str),
        "value": labels["value"].to_numpy(),
        "observed_at": moments(labels["observed_at"]),
        "received_at": moments(labels["received_at"]),
    }
    return read_predictions(home, model, until=until), columns


def moments(values: pd.Series[Any]) -> NDArray[np.datetime64]:
    """Turn a column of times with a zone, or of RFC 3339 strings, into ``datetime64[us]`` in UTC."""
    stamps = pd.to_datetime(values, utc=True, errors="coerce", format="ISO8601")
    return stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")


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


def tensors(values: pd.Series[Any]) -> NDArray[Any]:
    """Stack nested lists; rows of differing shapes stay objects, which count as no numbers."""
    try:
        return np.asarray(values.tolist(), dtype=np.float32)
    except (TypeError, ValueError):
        return values.to_numpy(dtype=object)


def scores(frame: pd.DataFrame, spec: ModelSpec) -> NDArray[np.float64]:
    """Return the score of every prediction, ``(n,)`` or ``(n, classes)``; NaN where it is missing or malformed."""
    width = len(spec.target.classes) if spec.task == "multiclass" else 1
    column = f"outputs.{spec.score.name}"
    if column not in frame:
        return np.full((len(frame), width) if width > 1 else len(frame), np.nan)
    if width == 1:
        return pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64)
    rows = [r if isinstance(r, list) and len(r) == width else [np.nan] * width for r in frame[column]]
    return np.asarray(rows, dtype=np.float64).reshape(-1, width)


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
