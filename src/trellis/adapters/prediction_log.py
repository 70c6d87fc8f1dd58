"""The prediction log, the shadow log and the label log: who writes which, and how they are read.

Every writer owns its segment files (``<home>/predictions/<model>/…jsonl``), see ``append_log``. Reading keeps what it
has parsed in ``.parsed/`` beside the segments (see ``log_frames``).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from trellis.adapters.append_log import AppendLog
from trellis.adapters.log_frames import read_frame


class PredictionLog(AppendLog):
    """The log of one model's answers, under ``<home>/predictions/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "model", "version", "variant", "revision", "time", "received_at", "unit", "request": {…},
    "features": {…}, "feature_times": {view: RFC 3339 or null}, "overrides": [names], "outputs": {…}, "latency_ms"}``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "predictions" / model, **options)


class ShadowLog(AppendLog):
    """The log of what one model's shadows answered, under ``<home>/shadows/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "model", "version" (the shadow's), "primary_version", "revision", "time", "received_at",
    "unit", "primary": {output: value}, "outputs": {output: value}, "primary_latency_ms", "memory_mb"
    (that loading the version took)}``, where ``id`` is the prediction's; one that the shadow could not score has
    ``error`` and empty ``outputs``, and one that it scored alone, as some are for the sake of it, has ``score_ms``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "shadows" / model, **options)


class LabelLog(AppendLog):
    """The log of one model's truths, under ``<home>/labels/<model>/``; arguments as for ``AppendLog``.

    A record is ``{"id", "value", "observed_at", "received_at"}``.
    """

    def __init__(self, home: Path, model: str, **options: Any) -> None:
        super().__init__(home / "labels" / model, **options)


def read_predictions(
    home: Path, model: str, since: datetime | None = None, until: datetime | None = None
) -> pd.DataFrame:
    """Read a model's predictions as a flat frame, in order of event time.

    Nested parts become columns ``request.x``, ``features.x``, ``feature_times.view`` and ``outputs.x``; ``time`` and
    ``received_at`` are ``datetime64[ns, UTC]``. A prediction id that several writers logged (a retry that reached
    another process) is kept once, the earliest received.

    Args:
        home: Trellis's home.
        model: The model.
        since: Earliest event time, inclusive.
        until: Latest event time, exclusive.

    Returns:
        One row per prediction; ``attrs`` has ``torn`` (last lines cut off by a crash or still being written) and
        ``duplicates``. Empty, with the fixed columns, where nothing was logged.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    fixed = ("id", "model", "version", "variant", "revision", "time", "received_at", "unit", "overrides", "latency_ms")
    frame = read_frame(home / "predictions" / model, fixed)
    frame = _distinct(frame, ["id"])
    keep = pd.Series(True, index=frame.index)
    if since is not None:
        keep &= frame["time"] >= pd.Timestamp(since)
    if until is not None:
        keep &= frame["time"] < pd.Timestamp(until)
    attrs = frame.attrs
    frame = frame[keep].sort_values(["time", "id"], kind="stable", ignore_index=True)
    frame.attrs = attrs
    return frame


def read_shadows(home: Path, model: str) -> pd.DataFrame:
    """Read what a model's shadows answered, paired with the primary's answers, in the order of event time.

    Returns:
        One row per prediction and shadow version, with ``primary.x`` beside ``outputs.x``; ``attrs`` as for
        ``read_predictions``.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    fixed = ("id", "model", "version", "primary_version", "revision", "time", "received_at", "unit", "error")
    frame = _distinct(read_frame(home / "shadows" / model, fixed), ["id", "version"])
    attrs = frame.attrs
    frame = frame.sort_values(["time", "id"], kind="stable", ignore_index=True)
    frame.attrs = attrs
    return frame


def read_labels(home: Path, model: str) -> pd.DataFrame:
    """Read a model's labels in the order of their arrival; one that came twice unchanged is kept once.

    A revised label (same id, other value or time of observation) stays, after the earlier one.

    Returns:
        Columns ``id``, ``value``, ``observed_at`` and ``received_at``; ``attrs`` as for ``read_predictions``.

    Raises:
        DataError: A line other than a segment's last is damaged.
    """
    frame = read_frame(home / "labels" / model, ("id", "value", "observed_at", "received_at"))
    return _distinct(frame, ["id", "value", "observed_at"])


def _distinct(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    attrs = dict(frame.attrs)
    # Values may be unhashable only in damaged input; ids and labels are scalars.
    ordered = frame.sort_values("received_at", kind="stable", ignore_index=True)
    kept = ordered.drop_duplicates(names, ignore_index=True)
    kept.attrs = {**attrs, "duplicates": len(ordered) - len(kept)}
    return kept
