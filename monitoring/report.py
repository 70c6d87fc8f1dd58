"""The Evidently report of a window, in a local workspace with one project per model.

Evidently wants rows on both sides. The training side is redrawn from the baseline's summaries: every column has its
training distribution, but rows are no training rows and columns are independent of each other, so nothing personal
leaves the training set and the report must not be read for correlations. Verdicts are ours; the report is for people.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.served import Columns
from monitoring.subject import Subject
from trellis.adapters.files import write_atomically
from trellis.decision import Decision
from trellis.drift import CategorySummary, NumericSummary, Reference, Summary, flatten
from trellis.ledger import Series
from trellis.settings import silence_telemetry

if TYPE_CHECKING:
    from evidently.ui.workspace import Project, Workspace

logger = logging.getLogger(__name__)

MOST_ROWS = 5_000
_SHOWN, _SUMMARISED = 6, 8
# Windows of a model whose reports stay: more than half a year at eight looks a month.
KEPT = 60


def write_report(
    workspace: Path,
    subject: Subject,
    current: Columns,
    until: datetime,
    decision: Decision,
    performance: Series,
    notes: dict[str, str],
) -> Path | None:
    """Add a window's report to the model's project, in place of an earlier one of the same window.

    Of a model's reports the newest ``KEPT`` windows' stay; of one before these none is written.

    Args:
        workspace: Directory of the workspace; made if it is not there.
        subject: What is watched.
        current: The model's columns in the window.
        until: End of the window, the snapshot's time.
        decision: The verdict, shown beside the report.
        performance: What is known of performance, shown likewise.
        notes: Whatever else is to be shown, by title.

    Returns:
        The workspace; None where the window is older than all whose reports stay, it and the baseline share no column,
        or Evidently refuses the data: a report is no reason to lose a verdict.
    """
    silence_telemetry()
    flat = flatten(current, list(subject.spec.fields.values()))
    names = [n for n, c in subject.reference.columns.items() if n in flat and _has_values(c.summary)]
    before = redraw(subject.reference, names, seed=0)
    now = _sampled({n: flat[n] for n in names})
    names = [n for n in names if now[n].notna().any()]
    if not names:
        logger.warning("no report of %s: the window shares no column with the baseline", subject.spec.name)
        return None
    with warnings.catch_warnings():
        # Evidently's own: deprecations of what it imports, and divisions in plots of constant columns.
        warnings.simplefilter("ignore")
        try:
            told = _newest(performance) | notes
            if not _write(workspace, subject, before[names], now[names], until, decision, told):
                logger.warning(
                    "no report of %s until %s: those of %d newer windows stay", subject.spec.name, until, KEPT
                )
                return None
        except Exception:
            logger.exception("Evidently could not report on %s until %s", subject.spec.name, until)
            return None
    return workspace


def redraw(reference: Reference, names: list[str], *, seed: int, rows: int = MOST_ROWS) -> pd.DataFrame:
    """Draw rows whose every column is distributed as in training; the same seed draws the same rows."""
    generator = np.random.default_rng(seed)
    columns = {name: _redrawn(reference.columns[name].summary, rows, generator) for name in names}
    return pd.DataFrame(columns)


def _redrawn(summary: Summary, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    absent = round(rows * summary.nulls / summary.rows) if summary.rows else rows
    place = (np.arange(rows - absent) + 0.5) / max(1, rows - absent)
    values: NDArray[Any]
    if isinstance(summary, NumericSummary):
        values = np.concatenate([_between(np.asarray(summary.quantiles), place), np.full(absent, np.nan)])
    else:
        names = np.array([*summary.values, "(other)"], dtype=object)
        reached = np.cumsum([*summary.counts, summary.other])
        chosen = names[np.minimum(np.searchsorted(reached / reached[-1], place), len(names) - 1)]
        values = np.concatenate([chosen, np.full(absent, None, dtype=object)])
    return generator.permutation(values)


def _between(quantiles: NDArray[np.float64], place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at the probabilities ``place``; where the quantiles lie on a grid (zeros and ones, knots), so do these."""
    values = np.interp(place, np.linspace(0, 1, len(quantiles)), quantiles)
    distinct = np.unique(quantiles)
    if len(distinct) < 2:
        return values
    step = float(np.diff(distinct).min())
    off = np.abs(distinct / step - np.round(distinct / step))
    return np.round(values / step) * step if (off < 1e-3).all() else values


def _has_values(summary: Summary) -> bool:
    return summary.nulls < summary.rows


def _sampled(flat: dict[str, tuple[str, NDArray[Any]]]) -> pd.DataFrame:
    rows = len(next(iter(flat.values()))[1]) if flat else 0
    # Evenly spaced rows in time order: no luck involved, and every part of the window is there.
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, MOST_ROWS)).astype(int)) if rows else np.empty(0, int)
    columns: dict[str, Any] = {}
    for name, (kind, values) in flat.items():
        part = pd.Series(values[chosen])
        columns[name] = pd.to_numeric(part, errors="coerce") if kind == "numeric" else part.astype(object)
    return pd.DataFrame(columns)


def _write(
    workspace: Path,
    subject: Subject,
    before: pd.DataFrame,
    now: pd.DataFrame,
    until: datetime,
    decision: Decision,
    performance: dict[str, str],
) -> bool:
    """Write the report and delete those that no longer stay; return whether this one does, and was written."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset, DataSummaryPreset
    from evidently.ui.workspace import Workspace

    numeric = [str(n) for n in now if isinstance(subject.reference.columns[n].summary, NumericSummary)]
    category = [str(n) for n in now if isinstance(subject.reference.columns[n].summary, CategorySummary)]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=category)
    policy = subject.spec.drift
    report = Report(
        [
            DataDriftPreset(num_method="psi", cat_method="psi", threshold=policy.psi_warn),
            DataSummaryPreset(columns=_strongest(decision, list(now))),
        ],
        metadata={
            "version": subject.version,
            "outcome": decision.verdict.outcome,
            "reason": decision.verdict.reason,
            "decision": decision.id,
            **performance,
        },
        tags=[decision.verdict.outcome],
    )
    snapshot = report.run(
        Dataset.from_pandas(now, definition),
        Dataset.from_pandas(before, definition),
        timestamp=_naive(until),
        name=decision.subject,
    )
    workspace.mkdir(parents=True, exist_ok=True)
    store = Workspace.create(str(workspace))
    strongest = _strongest(decision, list(now))
    project = _project(store, subject, [*strongest, *(name for name in now if name not in strongest)])
    index = workspace.parent / "drift" / f"{subject.spec.name}.reports.json"
    runs, window = _runs(index, store, project), until.isoformat()
    stay = sorted({*runs, window})[-KEPT:]
    if window not in stay:
        return False
    runs[window] = str(store.add_run(project.id, snapshot, name=decision.subject).id)
    kept = {name: runs[name] for name in stay}
    for run in {str(name) for name in store.list_runs(project.id)} - set(kept.values()):
        with contextlib.suppress(OSError, KeyError, ValueError):
            store.delete_run(project.id, run)
    write_atomically(index, json.dumps({"project": str(project.id), "runs": kept}, indent=1, sort_keys=True))
    return True


def _newest(performance: Series) -> dict[str, str]:
    """Return the loss of every version's newest window in words."""
    newest = {p.version: p for p in performance.points}
    return {
        f"loss of v{version}": f"{p.best.value:.4f} ({p.best.low:.4f} to {p.best.high:.4f}), {p.stage} from "
        f"{p.labels} labels of {p.predictions} predictions" + (f"; {', '.join(p.flags)}" if p.flags else "")
        for version, p in newest.items()
        if p.best is not None
    }


def _runs(index: Path, store: Workspace, project: Project) -> dict[str, str]:
    """Return the runs of a project by window, as kept in the index: Evidently finds a run's time only by reading it.

    What the index does not know, as of a process that was killed before it was written, is read.
    """
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        kept = dict(known["runs"]) if known["project"] == str(project.id) else {}
    except (OSError, ValueError, KeyError, TypeError):
        kept = {}
    there = {str(name) for name in store.list_runs(project.id)}
    found: dict[str, str] = {}
    for run in there - set(kept.values()):
        with contextlib.suppress(OSError, KeyError, ValueError):  # one that cannot be read is deleted
            snapshot = store.get_run(project.id, run)
            if snapshot is not None:
                found[snapshot.timestamp.replace(tzinfo=UTC).isoformat()] = run
    return found | {window: run for window, run in kept.items() if run in there}


def _strongest(decision: Decision, columns: list[str]) -> list[str]:
    """The columns that moved most: summaries of all would double the cost of a report."""
    ranked = [c.name.removeprefix("shift.") for c in decision.verdict.checks if c.name.startswith("shift.")]
    return [name for name in ranked if name in columns][:_SUMMARISED] or columns[:_SUMMARISED]


def _naive(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _project(store: Workspace, subject: Subject, columns: list[str]) -> Project:
    found = [p for p in store.search_project(subject.spec.name) if p.name == subject.spec.name]
    if found:
        return found[0]
    from evidently.sdk.models import PanelMetric
    from evidently.sdk.panels import counter_panel, line_plot_panel, text_panel

    project = store.create_project(subject.spec.name, description=subject.spec.description)
    shown = columns[:_SHOWN]
    board = project.dashboard
    board.add_panel(text_panel(title=f"{subject.spec.name}: windows against training"))
    board.add_panel(counter_panel("Rows reported in the last window", [PanelMetric(metric="RowCount")], size="half"))
    board.add_panel(
        counter_panel(
            "Columns past the PSI bound, last window",
            [PanelMetric(metric="DriftedColumnsCount", metric_labels={"value_type": "count"})],
            size="half",
        )
    )
    board.add_panel(
        line_plot_panel(
            "Columns past the PSI bound, by window",
            [PanelMetric(metric="DriftedColumnsCount", metric_labels={"value_type": "count"}, legend="columns")],
        )
    )
    for name in shown:
        values = [PanelMetric(metric="ValueDrift", metric_labels={"column": name}, legend="PSI")]
        board.add_panel(line_plot_panel(f"PSI of {name}", values, size="half"))
    project.save()
    return project
