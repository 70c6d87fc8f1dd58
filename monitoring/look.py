"""What a look found, in the form that pages and dashboards show: every figure with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from monitoring.subject import Subject
from trellis.adapters.look_store import ColumnDrift, Figure, LabelState, Look
from trellis.decision import Decision
from trellis.drift import Diagnosis, Window, pace_days
from trellis.ledger import Cell, Labelled, Series
from trellis.metrics import blocks_of, intervals, t_quantile

_LEAST_LABELS, _LEAST_DAYS = 50, 2
_REPLICATES = 200


def look_of(
    subject: Subject,
    shown: Sequence[Window],
    cells: Sequence[Cell],
    known: Labelled,
    place: NDArray[np.int64],
    decision: Decision,
    found: Diagnosis,
    performance: Series,
) -> Look:
    """Put together what is worth showing of a look.

    Args:
        subject: What was watched.
        shown: The windows, oldest first; the last is judged.
        cells: The ledger's sums by window, version and segment.
        known: The predictions with their labels.
        place: Window of every prediction, shape ``(n,)``; outside ``[0, windows)`` for those in none.
        decision: The drift decision.
        found: The same, structured.
        performance: What is estimated, corrected and realised.
    """
    spec, judged = subject.spec, shown[-1]
    faults = {fault.column: fault.kind for fault in found.faults}
    drift = [
        ColumnDrift(
            s.name, s.view, s.psi, s.adjusted, s.level, s.null_rate, s.reference_null_rate, faults.pop(s.name, "")
        )
        for s in found.shifts
    ]
    # A column that vanished has no shift, only a fault.
    drift += [
        ColumnDrift(name, subject.views.get(name, "request"), 0.0, 1.0, 0, 1.0, 0.0, kind)
        for name, kind in faults.items()
    ]
    loss = subject.reference.loss
    expected = loss.mean if loss is not None and loss.rows else None
    return Look(
        model=spec.name,
        version=subject.version,
        owner=spec.owner,
        description=spec.description,
        start=judged.start,
        end=judged.end,
        rows=judged.rows,
        outcome=found.outcome,
        kind=found.kind,
        action=found.action,
        reason=found.reason,
        since=found.since,
        decision=decision.id,
        next_look=_later(judged.end, timedelta(days=pace_days(spec.drift))),
        psi_warn=spec.drift.psi_warn,
        psi_alarm=spec.drift.psi_alarm,
        metric=spec.metric.name,
        floor=spec.metric.floor,
        expected_loss=expected,
        label_delay_hours=spec.target.delay_hours,
        drift=tuple(drift),
        performance=_together(_figures(subject, shown, cells, known, place), _early(performance)),
        labels=_label_states(shown, known, place, spec.target.delay_hours),
        findings={finding.kind: finding.count for finding in known.findings},
        ages_hours=dict(judged.ages_hours),
    )


def _figures(
    subject: Subject,
    shown: Sequence[Window],
    cells: Sequence[Cell],
    known: Labelled,
    place: NDArray[np.int64],
) -> tuple[Figure, ...]:
    spec = subject.spec
    versions = known.rows["version"].to_numpy(dtype=str)
    ids = known.rows["id"].to_numpy(dtype=str)
    figures: list[Figure] = []
    for cell in (c for c in cells if c.loss.rows):
        window = shown[cell.window]
        where = (window.start, window.end, cell.version, cell.segment, cell.value)
        low, high = mean_interval(cell.loss.mean, cell.loss.standard_error, cell.loss.blocks)
        figures.append(Figure(*where, "loss", "realised", cell.loss.mean, low, high, cell.predictions, cell.loss.rows))
        if cell.segment or cell.loss.rows < _LEAST_LABELS or cell.loss.blocks < _LEAST_DAYS:
            continue
        rows = known.told & (place == cell.window) & (versions == cell.version)
        blocks = blocks_of(known.times[rows], ids[rows])
        truth, score = known.known.value[rows], known.score[rows]
        measured = intervals(spec.task, truth, score, blocks, seed=0, replicates=_REPLICATES)
        figures += [
            Figure(*where, name, "realised", found.point, found.lo, found.hi, cell.predictions, cell.loss.rows)
            for name, found in measured.items()
        ]
    return tuple(figures)


def _together(labelled: Sequence[Figure], early: Sequence[Figure]) -> tuple[Figure, ...]:
    """Return one figure per window, version, segment and quantity: of incomplete windows the corrected or estimated."""
    taken = {(f.start, f.version, f.segment, f.value, f.quantity) for f in early}
    rest = [f for f in labelled if (f.start, f.version, f.segment, f.value, f.quantity) not in taken]
    return (*rest, *early)


def _early(performance: Series) -> tuple[Figure, ...]:
    """Return what is known of windows before all their labels are in."""
    figures: list[Figure] = []
    for p in (*performance.points, *performance.segments):
        where = (p.start, p.end, p.version, p.segment, p.value)
        if p.best is not None and p.stage != "realised":
            e = p.best
            figures.append(Figure(*where, "loss", p.stage, e.value, e.low, e.high, p.predictions, p.labels))
        if p.labels < _LEAST_LABELS:
            for name, value in p.expected_metrics.items():
                figures.append(Figure(*where, name, "estimated", value, None, None, p.predictions, p.labels))
    return tuple(figures)


def mean_interval(
    mean: float, standard_error: float, blocks: int, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """Return a mean's two-sided Student interval over independent blocks; None where a single block tells none."""
    if blocks < 2 or not math.isfinite(standard_error):
        return None, None
    reach = t_quantile(0.5 + confidence / 2, blocks - 1) * standard_error
    return mean - reach, mean + reach


def _label_states(
    shown: Sequence[Window],
    known: Labelled,
    place: NDArray[np.int64],
    delay_hours: float,
) -> tuple[LabelState, ...]:
    now = np.datetime64(shown[-1].end.removesuffix("Z"), "us")
    told = known.known.known
    due = known.times + np.timedelta64(int(delay_hours * 3600), "s") < now
    result = []
    for number, window in enumerate(shown):
        rows = place == number
        result.append(
            LabelState(
                window.start,
                window.end,
                int(rows.sum()),
                int((rows & told).sum()),
                int((rows & due & ~told).sum()),
                int((rows & due).sum()),
            )
        )
    return tuple(result)


def _later(moment: str, by: timedelta) -> str:
    return (datetime.fromisoformat(moment) + by).isoformat(timespec="seconds").replace("+00:00", "Z")
