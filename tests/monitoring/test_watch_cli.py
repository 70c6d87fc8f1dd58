"""The command line from a user's side: exit codes, JSON, errors, the exporter."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from monitoring import __main__ as cli
from monitoring.subject import Subject, read_reference, views_of
from monitoring.watch import watch
from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.look_store import LookStore
from trellis.cli import app
from trellis.errors import DataError, UnknownModelError
from trellis.settings import settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(served, monkeypatch):
    """Run the command in this process, on the served home; the registry and the plan are not what is tested here."""
    from trellis import settings as module

    module.settings.cache_clear()
    monkeypatch.setenv("TRELLIS_HOME", str(served.home))
    monkeypatch.setattr("monitoring.subject.subject_of", lambda model, _settings: served.subject)
    yield lambda *arguments: cli.main(list(arguments))
    module.settings.cache_clear()


def test_exit_codes_and_json(served, command, capsys) -> None:
    until = served.serve(7).isoformat()
    assert command("watch", "ferry_delay", "--until", until, "--no-report") == 0
    assert capsys.readouterr().out.startswith("STABLE: None of 5 columns shifted")
    broken = served.serve(7, lambda r: {**r, "temp": (r["temp"] - 32) / 1.8}).isoformat()
    assert command("watch", "ferry_delay", "--until", broken, "--no-report", "--json") == 4
    body = json.loads(capsys.readouterr().out)
    assert body["decision"]["verdict"]["outcome"] == "UPSTREAM_FAULT"
    assert body["diagnosis"]["action"] == "fix upstream"
    assert body["diagnosis"]["faults"][0]["column"] == "temp"
    assert body["series"][-1]["metrics"]["auc"] > 0.5
    assert Path(body["evidence"]).exists()
    assert Path(body["alert"]).exists()
    assert body["report"] is None
    assert command("watch", "ferry_delay", "--until", "2014-01-01", "--no-report") == 5


def test_a_look_by_hand_can_be_explained_and_one_taken_again_is_one_decision(served, command, capsys) -> None:
    until = served.serve(7, lambda r: {**r, "temp": (r["temp"] - 32) / 1.8}).isoformat()
    for _ in range(2):
        assert command("watch", "ferry_delay", "--until", until, "--no-report") == 4
    told = capsys.readouterr().out.splitlines()[-1].split()
    assert told[:2] == ["trellis", "explain"]
    kept = DecisionStore(engine(settings().database_url)).list("ferry_delay", "drift")
    assert [d.verdict.outcome for d in kept] == ["UPSTREAM_FAULT"]
    explained = CliRunner().invoke(app, told[1:])
    assert explained.exit_code == 0, explained.output
    assert "temp looks converted from degF to degC" in " ".join(explained.output.split())


def test_a_look_by_hand_at_a_replay_is_at_the_replays_now_and_leaves_nothing_for_later_years(
    served, command, capsys
) -> None:
    served.serve(14, lambda r: {**r, "load": np.where(np.arange(len(r["load"])) % 2, r["load"], 7.0)})
    assert command("watch", "ferry_delay", "--paced", "--no-report") == 3
    metrics, pages = served.home / "metrics" / "look-ferry_delay.prom", LookStore(served.home)
    end = "2013-07-15T23:50:01Z"
    for by_hand in (["watch"], ["watch", "--until", "latest"]):
        assert command(*by_hand, "ferry_delay", "--no-report", "--json") == 3
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["end"] == end
    before = metrics.read_bytes()
    # Where no row is, as by the wall clock, a look says so to whoever asks, and to nobody else.
    assert command("watch", "ferry_delay", "--until", "2026-01-01", "--no-report") == 5
    assert "The window holds 0 rows" in capsys.readouterr().out
    assert metrics.read_bytes() == before
    assert [look.end for look in pages.latest("ferry_delay", 9)] == [end]


def test_performance_by_default_is_as_of_the_last_thing_that_happened(served, command, capsys) -> None:
    """Truths come four days late here: by the clock of years later all of them would be overdue, or taken for all."""
    served.serve(7, known_after=lambda r: np.full(len(r["late"]), 96))
    target = replace(served.subject.spec.target, delay_hours=96.0)
    served.subject = replace(served.subject, spec=replace(served.subject.spec, target=target))
    assert command("performance", "ferry_delay", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["series"]["as_of"], told["overdue"]) == ("2013-07-12T23:50:01Z", 0)  # the last truth's second
    assert told["series"]["points"][-1]["labels"] == 700
    assert told["series"]["points"][-1]["end"] == "2013-07-08T23:50:01Z"
    served.serve(7, labels=0)  # nothing more is observed, and four days are not over for all of them
    assert command("performance", "ferry_delay", "--as-of", "latest", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["series"]["as_of"], told["overdue"]) == ("2013-07-15T23:50:01Z", 300)


def test_performance_as_a_table_and_as_json_at_any_past_moment(served, command, capsys) -> None:
    until = served.serve(14)
    served.serve(7, lambda r: {**r, "late": 1 - r["late"]})
    assert command("performance", "ferry_delay", "--as-of", served.now.isoformat(), "--json") == 0
    body = json.loads(capsys.readouterr().out)
    points = body["series"]["points"]
    assert [p["stage"] for p in points] == ["realised", "realised", "corrected"]
    assert [p["held"] for p in points] == [True, True, None]
    assert points[2]["flags"] == ["concept_drift"]
    assert body["harm"]["low"] > 0.1
    assert {p["segment"] for p in body["series"]["segments"]} == {"line"}
    # As known a week earlier, the same as was said then; what reached the log later is left out as well.
    assert command("performance", "ferry_delay", "--as-of", until.isoformat(), "--json") == 0
    then = json.loads(capsys.readouterr().out)
    assert [p["stage"] for p in then["series"]["points"]] == ["realised", "corrected"]
    command("performance", "ferry_delay", "--as-of", until.isoformat(), "--received-by", "2013-07-02", "--json")
    assert json.loads(capsys.readouterr().out)["series"]["points"][0]["predictions"] <= 100
    assert command("performance", "ferry_delay", "--as-of", served.now.isoformat(), "--segment", "line") == 0
    table = capsys.readouterr().out
    assert "island" in table
    assert "concept_drift" in table
    assert command("performance", "ferry_delay", "--segment", "lines") == 1
    assert "Did you mean 'line'?" in capsys.readouterr().err


def test_one_event_time_far_ahead_blinds_no_look_and_is_named(served, command, capsys) -> None:
    from trellis.adapters.prediction_log import PredictionLog

    until = served.serve(7)
    log = PredictionLog(served.home, "ferry_delay", flush_seconds=0)
    line = next((served.home / "predictions" / "ferry_delay").glob("*.jsonl")).read_text().splitlines()[-1]
    log.append({**json.loads(line), "id": "typo", "time": "2099-07-01T00:00:00Z"})
    log.close()
    assert command("watch", "ferry_delay", "--until", "latest", "--no-report", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["decision"]["subject"].partition("/")[2] == "2013-07-08T23:50:01Z"
    assert body["decision"]["inputs"]["inputs"]["windows"][-1]["rows"] > 600
    assert [(f["kind"], f["rows"], f["examples"]) for f in body["quality"]] == [("clock_skew", 1, ["typo"])]
    # Taken again when there is more, the look is the same; the next week's has nothing of it.
    served.serve(7)
    assert command("watch", "ferry_delay", "--until", "2013-07-08T23:50:01Z", "--no-report", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quality"] == body["quality"]
    assert command("watch", "ferry_delay", "--until", "latest", "--no-report", "--json") == 0
    assert json.loads(capsys.readouterr().out)["quality"] == []
    # The performance of now, too, ends with the newest prediction that can be one.
    assert command("performance", "ferry_delay", "--as-of", "2150-01-01", "--json") == 0
    points = json.loads(capsys.readouterr().out)["series"]["points"]
    assert points[-1]["end"] == "2013-07-15T23:50:01Z"
    assert sum(p["predictions"] for p in points) == 1_400
    assert until < served.now


def test_a_replay_of_nothing_is_not_passed(served, command, capsys, monkeypatch) -> None:
    from tests.monitoring.test_watch_quality import Offline

    monkeypatch.setattr("monitoring.skew.offline_store", lambda _: Offline(served.drawn(0, 7)))
    served.serve(7)
    assert command("skew", "ferry_delay") == 0
    assert "none of 700 replayed rows differs" in capsys.readouterr().out
    empty = ("skew", "ferry_delay", "--until", "2013-06-01")
    assert command(*empty) == 5
    assert "no prediction was replayed" in " ".join(capsys.readouterr().out.split())
    assert command(*empty, "--json") == 5
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["passed"]) == (0, None)
    for rows in ("0", "-5"):
        assert command("skew", "ferry_delay", "--rows", rows) == 1
        assert f"A replay of {rows} rows compares nothing." in capsys.readouterr().err


def test_usage_errors(command, capsys) -> None:
    for wrong in (["watch"], ["watch", "m", "--until", "tomorrow"], ["look"], []):
        with pytest.raises(SystemExit) as stopped:
            command(*wrong)
        assert stopped.value.code == 2
    assert "no RFC 3339 time" in capsys.readouterr().err


def test_an_unknown_model_is_a_named_error(tmp_path) -> None:
    environment = {**os.environ, "TRELLIS_HOME": str(tmp_path), "TRELLIS_MODELS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "monitoring", "watch", "no_such_model"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no_such_model" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_exporter_serves_the_last_look_on_loopback_and_stops(served) -> None:
    watch(served.subject, served.home, served.serve(7), report=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "monitoring", "exporter", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "TRELLIS_HOME": str(served.home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", process.stdout.readline())
        assert found
        with urllib.request.urlopen(found[0], timeout=10) as answer:
            text = answer.read().decode()
        assert 'trellis_drift_outcome{model="ferry_delay",outcome="STABLE"} 1.0' in text
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        process.stdout.close()


def test_a_missing_or_broken_baseline_is_a_named_error(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_reference(tmp_path / "reference.json")
    (tmp_path / "reference.json").write_text("[1]")
    with pytest.raises(DataError, match="cannot be read"):
        read_reference(tmp_path / "reference.json")


def test_views_are_read_from_the_feature_tables(served) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = served.home / "features"
    folder.mkdir()
    pq.write_table(pa.table({"station": ["x"], "temp": [1.0], "wind": [2.0]}), folder / "weather.parquet")
    views = views_of(served.subject.spec, served.home)
    assert views["temp"] == views["wind"] == "weather"
    assert views["line"] == "request"
    assert views["late_rate"] == "on_demand"
    assert Subject(served.subject.spec, "1", served.subject.reference, views).units == {
        "temp": "degF",
        "wind": "mph",
    } | {n: u for n, u in served.subject.units.items() if n not in ("temp", "wind")}


def test_the_champion_and_its_baseline_are_found(served, tmp_path, monkeypatch) -> None:
    from monitoring.subject import subject_of
    from trellis.adapters.plan_store import PlanStore
    from trellis.errors import RegistryError
    from trellis.rollout import Variant, first_plan
    from trellis.settings import Settings

    plugin = tmp_path / "models" / "ferry_delay"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(
        "import sys\n"
        "from trellis.contract import ModelPlugin\n"
        "from trellis.drift import Reference\n"
        "import ferry_spec\n"
        "class Plugin(ModelPlugin):\n"
        "    spec = ferry_spec.SPEC\n"
        "    def train(self, data, run): raise NotImplementedError\n"
        "    def load(self, directory): raise NotImplementedError\n"
        "    def sample(self, rows): raise NotImplementedError\n"
        "plugin = Plugin()\n"
    )
    import types

    module = types.ModuleType("ferry_spec")
    module.SPEC = served.subject.spec  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ferry_spec", module)
    settings = Settings(home=served.home, models=tmp_path / "models")
    with pytest.raises(UnknownModelError):
        subject_of("another", settings)
    with pytest.raises(RegistryError, match="no rollout plan"):
        subject_of("ferry_delay", settings)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "reference.json").write_text(served.subject.reference.dumps())
    plan = first_plan("ferry_delay", Variant("7", "champion", 1.0, str(artifact), "0" * 64), salt="s")
    PlanStore(settings.database_url).save(plan, expected_revision=0, who="test", why="test")
    found = subject_of("ferry_delay", settings)
    assert found.version == "7"
    assert found.reference == served.subject.reference
    assert found.loss_models == {}
    (artifact / "performance.json").write_text(served.subject.loss_models["1"].dumps())
    assert subject_of("ferry_delay", settings).loss_models["7"].rows == 2_800
