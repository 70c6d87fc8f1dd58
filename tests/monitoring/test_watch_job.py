"""The watching job over a real log: verdicts, evidence, metrics and alerts."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from sklearn.metrics import roc_auc_score

from monitoring.metrics import LookMetrics, publish, read_families
from monitoring.watch import watch
from trellis.adapters.alert_files import raise_alert
from trellis.adapters.look_store import LookStore
from trellis.decision import Decision, dumps
from trellis.drift import DriftInputs, decide, reference_outcomes
from trellis.drift.outcomes import compare_outcomes
from trellis.errors import DataError

# Nothing here needs the report; its own test writes one.
QUIET = {"report": False}
ROWS = "trellis_watch_rows"


def celsius(rows):
    return {**rows, "temp": (rows["temp"] - 32) * 5 / 9}


def samples(home, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(v for k, v in sorted(s.labels.items()) if k != "model"): s.value
        for f in read_families(home / "metrics")
        for s in f.samples
        if s.name == name
    }


def test_healthy_weeks_are_stable_and_leave_replayable_evidence(served) -> None:
    until = served.serve(21)
    result = watch(served.subject, served.home, until, **QUIET)
    assert result.decision.verdict.outcome == "STABLE", result.decision.verdict.reason
    assert result.alert is None
    stored = TypeAdapter(Decision).validate_json(result.evidence.read_bytes())
    assert dumps(stored) == dumps(result.decision)
    inputs = TypeAdapter(DriftInputs).validate_json(dumps(stored.inputs["inputs"]))
    assert decide(inputs, served.subject.spec.drift) == stored.verdict
    assert result.evidence.stat().st_size < 100_000
    assert len(inputs.windows) == 3


def test_looking_again_changes_nothing(served) -> None:
    until = served.serve(14, celsius)
    first = watch(served.subject, served.home, until, **QUIET)
    before = {p: p.read_bytes() for p in served.home.rglob("*.json")}
    second = watch(served.subject, served.home, until, **QUIET)
    assert first == second
    assert {p: p.read_bytes() for p in served.home.rglob("*.json")} == before


def test_a_unit_change_is_a_fault_named_and_dated_and_the_alert_follows_it(served) -> None:
    healthy = served.serve(14)
    assert watch(served.subject, served.home, healthy, **QUIET).alert is None
    broken = served.serve(7, celsius)
    result = watch(served.subject, served.home, broken, **QUIET)
    verdict, found = result.decision.verdict, result.diagnosis
    assert verdict.outcome == "UPSTREAM_FAULT"
    assert "degF to degC" in verdict.reason
    assert found.views == ("weather",)
    assert found.since == healthy.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found.action == "fix upstream"
    assert samples(served.home, "trellis_drift_fault") == {("temp", "unit", "weather"): 1.0}
    assert samples(served.home, "trellis_drift_outcome")[("UPSTREAM_FAULT",)] == 1.0
    longer = served.serve(7, celsius)
    again = watch(served.subject, served.home, longer, **QUIET)
    assert again.alert == result.alert
    alert = json.loads(result.alert.read_text())
    assert (alert["looks"], alert["status"], alert["severity"]) == (2, "open", "critical")
    mended = served.serve(7)
    over = watch(served.subject, served.home, mended, **QUIET)
    assert over.decision.verdict.outcome != "UPSTREAM_FAULT", over.decision.verdict.reason
    assert json.loads(result.alert.read_text())["status"] == "closed"


@pytest.mark.parametrize("outcome", ["BREAKER_OPEN", "RETRAINING_FAILED", "RETRAINING_REGRESSED"])
def test_a_look_closes_no_alert_but_its_own(served, outcome) -> None:
    """The loop's alerts lie in the same directory; a healthy week says nothing about its circuit breaker."""
    broken = served.serve(14, celsius)
    fault = watch(served.subject, served.home, broken, **QUIET).alert
    loops = raise_alert(
        served.home / "alerts", model="ferry_delay", outcome=outcome, key="1", severity="critical", reason="why",
        action="reset", at=broken.isoformat(),
    )  # fmt: skip
    before = loops.read_bytes()
    assert watch(served.subject, served.home, served.serve(14), **QUIET).decision.verdict.outcome != "UPSTREAM_FAULT"
    assert json.loads(fault.read_text())["status"] == "closed"
    assert loops.read_bytes() == before


def test_a_season_is_drift_and_no_fault(served) -> None:
    def warmer(rows):
        day = (rows["time"] - rows["time"][0]) / np.timedelta64(1, "D")
        return {**rows, "temp": rows["temp"] + day * 0.6, "late_rate": np.clip(rows["late_rate"] + day * 0.004, 0, 1)}

    until = served.serve(42, warmer)
    result = watch(served.subject, served.home, until, **QUIET)
    assert result.decision.verdict.outcome == "DRIFT"
    assert result.diagnosis.kind == "gradual"
    assert result.diagnosis.action == "retrain"
    assert {"temp", "late_rate"} <= {s.name for s in result.diagnosis.shifts if s.level}
    assert json.loads(result.alert.read_text())["outcome"] == "DRIFT"


def test_worse_answers_without_a_shift_are_concept_drift(served) -> None:
    def turned(rows):
        return {**rows, "late": 1 - rows["late"]}

    until = served.serve(14, turned)
    result = watch(served.subject, served.home, until, **QUIET)
    assert (result.decision.verdict.outcome, result.diagnosis.kind) == ("DRIFT", "concept")
    assert result.diagnosis.harm.real
    assert result.diagnosis.harm.increase > 0.1
    low = samples(served.home, "trellis_model_loss_increase_low")
    assert low == {("1",): result.diagnosis.harm.low}
    assert low[("1",)] < samples(served.home, "trellis_model_loss_increase")[("1",)]
    assert samples(served.home, "trellis_model_loss_increase_allowed") == {
        ("1",): served.subject.spec.drift.max_loss_increase
    }


def test_truths_that_are_known_sooner_than_others_are_no_drift(served) -> None:
    """Nothing changes. Who is late is known at once, who is not 60 hours later; declared are 72 hours, or none."""
    held, subject = served.drawn(400, 56), served.subject
    outcomes = reference_outcomes("binary", held["probability"], held["late"], held["time"].astype("datetime64[D]"))
    reference = replace(subject.reference, outcomes=outcomes)
    until = served.serve(28, known_after=lambda r: np.where(r["late"] == 1, 0, 60))

    def look(hours: float):
        spec = replace(subject.spec, target=replace(subject.spec.target, delay_hours=hours))
        result = watch(replace(subject, spec=spec, reference=reference), served.home, until, **QUIET)
        inputs = TypeAdapter(DriftInputs).validate_python(result.decision.inputs["inputs"])
        return result, compare_outcomes(outcomes, inputs.outcomes[-1]).label[1]

    fooled, p_value = look(0.0)
    assert fooled.decision.verdict.outcome == "DRIFT", "the labels that are known early should look like a change"
    assert p_value < 1e-3
    result, p_value = look(72.0)
    assert result.decision.verdict.outcome == "STABLE", result.decision.verdict.reason
    assert p_value > 0.05
    # Four days of the last window and the first row of the fifth are due, and all of their labels are in.
    assert [p.labels for p in result.series] == [700, 700, 700, 401]
    told = {name: served.drawn(0, 28)[name][2_100:2_501] for name in ("probability", "late")}
    assert result.series[-1].loss == pytest.approx(np.mean((told["probability"] - told["late"]) ** 2))
    assert result.decision.inputs["inputs"]["losses"][-1]["rows"] == 401


def test_performance_series_agrees_with_scikit_learn_and_respects_the_day(served) -> None:
    first = served.serve(7)
    until = served.serve(7, version="2")
    result = watch(served.subject, served.home, until, **QUIET)
    assert [(p.version, p.predictions) for p in result.series] == [("1", 700), ("2", 700)]
    # The last two hours' labels were not observed yet.
    assert [p.labels for p in result.series] == [700, 700 - 8]
    rows = served.drawn(0, 7)
    assert result.series[0].metrics["auc"] == pytest.approx(roc_auc_score(rows["late"], rows["probability"]))
    assert result.series[0].loss == pytest.approx(np.mean((rows["probability"] - rows["late"]) ** 2))
    past = watch(served.subject, served.home, first, **QUIET)
    assert past.series[-1].labels == 700 - 8


def test_performance_is_estimated_before_labels_come_and_published_with_its_interval(served) -> None:
    served.serve(7)
    until = served.serve(7, labels=False)
    result = watch(served.subject, served.home, until, **QUIET)
    first, second = result.series
    assert (first.stage, second.stage) == ("realised", "estimated")
    assert first.held
    rows = served.drawn(7, 7)
    truth = np.mean((rows["probability"] - rows["late"]) ** 2)
    assert second.estimated.low < truth < second.estimated.high
    assert samples(served.home, "trellis_performance_loss")[("estimated", "1")] == second.estimated.value
    assert samples(served.home, "trellis_performance_loss_high")[("realised", "1")] == first.realised.high
    assert samples(served.home, "trellis_estimates_scored") == {("1",): 1.0}
    assert samples(served.home, "trellis_labels_overdue") == {(): 700.0 - 8}
    assert samples(served.home, "trellis_performance_flag") == {}
    assert len(samples(served.home, "trellis_segment_loss")) == 3
    harm = result.performance.harm
    assert (harm.stage, harm.labels) == ("estimated", 0)
    assert harm.low < 0 < harm.high


def test_labels_that_are_not_due_are_not_missing_and_lost_ones_are_not_told_for_ever(served) -> None:
    watch(served.subject, served.home, served.serve(7), **QUIET)
    # Nobody can have the last two hours' labels; of the others none is missing.
    assert samples(served.home, "trellis_label_coverage") == {(): 1.0}
    assert samples(served.home, "trellis_labels_due") == {(): 700.0 - 8}
    watch(served.subject, served.home, served.serve(7, labels=0), **QUIET)
    assert samples(served.home, "trellis_label_coverage") == {(): 0.0}
    watch(served.subject, served.home, served.serve(7), **QUIET)  # the feed is mended; last week's stay lost
    assert samples(served.home, "trellis_label_coverage") == {(): 1.0}
    assert samples(served.home, "trellis_labels_overdue") == {(): 0.0}


def test_a_window_in_which_hardly_a_label_is_due_leaves_the_word_to_the_one_before(served) -> None:
    # Windows of 33 rows, of which the newest has 8 in the two hours of the declared delay.
    watch(served.subject, served.home, served.serve(2), window_days=0.33, windows=2, **QUIET)
    assert samples(served.home, "trellis_labels_due")[()] in (33.0, 34.0)


@pytest.mark.parametrize(
    ("change", "drop", "kind"),
    [
        (lambda r: r, ("temp",), "missing"),
        (lambda r: {**r, "temp": np.full(len(r["temp"]), None)}, (), "missing"),
        (lambda r: {**r, "temp": np.full(len(r["temp"]), 61.0)}, (), "constant"),
        (lambda r: {**r, "temp": np.array(["warm"] * len(r["temp"]))}, (), "invalid"),
        (lambda r: {**r, "temp": np.where(np.arange(len(r["temp"])) % 2, np.nan, r["temp"])}, (), "nulls"),
        (lambda r: {**r, "temp": np.array([{"f": 1}] * len(r["temp"]))}, (), "invalid"),
    ],
)
def test_odd_columns_are_findings_never_crashes(served, change, drop, kind) -> None:
    until = served.serve(7, change, drop=drop)
    result = watch(served.subject, served.home, until, **QUIET)
    assert result.decision.verdict.outcome == "UPSTREAM_FAULT"
    assert [(f.column, f.kind) for f in result.diagnosis.faults] == [("temp", kind)]


def test_no_log_at_all_a_gap_and_a_lost_feed(served) -> None:
    nothing = watch(served.subject, served.home, served.now + timedelta(days=7), **QUIET)
    assert nothing.decision.verdict.outcome == "INSUFFICIENT"
    assert nothing.decision.verdict.needs == {"rows": 300.0}
    served.serve(7)
    served.days += 7
    until = served.serve(7)
    assert watch(served.subject, served.home, until, **QUIET).decision.verdict.outcome == "STABLE"
    assert (
        watch(served.subject, served.home, until + timedelta(days=7), **QUIET).decision.verdict.outcome
        == "INSUFFICIENT"
    )


def test_wrong_labels_are_counted_not_used(served) -> None:
    from trellis.adapters.prediction_log import LabelLog

    until = served.serve(7)
    log = LabelLog(served.home, served.subject.spec.name, flush_seconds=0)
    stamp = (until - timedelta(hours=3)).isoformat()
    for name, value in (("ghost", 1), ("0-1", 5), ("0-2", "maybe")):
        log.append({"id": name, "value": value, "observed_at": stamp, "received_at": stamp})
    log.close()
    result = watch(served.subject, served.home, until, **QUIET)
    assert {f.kind: f.count for f in result.findings} == {"unknown_id": 1, "impossible_value": 2}
    assert samples(served.home, "trellis_label_findings") == {("unknown_id",): 1.0, ("impossible_value",): 2.0}


def test_metrics_of_other_models_stay_and_what_is_told_is_well_formed(served) -> None:
    """Before, looks shared one file; what it held of others is taken over, once, and never over something newer."""
    old = served.home / "metrics" / "watch.prom"
    old.parent.mkdir(parents=True)
    head = "# HELP trellis_watch_rows x\n# TYPE trellis_watch_rows gauge\n"
    rows = [f'trellis_watch_rows{{model="{model}"}} 9\n' for model in ("other", "newer", "ferry_delay")]
    old.write_text(head + "".join(rows))
    (old.parent / "look-newer.prom").write_text(head + 'trellis_watch_rows{model="newer"} 10\n')
    until = served.serve(7)
    for _ in range(2):
        watch(served.subject, served.home, until, **QUIET)
    assert not old.exists()
    registry = CollectorRegistry()
    registry.register(LookMetrics(old.parent))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    names = [f.name for f in families]
    assert len(names) == len(set(names))
    rows = {s.labels["model"]: s.value for f in families if f.name == "trellis_watch_rows" for s in f.samples}
    assert rows == {"other": 9.0, "newer": 10.0, "ferry_delay": 700.0}
    assert not any(math.isnan(s.value) for f in families for s in f.samples)


def test_two_looks_at_once_lose_neither_models_metrics(served) -> None:
    """In a stack the monitor and the worker look at the same time, in processes of their own, in one home."""
    result = watch(served.subject, served.home, served.serve(7), **QUIET)
    (look,), path = LookStore(served.home).latest(served.subject.spec.name)[-1:], served.home / "metrics"

    def publish_often(model: str) -> int:
        for rows in range(40):
            publish(path, replace(look, model=model, rows=rows), result.diagnosis, result.performance, allowed=0.02)
            told = {s.labels["model"]: s.value for f in read_families(path) for s in f.samples if s.name == ROWS}
            if told.get(model) != rows:
                return 1
        return 0

    context = multiprocessing.get_context("fork")
    players = [context.Process(target=lambda m=model: os._exit(publish_often(m))) for model in ("one", "two", "three")]
    for player in players:
        player.start()
    for player in players:
        player.join(60)
    assert [player.exitcode for player in players] == [0, 0, 0]


def test_windows_that_make_no_sense_are_refused(served) -> None:
    with pytest.raises(DataError, match="make no history"):
        watch(served.subject, served.home, served.serve(1), window_days=0)


def test_a_look_at_the_past_leaves_evidence_and_nothing_that_speaks_of_now(served) -> None:
    """A fault of three weeks ago that is long mended, looked at by hand while a healthy look is on record."""
    served.serve(7)
    past = served.serve(7, lambda r: {**r, "load": np.where(np.arange(len(r["load"])) % 4, r["load"], 7.0)})
    now = served.serve(21)
    assert watch(served.subject, served.home, now, **QUIET).decision.verdict.outcome == "STABLE"

    def spoken():
        return {p: p.read_bytes() for d in ("alerts", "looks", "metrics") for p in (served.home / d).rglob("*.*")}

    before = spoken()
    result = watch(served.subject, served.home, past, **QUIET)
    assert (result.decision.verdict.outcome, result.alert) == ("DRIFT", None)
    assert result.quality[0].column == "load"
    assert result.evidence.exists()
    assert spoken() == before
    # What happened since the last look is now, and so is a look that a wrong --until let end after the last row.
    ahead = served.now + timedelta(days=3)
    watch(served.subject, served.home, ahead, **QUIET)
    latest = served.serve(1)
    watch(served.subject, served.home, latest, **QUIET)
    assert samples(served.home, "trellis_watch_window_end_seconds")[()] == latest.timestamp()
