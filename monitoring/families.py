"""What a look asks of rows and labels beyond single columns; every answer is small and goes into the evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.performance import Standing
from monitoring.served import model_columns
from trellis.contract import ModelSpec, Task
from trellis.drift import HarmEstimate, Outcomes, Reference, SegmentLoss, Signal, joint_against_history, outcomes_like
from trellis.ledger import Cell, Labelled
from trellis.sums import merged

# Streaming detectors look at the newest labelled rows: KSWIN takes a second for so many.
_STREAM_ROWS = 20_000
_LEAST_ROWS = 300


def outcomes_of(
    reference: Reference, found: Labelled, version: str, place: NDArray[np.int64], count: int
) -> tuple[Outcomes, ...]:
    """Count a version's scores and labels in every window on its baseline's bins; nothing where that has none."""
    if reference.outcomes is None:
        return ()
    label = np.where(found.known.known, found.known.value, np.nan)
    own = np.where(found.rows["version"].to_numpy(dtype=str) == version, place, -1)
    day = found.times.astype("datetime64[D]")
    chosen = [own == i for i in range(count)]
    return tuple(outcomes_like(found.score[c], label[c], reference.outcomes, day[c]) for c in chosen)


def ties_of(frame: pd.DataFrame, spec: ModelSpec, place: NDArray[np.int64], count: int) -> tuple[Signal, ...]:
    """Hold the ties between columns in the judged window against those in each earlier one."""
    windows = []
    for i in range(count):
        rows = frame[place == i]
        batch = {n: v for n, v in model_columns(rows, spec).items() if n in spec.inputs} if len(rows) else {}
        windows.append(batch if len(rows) >= _LEAST_ROWS else {})
    *history, last = windows
    return joint_against_history([w for w in history if w], last) if last else ()


def segment_losses(cells: Sequence[Cell], version: str, count: int) -> tuple[SegmentLoss, ...]:
    """Pair every segment's losses in the newest labelled window with those of the windows before."""
    mine = [c for c in cells if c.version == version and c.segment and c.loss.rows]
    newest = max((c.window for c in mine), default=count)
    pairs = sorted({(c.segment, c.value) for c in mine if c.window == newest})
    found = []
    for segment, value in pairs:
        own = [c for c in mine if (c.segment, c.value) == (segment, value)]
        before, now = (merged(c.loss for c in own if (c.window == newest) == last) for last in (False, True))
        if before.rows:
            found.append(SegmentLoss(segment, value, before, now))
    return tuple(found)


def streams_of(found: Labelled, version: str, task: Task) -> dict[str, tuple[str, ...]]:
    """Run the streaming detectors over a version's newest losses; times of their alarms by detector."""
    rows = np.flatnonzero(found.told & (found.rows["version"].to_numpy(dtype=str) == version))
    rows = rows[np.argsort(found.times[rows], kind="stable")][-_STREAM_ROWS:]
    if not len(rows):
        return {}
    from trellis.adapters.streaming import scan_losses

    losses = found.loss[rows]
    # Half a class's loss is the wrong class; a number's answer is wrong where it is worse than most at first.
    bound = float(np.quantile(losses[: max(1, len(losses) // 4)], 0.8)) if task == "regression" else 0.25
    fired = scan_losses(losses, losses > bound)
    return {name: tuple(f"{found.times[rows[i]].astype('datetime64[s]')}Z" for i in at) for name, at in fired.items()}


def estimate_of(standing: Standing) -> HarmEstimate | None:
    """Hand on what the ledger knows of the harm, unless its own assumptions fail."""
    harm = standing.harm
    if harm is None or not harm.reliable:
        return None
    return HarmEstimate(harm.change, harm.low, harm.high, harm.stage)
