"""Sums of losses and label coverage per window, version and segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, Task, row_count
from trellis.ledger.labels import Join
from trellis.metrics import row_loss
from trellis.sums import LossSums, loss_sums


@dataclass(frozen=True)
class Cell:
    """Performance of one version in one window, over all rows or one segment.

    Attributes:
        window: Index of the window.
        version: The version that answered.
        segment: Column name; empty for all rows.
        value: The segment's value; empty for all rows.
        predictions: Predictions made.
        loss: Sums over those whose label is known, by day.
    """

    window: int
    version: str
    segment: str
    value: str
    predictions: int
    loss: LossSums

    @property
    def coverage(self) -> float:
        """Share of predictions whose label is known."""
        return self.loss.rows / self.predictions if self.predictions else 0.0


def performance(
    predictions: Batch,
    joined: Join,
    *,
    task: Task,
    score: NDArray[Any],
    edges: NDArray[np.datetime64],
    segments: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[Cell, ...]:
    """Sum losses per window, version and segment.

    Args:
        predictions: ``time`` and ``version``, shape ``(n,)``, in the order given to ``join``.
        joined: Their labels.
        task: Chooses the loss (``trellis.metrics.row_loss``).
        score: The model's score, shape ``(n,)`` or ``(n, classes)``.
        edges: ``k + 1`` rising moments that bound ``k`` windows, end exclusive.
        segments: Columns by which to break down, shape ``(n,)`` each.

    Returns:
        Cells with at least one prediction: by window, version, then all rows before segments.
    """
    if not row_count(predictions):
        return ()
    times = np.asarray(predictions["time"]).astype("datetime64[us]")
    windows = np.searchsorted(np.asarray(edges).astype("datetime64[us]"), times, side="right") - 1
    inside = (windows >= 0) & (windows < len(edges) - 1)
    versions = np.asarray(predictions["version"]).astype(str)
    usable = joined.known & (np.isfinite(np.asarray(score, dtype=np.float64).reshape(len(times), -1)).all(axis=1))
    losses = np.full(len(times), np.nan)
    if usable.any():
        losses[usable] = row_loss(task, joined.value[usable], np.asarray(score)[usable])
    days = times.astype("datetime64[D]")
    columns = {"": np.full(len(times), ""), **{k: np.asarray(v).astype(str) for k, v in (segments or {}).items()}}
    cells: list[Cell] = []
    for window in np.unique(windows[inside]):
        for version in np.unique(versions[windows == window]):
            here = (windows == window) & (versions == version)
            for name, values in columns.items():
                for value in np.unique(values[here]):
                    rows = here & (values == value)
                    labelled = rows & usable
                    sums = loss_sums(losses[labelled], days[labelled])
                    cells.append(Cell(int(window), str(version), name, str(value), int(rows.sum()), sums))
    return tuple(cells)
