"""The exporter's collectors: what flows, plans and decisions amount to, read on from where the last scrape ended."""

from __future__ import annotations

import json

from monitoring.state_metrics import FeatureMarks, FlowRuns, StoreState


def samples(collector) -> dict[tuple[str, ...], float]:
    return {(s.name, *s.labels.values()): s.value for f in collector.collect() for s in f.samples}


def line(flow: str, error: str = "", seconds: float = 1.0, model: str = "m") -> str:
    run = {"flow": flow, "model": model, "error": error, "ended_at": "2026-01-01T00:00:00+00:00"}
    return json.dumps({**run, "wall_seconds": seconds, "steps": {"work": seconds}}) + "\n"


def test_flow_runs_are_counted_once_however_often_they_are_scraped(tmp_path) -> None:
    journal = tmp_path / "runs.jsonl"
    runs = FlowRuns(journal)
    assert samples(runs) == {}
    half = line("train", "DataError")
    journal.write_text(line("train", seconds=2) + "no json\n" + half[:10])
    for _ in range(3):
        found = samples(runs)
        assert found["trellis_flow_runs_total", "train", "m", "completed"] == 1
        assert found["trellis_flow_runs_total", "train", "m", "failed"] == 0
        assert found["trellis_flow_last_run_failed", "train", "m"] == 0
    with journal.open("a") as file:  # the other half of the line, and one more run
        file.write(half[10:] + line("look", seconds=3))
    found = samples(runs)
    assert found["trellis_flow_runs_total", "train", "m", "failed"] == 1
    assert found["trellis_flow_last_run_failed", "train", "m"] == 1
    assert found["trellis_flow_last_success_seconds", "train", "m"] == 2
    assert found["trellis_flow_step_seconds_total", "train", "work"] == 3
    assert found["trellis_flow_last_success_timestamp_seconds", "look", "m"] == 1_767_225_600
    journal.write_text(line("other"))  # cleared, and begun anew
    assert {key[1] for key in samples(runs)} == {"other"}


def test_a_models_failing_flow_is_not_hidden_by_anothers_good_run(tmp_path) -> None:
    journal = tmp_path / "runs.jsonl"
    old = json.loads(line("turn", "DataError"))
    del old["model"]
    journal.write_text(json.dumps(old) + "\n")
    runs = FlowRuns(journal)
    assert samples(runs)["trellis_flow_last_run_failed", "turn", ""] == 1  # of an earlier release
    with journal.open("a") as file:
        file.write(line("turn", "DataError", model="a") + line("turn", model="b"))
    found = samples(runs)
    failed = {key[1:]: value for key, value in found.items() if key[0] == "trellis_flow_last_run_failed"}
    assert failed == {("turn", "a"): 1, ("turn", "b"): 0}
    assert found["trellis_flow_runs_total", "turn", "a", "failed"] == 1
    assert ("trellis_flow_last_success_timestamp_seconds", "turn", "a") not in found


def test_the_store_tells_traffic_rollout_and_decisions(console_world) -> None:
    found = samples(StoreState(console_world.url))
    assert found["trellis_store_up",] == 1
    assert found["trellis_plan_share", "ferry_delay", "1", "champion"] == 0.9
    assert found["trellis_plan_share", "ferry_delay", "2", "canary"] == 0.1
    assert found["trellis_rollout_open", "ferry_delay"] == 1
    stages = {key[3]: value for key, value in found.items() if key[0] == "trellis_rollout_stage"}
    assert {stage for stage, value in stages.items() if value} == {"trial"}
    assert len(stages) == 8
    taken = {key[2:]: value for key, value in found.items() if key[0] == "trellis_decisions_total"}
    assert taken == {("drift", "STABLE"): 1, ("drift", "UPSTREAM_FAULT"): 1, ("canary", "HOLD"): 1}


def test_marks_that_are_missing_or_half_written_are_no_error(tmp_path) -> None:
    path = tmp_path / "watermarks.json"
    marks = FeatureMarks(path)
    assert samples(marks) == {}
    path.write_text('{"weather": {"unt')
    assert samples(marks) == {}
    path.write_text('{"weather": {"until": "1970-01-01T01:00:00+00:00"}}')
    assert samples(marks) == {("trellis_feature_materialized_timestamp_seconds", "weather"): 3600}
