"""The performance of a served model as known at a moment: the ledger's series over its logs, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from monitoring.served import model_columns, segments_of
from monitoring.subject import Subject
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.errors import DataError
from trellis.ledger import (
    Estimate,
    ExpectedHarm,
    Finding,
    Labelled,
    Point,
    Series,
    due_at,
    expected_harm,
    labelled,
    moment,
    moments,
    series,
)
from trellis.quality import newest_time

MEANING = {
    "concept_drift": "labels contradict the estimate",
    "extrapolates": "many rows are unlike any reference row",
    "selected_labels": "rows with and without labels differ",
    "labels_cover_part": "labels leave out scores by choice; of these only the model speaks",
    "no_reference": "the version has no loss model, so nothing is estimated",
}
_TEACHING = 16
_COLOUR = {"realised": "green", "corrected": "cyan", "estimated": "yellow", "none": "dim"}


@dataclass(frozen=True)
class Standing:
    """What is known of a model's performance.

    Attributes:
        series: By window, version and segment.
        harm: What the newest window of the watched version cost; None where nothing is known.
        findings: What was wrong with labels and scores.
        overdue: Predictions past the declared delay without a label, in all windows shown.
    """

    series: Series
    harm: ExpectedHarm | None
    findings: tuple[Finding, ...]
    overdue: int


def standing_of(
    subject: Subject,
    found: Labelled,
    edges: NDArray[np.datetime64],
    as_of: np.datetime64,
    *,
    received_by: str = "",
) -> Standing:
    """Take stock of joined predictions; arguments as for ``trellis.ledger.series``.

    Up to 16 windows before the first teach how far estimates are off; they are not told.
    """
    days = float((edges[1] - edges[0]) / np.timedelta64(1, "D"))
    before = window_edges(found.rows, subject, edges[0], days, _TEACHING)
    told = (found.times >= edges[0]) & (found.times < edges[-1])
    used = found.take((found.times >= before[0]) & (found.times < edges[-1]))
    known = series(
        subject.spec,
        used,
        model_columns(used.rows, subject.spec),
        np.concatenate([before[:-1], edges]),
        as_of,
        subject.loss_models,
        segments=segments_of(used.rows, subject.spec),
        received_by=received_by,
        shown=len(edges) - 1,
    )
    mine = [p for p in known.points if p.version == subject.version and p.best is not None]
    model = subject.loss_models.get(subject.version)
    harm = expected_harm(mine[-1], model) if mine and model is not None else None
    overdue = told & ~found.known.known & (due_at(found.times, subject.spec) <= as_of)
    return Standing(known, harm, found.findings, int(overdue.sum()))


def performance_of(
    subject: Subject,
    home: Path,
    as_of: datetime,
    *,
    received_by: datetime | None = None,
    window_days: float = 7.0,
    windows: int = 6,
) -> Standing:
    """Read the logs and say how a model stood as known at a moment; reading again gives the same.

    Args:
        subject: What is watched.
        home: Trellis's home.
        as_of: Event time of the look; the last window ends there, or with the newest prediction that is not ahead of
            the log's clock.
        received_by: What the log held at that moment of system time; None for all that it holds.
        window_days: Length of a window.
        windows: Most windows.

    Raises:
        DataError: Window lengths make no sense, or a log is damaged.
    """
    model, until = subject.spec.name, _utc(as_of)
    rows = read_predictions(home, model, until=until)
    found = labelled(subject.spec, rows, read_labels(home, model), until, received_by=received_by)
    found = found.due(subject.spec, until)
    last, seen = moment(until), newest_time(found.rows)
    if seen is not None:
        last = min(last, moment(seen.to_datetime64()) + np.timedelta64(1, "s"))
    edges = window_edges(found.rows, subject, last, window_days, windows)
    by = "" if received_by is None else _utc(received_by).isoformat().replace("+00:00", "Z")
    return standing_of(subject, found, edges, moment(until), received_by=by)


def newest(points: Sequence[Point]) -> list[Point]:
    """Return every version's newest window of a series, oldest first."""
    return list({point.version: point for point in points}.values())


def window_edges(
    frame: pd.DataFrame, subject: Subject, last: np.datetime64, window_days: float, windows: int
) -> NDArray[np.datetime64]:
    """Bounds of the windows: back from ``last``, none before the first prediction or within the training data.

    Raises:
        DataError: The windows make no history.
    """
    if window_days <= 0 or windows < 1:
        raise DataError(f"{windows} windows of {window_days:g} days make no history.", remedy="Ask for at least one.")
    length = np.timedelta64(timedelta(days=window_days), "us")
    floor = moments(frame["time"]).min() if len(frame) else last - length
    trained = subject.reference.until
    if trained is not None:
        floor = max(floor, np.datetime64(trained.removesuffix("Z"), "us") - length // 2)
    count = int(np.clip(np.ceil((last - floor) / length), 1, windows))
    return np.array([last - length * i for i in range(count, -1, -1)], dtype="datetime64[us]")


def table_of(standing: Standing, subject: Subject, segment: str | None = None) -> Group:
    """Return the series as a table for people, with what is wrong below it."""
    known = standing.series
    when = known.as_of + (f", of what the log held at {known.received_by}" if known.received_by else "")
    table = Table(title=f"{known.model}: mean loss as known at {when}", expand=True)
    for name in ("until", "v", *((segment,) if segment else ()), "stage", "labels"):
        table.add_column(name, no_wrap=True)
    for name, width in (("loss (95 %)", 15), ("first said", 6)):
        table.add_column(name, min_width=width, overflow="fold")
    points: Sequence[Point] = known.points
    if segment:
        points = [p for p in known.segments if p.segment == segment]
    for p in points:
        held = {True: " ✓", False: " ✗", None: ""}[p.held]
        cells: list[Any] = [p.end[:10], p.version]
        cells += [p.value] if segment else []
        cells += [
            Text(p.stage + " !" * bool(p.flags), style=_COLOUR[p.stage]),
            f"{p.labels}/{p.predictions}",
            _told(p.best),
            f"{p.first.value:.4f}{held}" if p.first else "",
        ]
        table.add_row(*cells)
    flagged: dict[str, list[str]] = {}
    for p in points:
        for flag in p.flags:
            flagged.setdefault(flag, []).append(f"{p.end[:10]} v{p.version}{' ' + p.value if p.value else ''}")
    lines = [f"! {flag}: {MEANING[flag]} ({', '.join(where[-4:])})" for flag, where in flagged.items()]
    lines += [
        f"v{t.version}: {t.held} of {t.scored} first intervals held what was realised"
        + ("" if t.trusted else ", fewer than chance allows")
        for t in known.tracks
        if t.scored
    ]
    lines += [
        f"{p.end[:10]} v{p.version}: labels cover scores from {p.covered.low:.3f} to {p.covered.high:.3f}; "
        f"of the other {p.covered.beyond:.0%} of rows what is said is the model's"
        + (", and as labels contradict it, all that these can lose is in the interval" if _bounded(p) else "")
        for p in points[-1:]
        if p.covered is not None
    ]
    lines += [
        f"v{p.version}: the last estimate is widened by a standard deviation of {p.learned:.4f}, "
        "by which earlier windows turned out from theirs"
        for p in points[-1:]
        if p.learned and p.estimated is not None
    ]
    if standing.harm is not None:
        h = standing.harm
        trust = "" if h.reliable else "; an assumption behind it fails"
        lines.append(
            f"v{subject.version} {h.stage}: loss changed by {h.change:+.4f} ({h.low:+.4f} to {h.high:+.4f}) against "
            f"its reference{trust}"
        )
    if standing.overdue:
        lines.append(f"{standing.overdue:,} labels are overdue (declared delay {subject.spec.target.delay_hours:g} h)")
    lines += [f"{f.kind}: {f.count:,} (such as {', '.join(f.examples[:3])})" for f in standing.findings]
    return Group(table, *lines)


def _bounded(point: Point) -> bool:
    return point.corrected is not None and point.corrected.beyond > 0


def _told(estimate: Estimate | None) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f}–{estimate.high:.4f})" if estimate else "–"


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
