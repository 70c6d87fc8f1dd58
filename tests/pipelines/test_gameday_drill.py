"""Game days played for real: a toy's service, logs, watch job and loop, on a copy; known faults, and a control."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.loop_store import LoopStore
from trellis.adapters.plan_store import PlanStore

ROOT = Path(__file__).parents[2]
FERRIES = Path(__file__).parent / "ferries"
MODEL, DAYS = "toy_ferry", 14
pytestmark = [pytest.mark.slow, pytest.mark.e2e]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a champion and a fortnight of labelled traffic."""
    home = tmp_path_factory.mktemp("drill") / "home"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    environment |= {"TRELLIS_HOME": str(home), "TRELLIS_MODELS": str(FERRIES), "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "pipelines", "train", MODEL, "--until", "2013-03-01T00:00:00Z"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=280)
        record(home)
        yield home


def record(home: Path) -> None:
    """Write a fortnight of answered and labelled traffic of a world that is as in training."""
    from tests.pipelines.ferries.toy_ferry import dataset, plugin, rows
    from trellis.adapters.prediction_log import LabelLog, PredictionLog

    plan = PlanStore(f"sqlite:///{home}/store/trellis.db").current(MODEL)
    champion = plugin.load(Path(plan.champion.location))
    traffic = dataset(rows(DAYS, 400, first="2013-03-01", seed=11))
    scores = champion.predict(traffic.columns)["probability"]
    predictions, labels = (log(home, MODEL, flush_seconds=1) for log in (PredictionLog, LabelLog))
    records, truths = [], []
    for i, moment in enumerate(traffic.time.tolist()):
        stamp = moment.replace(tzinfo=UTC).isoformat()
        seen = (moment.replace(tzinfo=UTC) + timedelta(hours=2)).isoformat()
        request = {n: float(traffic.columns[n][i]) for n in ("load", "temp", "hour")} | {"at": stamp}
        records.append(
            {"id": f"t{i}", "model": MODEL, "version": "1", "variant": "champion", "revision": plan.revision}
            | {"time": stamp, "received_at": stamp, "unit": f"t{i}", "request": request, "features": {}}
            | {"feature_times": {}, "overrides": [], "outputs": {"probability": float(scores[i])}, "latency_ms": 1.0}
        )
        truths.append({"id": f"t{i}", "value": int(traffic.target[i]), "observed_at": seen, "received_at": seen})
    predictions.extend(records)
    labels.extend(truths)
    predictions.close()
    labels.close()


def play(home: Path, scenario: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "pipelines.gameday_cli", MODEL, "--scenario", scenario, "--json"]
    command += ["--quiet-days", "2", "--days", "6"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=280)
    shutil.rmtree(home / "game-day", ignore_errors=True)
    assert done.returncode in (0, 3), done.stderr[-3_000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("scenario", "column"),
    [("unit", "temp"), ("nulls", "temp"), ("stale", "load"), ("time_zone", "hour"), ("concept", "")],
)
def test_a_fault_is_noticed_and_the_delay_told(system: Path, scenario: str, column: str):
    before = sorted((p.name, p.stat().st_size) for p in (system / "predictions" / MODEL).iterdir())
    code, report = play(system, scenario)
    print(json.dumps({k: v for k, v in report.items() if k != "days"}))
    assert code == 0, report
    assert report["false_alarms"] == 0
    # The change is at a known moment; the delay is counted from there, in event time and in looks.
    start = datetime.fromisoformat(report["start"])
    injected = [day for day in report["days"] if day["injected"]]
    assert report["noticed_after_looks"] == len(injected)  # the drill ends with the look that noticed it
    delay = datetime.fromisoformat(injected[-1]["until"]) - start
    assert report["noticed_after_days"] == pytest.approx(delay / timedelta(days=1), abs=0.01)
    assert injected[-1]["outcome"] in ("DRIFT", "UPSTREAM_FAULT") or injected[-1]["refused"]
    if column:
        assert report["columns"] == [column]
        assert report["named"] or injected[-1]["refused"]
    # Of the drill nothing reaches the system itself.
    assert sorted((p.name, p.stat().st_size) for p in (system / "predictions" / MODEL).iterdir()) == before
    assert not list((system / "alerts").glob("*.json")) if (system / "alerts").exists() else True
    assert np.all([day["sent"] + day["refused"] > 0 for day in report["days"]])


def test_a_control_day_without_a_fault_reports_nothing(system: Path):
    code, report = play(system, "calm")
    assert (code, report["noticed_after_days"], report["false_alarms"]) == (0, None, 0)
    assert {day["outcome"] for day in report["days"]} <= {"STABLE", "INCONCLUSIVE", "WARN", "WATCH", "HOLD"}
    assert not any("alert" in line for line in report["done"])


def test_a_system_on_servers_is_drilled_on_a_copy_and_nothing_reaches_them(system, database, monkeypatch):
    url, file = database("drilled"), f"sqlite:///{system}/store/trellis.db"
    embedded = engine(file)
    for place in (file, url):  # the tables, of the platform's own making
        PlanStore(place)
        DecisionStore(engine(place))
        LoopStore(place)
    tables = sa.MetaData()
    tables.reflect(engine(url))
    with embedded.connect() as one, engine(url).begin() as other:
        for table in tables.sorted_tables:
            for row in one.execute(sa.select(table)).mappings():
                other.execute(table.insert(), dict(row))

    def rows():
        with engine(url).connect() as connection:
            return {t.name: sorted(map(repr, connection.execute(sa.select(t)))) for t in tables.sorted_tables}

    before = rows()
    assert before["decisions"]
    (system / "store").rename(system / "elsewhere")
    (system / "registry").mkdir()
    registry = Path(shutil.copy(system / "mlflow" / "mlflow.db", system / "registry"))
    registered = registry.read_bytes()
    for name, value in {
        "STORE_URL": url,
        "ONLINE_STORE": "redis://127.0.0.1:1/0",  # nobody is there, nor is anybody asked
        "MLFLOW_URI": f"sqlite:///{system}/registry/mlflow.db",
        "ORCHESTRATOR": "prefect",
    }.items():
        monkeypatch.setenv(f"TRELLIS_{name}", value)
    try:
        code, report = play(system, "unit")
    finally:
        (system / "elsewhere").rename(system / "store")
    assert registry.read_bytes() == registered
    assert (code, report["false_alarms"], report["columns"]) == (0, 0, ["temp"])
    assert rows() == before
