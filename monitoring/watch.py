"""One look at a model: read what was served and what came of it, summarise, decide, and leave evidence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.alerts import follow_rows, follow_up
from monitoring.families import estimate_of, outcomes_of, segment_losses, streams_of, ties_of
from monitoring.look import look_of
from monitoring.metrics import publish
from monitoring.pace import CERTAIN, Recorded, asked_of, beside, looked_after, looks_taken, newest, on_record
from monitoring.performance import Standing, standing_of, window_edges
from monitoring.quality import quality_of
from monitoring.served import ages_hours, model_columns, segments_of
from monitoring.skew import OfflineFeatures, replay
from monitoring.subject import Subject
from trellis.adapters.files import write_atomically
from trellis.adapters.look_store import LookStore
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.decision import Decision, decision_of, dumps
from trellis.drift import Diagnosis, DriftInputs, Window, decide, diagnose, look_alpha, summarise_window
from trellis.errors import DataError
from trellis.ledger import Cell, Finding, Point, labelled, moment, performance
from trellis.quality import QualityFinding, SkewReport, newest_time
from trellis.sums import LossSums, merged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchResult:
    """What one look found.

    Attributes:
        decision: The drift decision with its evidence; replayable.
        diagnosis: The same, structured: kind, action, shifts, faults, since, harm.
        series: Performance by window and version, oldest first.
        cells: The same sums by segment, from the label ledger.
        findings: What was wrong with labels.
        performance: All that is known of performance: the series with its segments, harm, and how estimates fared.
        quality: What was wrong with the judged window's rows.
        skew: Its features beside their recomputation; None where a model joins none, or nothing could be recomputed.
        evidence: The decision's file; None where none stands.
        report: The Evidently workspace; None where no report was asked for, or none was possible.
        alert: File of the alert that this look opened or went on with; None without one.
        end: End of the window that was looked at, event time, RFC 3339.
        judged: Whether the look judged; else its decision, if a file holds it, is the one on record that stands.
    """

    decision: Decision
    diagnosis: Diagnosis
    series: tuple[Point, ...]
    cells: tuple[Cell, ...]
    findings: tuple[Finding, ...]
    performance: Standing
    quality: tuple[QualityFinding, ...]
    skew: SkewReport | None
    evidence: Path | None
    report: Path | None = None
    alert: Path | None = None
    end: str = ""
    judged: bool = True


def watch(
    subject: Subject,
    home: Path,
    until: datetime,
    *,
    window_days: float = 7.0,
    windows: int = 6,
    report: bool = True,
    store: OfflineFeatures | None = None,
    paced: bool = False,
) -> WatchResult:
    """Look at a model as of a moment of event time; looking again changes nothing.

    A paced look judges only when the model's next declared look is due and the window has rows enough. In between it
    asks nothing that spends the false-alarm budget: performance, quality and skew are told anew, the newest verdict on
    record stands, and only a certain fault that it did not tell makes a decision and an alert.

    A look at a window without rows, or at the past once a later one is on record, is evidence and nothing more: pages,
    metrics and alerts speak of now.

    Args:
        subject: What is watched.
        home: Trellis's home; logs are read from it, evidence, metrics, alerts and reports go into it.
        until: End of the window that is judged, exclusive; labels observed later are not known yet, and those
            of rows that are not past the model's declared delay do not count yet.
        window_days: Length of a window, best the reference's ``period_days``.
        windows: How many windows make the history, the judged one included.
        report: Whether to write the Evidently report (some seconds).
        store: Recomputes the window's features for the skew replay; without one there is none.
        paced: Whether to judge only when a look is due.

    Raises:
        DataError: Window lengths make no sense, or a log is damaged.
        StorageError: The disk refused the evidence.
    """
    until = until.replace(tzinfo=UTC) if until.tzinfo is None else until.astimezone(UTC)
    until = until.replace(microsecond=0)  # as evidence is named, so that a look taken again finds its own
    spec, model = subject.spec, subject.spec.name
    logged, later, over = _logged(home, model, until)
    found = labelled(spec, logged, read_labels(home, model), until).due(spec, until)
    frame, joined, score = found.rows, found.known, found.score
    edges = window_edges(frame, subject, moment(until), window_days, windows)
    made = {"time": found.times, "version": frame["version"].to_numpy(dtype=str)}
    segments = segments_of(frame, spec)
    cells = performance(made, joined, task=spec.task, score=score, edges=edges, segments=segments)
    place = np.searchsorted(edges, made["time"], side="right") - 1
    shown = [_window(frame[place == i], subject, edges[i], edges[i + 1]) for i in range(len(edges) - 1)]
    standing = standing_of(subject, found, edges, moment(until))
    directory = home / "drift" / model
    last = newest(directory, spec.drift, until) if paced else None
    policy = asked_of(spec.drift, shown[-1].rows, found.times, edges[-2], edges[-1]) if paced else spec.drift
    judged = not paced or (last is None and shown[-1].rows >= policy.min_rows)
    inputs = DriftInputs(
        model,
        subject.version,
        subject.reference,
        (*(w.coarse() for w in shown[:-1]), shown[-1]),
        {name: subject.views.get(name, "request") for name in subject.reference.columns},
        units={name: unit for name, unit in subject.units.items() if name in subject.reference.columns},
        level=0.0,
        estimate=estimate_of(standing),
    )
    if judged:
        taken = looks_taken(directory, until)
        inputs = replace(
            inputs,
            losses=_losses(cells, subject.version, len(shown)),
            outcomes=outcomes_of(subject.reference, found, subject.version, place, len(shown)),
            signals=ties_of(frame, spec, place, len(shown)),
            segments=segment_losses(cells, subject.version, len(shown)),
            streams=streams_of(found, subject.version, spec.task),
            looks=taken,
            level=look_alpha(spec.drift, taken),
        )
    end = shown[-1].end
    verdict, diagnosis = decide(inputs, policy), diagnose(inputs, policy)
    decision = decision_of(
        "drift",
        model=model,
        subject=f"{shown[-1].start}/{end}",
        at=end,
        inputs=inputs,
        policy=policy,
        verdict=verdict,
    )
    rows, before = frame[place == len(shown) - 1], frame[(place >= 0) & (place < len(shown) - 1)]
    quality = quality_of(rows, before, subject, later=later)
    skew = _skew(rows, subject, store)
    record, news = None, True
    if not judged:
        record, news = on_record(directory, spec.drift, until, last, diagnosis, subject.version)
    file = directory / f"{_file_stamp(end)}{'' if judged else CERTAIN}.json"
    stands = record or Recorded(decision, diagnosis, subject.version, until, file)
    shows = beside(last, stands.found, subject.version)
    look = look_of(subject, shown, cells, found, place, stands.decision, shows, standing.series)
    # What speaks of now speaks of neither an empty window nor, once a later look has spoken, one of the past.
    told = shown[-1].rows > 0 and not (over and looked_after(directory, until))
    alert = None
    if told:
        if news:
            write_atomically(LookStore(home).path(look), dumps(look))
            alert = follow_up(home / "alerts", model, shown[-1], diagnosis, decision.id, not judged)
        # Of rows it is rows that tell: a look that judges no drift, as in the first days of a version, can.
        if shown[-1].rows >= spec.drift.min_rows:
            follow_rows(home / "alerts", model, shown[-1], quality, skew, standing.series.points)
    if news:
        # Last: a paced look that was killed before is still due, so that its alert is not missed.
        write_atomically(file, dumps(decision))
    if told:
        allowed = spec.drift.max_loss_increase
        publish(home / "metrics", look, shows, standing, quality, skew, allowed=allowed)
    written = None
    if report and judged and shown[-1].rows:
        from monitoring.report import write_report

        told = {f"data quality {i}": item.text for i, item in enumerate(quality, start=1)}
        written = write_report(
            home / "evidently", subject, model_columns(rows, spec), until, stands.decision, standing.series, told
        )
    return WatchResult(
        stands.decision,
        stands.found,
        standing.series.points,
        cells,
        found.findings,
        standing,
        quality,
        skew,
        stands.path if record is not None or news else None,
        written,
        alert,
        end,
        judged,
    )


def _logged(home: Path, model: str, until: datetime) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Return the predictions before a moment of event time, the others, and whether any of these is not just ahead.

    One whose clock is ahead belongs to the rows that it was received with.
    """
    rows = read_predictions(home, model)
    later, last = (rows["time"] >= until).to_numpy(dtype=bool), newest_time(rows)
    return rows[~later], rows[later], last is not None and last >= until


def _skew(rows: pd.DataFrame, subject: Subject, store: OfflineFeatures | None) -> SkewReport | None:
    if store is None:
        return None
    try:
        return replay(subject.read_alike(rows), subject.spec, dict(subject.views), store)
    except DataError as error:  # a look without its replay is better than none
        logger.error("the skew of %s could not be replayed: %s", subject.spec.name, error)
        return None


def _window(rows: pd.DataFrame, subject: Subject, start: np.datetime64, end: np.datetime64) -> Window:
    if not len(rows):
        return Window(_iso(start), _iso(end), 0, {})
    batch = model_columns(rows, subject.spec)
    if not batch:  # not one known column: every one of them is a finding
        return Window(_iso(start), _iso(end), len(rows), {})
    return summarise_window(
        batch,
        list(subject.spec.fields.values()),
        subject.reference,
        start=_iso(start),
        end=_iso(end),
        ages_hours=ages_hours(rows),
    )


def _losses(cells: Sequence[Cell], version: str, count: int) -> tuple[LossSums, ...]:
    mine = [c for c in cells if c.version == version and not c.segment]
    return tuple(merged(c.loss for c in mine if c.window == i) for i in range(count))


def _iso(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[s]")) + "Z"


def _file_stamp(text: str) -> str:
    return text.replace(":", "").replace("-", "")
