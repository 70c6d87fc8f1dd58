"""Realised performance: the metric series that late labels allow, by window and version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trellis.contract import ModelSpec
from trellis.drift import Window
from trellis.ledger import Cell, Join
from trellis.metrics import compute

_LEAST_LABELS = 50


@dataclass(frozen=True)
class Point:
    """Realised performance of one version in one window.

    Attributes:
        start: Start of the window, RFC 3339.
        end: Its end.
        version: The version that answered.
        predictions: Predictions made.
        labels: How many of them have a label that was known at the look.
        loss: Mean per-row loss over those; None without labels.
        metrics: The task's metrics on them; empty below 50 labels.
    """

    start: str
    end: str
    version: str
    predictions: int
    labels: int
    loss: float | None
    metrics: dict[str, float]


def realised(
    spec: ModelSpec,
    shown: Sequence[Window],
    cells: Sequence[Cell],
    place: NDArray[np.int64],
    versions: NDArray[np.str_],
    joined: Join,
    score: NDArray[np.float64],
) -> tuple[Point, ...]:
    """Turn the ledger's cells and rows into a series, oldest window first.

    Args:
        spec: The model's declaration; its task chooses the metrics.
        shown: The windows.
        cells: The ledger's sums; segments are left out.
        place: Window of every prediction, shape ``(n,)``.
        versions: Version of every prediction.
        joined: Label of every prediction.
        score: Score of every prediction.
    """
    points: list[Point] = []
    for cell in (c for c in cells if not c.segment):
        rows = (place == cell.window) & (versions == cell.version) & joined.known
        rows &= np.isfinite(score.reshape(len(score), -1)).all(axis=1)
        enough = cell.loss.rows >= _LEAST_LABELS
        metrics = compute(spec.task, joined.value[rows], score[rows]) if enough else {}
        window = shown[cell.window]
        loss = cell.loss.mean if cell.loss.rows else None
        points.append(Point(window.start, window.end, cell.version, cell.predictions, cell.loss.rows, loss, metrics))
    return tuple(points)
