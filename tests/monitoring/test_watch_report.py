"""The Evidently report in a real workspace, once: it costs some ten seconds."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from monitoring.report import redraw
from monitoring.watch import watch

pytestmark = pytest.mark.slow


def test_a_report_per_window_in_one_project_per_model(served, monkeypatch, caplog) -> None:
    first = served.serve(7)
    result = watch(served.subject, served.home, first)
    assert result.report == served.home / "evidently"
    from evidently.ui.workspace import Workspace

    store = Workspace(str(result.report))
    (project,) = store.list_projects()
    assert project.name == "ferry_delay"
    (run,) = store.list_runs(project.id)
    snapshot = store.get_run(project.id, run)
    assert snapshot.timestamp.isoformat().startswith(first.strftime("%Y-%m-%d"))
    assert snapshot.metadata["outcome"] == "STABLE"
    assert snapshot.metadata["decision"] == result.decision.id
    assert "corrected from 692 labels of 700 predictions" in snapshot.metadata["loss of v1"]
    # The panels follow the columns that moved most.
    moved = [c.name for c in result.decision.verdict.checks if c.name.startswith("shift.")]
    titles = [panel.title for panel in project.dashboard.model().panels]
    assert f"PSI of {moved[0].removeprefix('shift.')}" in titles
    # The training side is redrawn from summaries; were it a poor likeness, healthy columns would look shifted.
    drifts = {
        name: result["value"]
        for result in snapshot.dict()["metric_results"].values()
        if (name := result.get("display_name", "")).startswith("Value drift for")
    }
    assert len(drifts) == 5
    assert all(value < 0.15 for value in drifts.values()), drifts
    # The same window again replaces its report; the next window adds one. Odd columns do not stop it.
    watch(served.subject, served.home, first)
    second = served.serve(7, lambda r: {**r, "wind": np.array(["calm"] * len(r["wind"]))}, drop=("temp",))
    assert watch(served.subject, served.home, second).report is not None
    assert len(store.list_runs(project.id)) == 2
    assert len(Workspace(str(result.report)).list_projects()) == 1
    # The newest windows' reports are kept, and every decision; a look between two due ones writes none.
    monkeypatch.setattr("monitoring.report.KEPT", 2)
    third = served.serve(1)
    assert watch(served.subject, served.home, third, paced=True).report is None
    third = served.serve(6)
    assert watch(served.subject, served.home, third, paced=True).report is not None
    index = served.home / "drift" / "ferry_delay.reports.json"
    runs = json.loads(index.read_text())["runs"]
    assert sorted(runs) == [second.isoformat(), third.isoformat()]
    assert {str(name) for name in store.list_runs(project.id)} == set(runs.values())
    # A window before those has none, and it is said; nothing of the others is lost.
    past = watch(served.subject, served.home, first)
    assert (past.report, past.decision) == (None, result.decision)
    assert "those of 2 newer windows stay" in caplog.text
    assert {str(name) for name in store.list_runs(project.id)} == set(runs.values())
    # Runs that the index does not know, as after a kill before it was written, are neither lost nor kept for ever.
    index.unlink()
    fourth = served.serve(7)
    assert watch(served.subject, served.home, fourth).report is not None
    runs = json.loads(index.read_text())["runs"]
    assert sorted(runs) == [third.isoformat(), fourth.isoformat()]
    assert {str(name) for name in store.list_runs(project.id)} == set(runs.values())
    assert len(list((served.home / "drift" / "ferry_delay").glob("*.json"))) == 4


def test_the_redrawn_training_side_has_training_distributions(subject) -> None:
    names = list(subject.reference.columns)
    frame = redraw(subject.reference, names, seed=0)
    pd.testing.assert_frame_equal(frame, redraw(subject.reference, names, seed=0))
    assert len(frame) == 5_000
    temp = subject.reference.columns["temp"].summary
    assert frame["temp"].mean() == pytest.approx(temp.mean, abs=0.1 * temp.std)
    line = subject.reference.columns["line"].summary
    share = frame["line"].value_counts(normalize=True)
    assert share[line.values[0]] == pytest.approx(line.counts[0] / line.rows, abs=0.001)
