"""How labelled rows are divided into training, validation and test."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from trellis.contract import Dataset
from trellis.errors import DataError

TRAIN_SHARE, VALIDATION_SHARE = 0.70, 0.15


@dataclass(frozen=True)
class Split:
    """The three parts; the plug-in sees the first two, the platform judges on the third."""

    train: Dataset
    validation: Dataset
    test: Dataset


def split(dataset: Dataset, *, gap_hours: float) -> Split:
    """Divide 70 : 15 : 15, by time where rows have one.

    With time, each part lies wholly after the one before, and the rows of the last ``gap_hours`` before a border are
    left out: their truth was not yet known when the next part began, and their neighbours would leak into it. Without
    time, every row's part is drawn from its id, so it stays in its part however the rows are ordered or added to.

    Raises:
        DataError: A part would be empty.
    """
    if dataset.time is None:
        positions = np.array([_position(row_id) for row_id in dataset.row_id])
        train = positions < TRAIN_SHARE
        validation = ~train & (positions < TRAIN_SHARE + VALIDATION_SHARE)
        parts = [np.flatnonzero(mask) for mask in (train, validation, ~train & ~validation)]
    else:
        order = np.argsort(dataset.time, kind="stable")
        times = dataset.time[order]
        borders = [times[int(len(times) * share)] for share in (TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE)]
        gap = np.timedelta64(int(gap_hours * 3600), "s")
        parts = [
            order[times < borders[0] - gap],
            order[(times >= borders[0]) & (times < borders[1] - gap)],
            order[times >= borders[1]],
        ]
    if any(len(part) == 0 for part in parts):
        raise DataError(
            f"{len(dataset)} rows cannot be split into training, validation and test.",
            remedy="Give more rows, or a longer period than the gap.",
        )
    return Split(*(dataset.take(part) for part in parts))


def _position(row_id: str) -> float:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "big") / 2**64
