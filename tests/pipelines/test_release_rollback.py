"""Going back brings back all that a version was released with: model, feature view, thresholds and drift baseline."""

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
MODEL = "toy_shops"
VIEW = """
import os
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32

FEATURES = Path(os.environ["TRELLIS_HOME"]) / "features"
shop = Entity(name="shop", value_type=ValueType.STRING)


def view(name):
    return FeatureView(
        name=name, entities=[shop], ttl=timedelta(days=400), owner="us", schema=[Field(name="sales", dtype=Float32)],
        source=FileSource(name=name, path=str(FEATURES / f"{name}.parquet"), timestamp_field="event_timestamp"),
        tags={"freshness_sla": "P400D"},
    )
"""
FIRST = """
sales = view("sales")
shops_v1 = FeatureService(name="shops_v1", features=[sales], tags={"time_field": "at"}, owner="us")
"""
SECOND = """
sales_in_pence = view("sales_in_pence")
shops_v2 = FeatureService(name="shops_v2", features=[sales_in_pence], tags={"time_field": "at"}, owner="us")
"""
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def define(repo: Path, *parts: str) -> None:
    repo.mkdir(parents=True, exist_ok=True)
    (repo / "definitions.py").write_text(VIEW + "".join(parts))
    shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", repo)


@pytest.fixture
def shops(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that serves both feature services; settings that name it."""
    from trellis.settings import settings

    define(tmp_path / "repo", FIRST, SECOND)
    monkeypatch.setenv("TRELLIS_MODELS", str(Path(__file__).parent / "shops"))
    monkeypatch.setenv("TRELLIS_FEATURE_REPO", str(tmp_path / "repo"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings.cache_clear()
    return tmp_path / "repo"


def in_force() -> dict[str, object]:
    """What monitoring holds the traffic to now, and by which features and model it is answered."""
    from monitoring.subject import subject_of
    from pipelines.stores import plans
    from trellis.settings import settings

    subject = subject_of(MODEL, settings())
    plan = plans().current(MODEL)
    assert plan is not None
    return {
        "model": (subject.version, plan.champion.digest),
        "features": (subject.spec.feature_service, plan.champion.release.features),
        "thresholds": (subject.spec.drift.psi_alarm, subject.spec.quality.max_skew),
        "baseline": hashlib.sha256(subject.reference.dumps().encode()).hexdigest(),
    }


def served(home: Path) -> dict[str, dict[str, object]]:
    """Answer one row by each way the plan draws, with the real store; return version to the features it was given."""
    from prometheus_client import CollectorRegistry

    from services.prediction.app import PredictionService
    from services.prediction.metrics import Metrics
    from tests.services.conftest import Limits
    from trellis.adapters.feature_store import FeatureStore
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.prediction_log import read_predictions
    from trellis.catalog import Catalogue
    from trellis.settings import settings

    now = settings()
    store = FeatureStore(now.feature_repo, now.directory(), now.online_store)
    plans = PlanStore(now.database_url)
    service = PredictionService(home, Limits(), plans, Catalogue([now.models]), store, Metrics(CollectorRegistry()))
    service.models.poll()
    rows = [{"shop": f"s{i}", "at": "2013-03-25T12:00:00Z"} for i in range(20)]

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(f"/v1/models/{MODEL}/predict", json={"rows": rows})

    answer = asyncio.run(ask())
    service._logs.close()
    service.workers.close()
    plans.close()
    assert answer.status_code == 200, answer.text
    found = read_predictions(home, MODEL)
    found = found[found["id"].str.startswith(answer.json()["request_id"])]
    assert len(found) == len(rows)
    return {
        str(version): {
            "low": part["features.sales"].min(),
            "views": {c for c in part if c.startswith("feature_times") and part[c].notna().any()},
        }
        for version, part in found.groupby("version")
    }


def test_going_back_restores_all_four_at_once_and_refuses_features_that_are_gone(shops, home, monkeypatch):
    from pipelines import plugins
    from pipelines.loop import Work
    from pipelines.plugins import plugin_named
    from pipelines.rollout import controller
    from pipelines.stores import plans
    from pipelines.training import Recipe, train_model
    from trellis.cli import app
    from trellis.errors import FeatureVersionError
    from trellis.settings import settings

    made = train_model(MODEL, Recipe("default"), until="2013-02-28T00:00:00Z")
    assert made.verdict == "PROMOTE", made.reason
    first = in_force()
    assert first["features"][0] == "shops_v1"

    # The second version: other features, other thresholds, other training rows and so another baseline.
    code = shops.parent / "models-2" / MODEL / "__init__.py"
    shutil.copytree(Path(__file__).parent / "shops", code.parents[1])
    policies = "drift=DriftPolicy(psi_alarm=0.4),\n    quality=QualityPolicy(max_skew=0.2),\n    time_field"
    text = (
        code.read_text()
        .replace('service="shops_v1"', 'service="shops_v2"')
        .replace("    time_field", f"    {policies}")
    )
    code.write_text(text.replace("    Dataset,\n", "    Dataset,\n    DriftPolicy,\n    QualityPolicy,\n", 1))
    monkeypatch.setenv("TRELLIS_MODELS", str(code.parents[1]))
    settings.cache_clear()
    plugins.catalogue.cache_clear()
    spec = plugin_named(MODEL).spec
    assert (spec.feature_service, spec.drift.psi_alarm) == ("shops_v2", 0.4)
    assert in_force() == first  # a declaration of the next version changes nothing about the one that answers
    assert train_model(MODEL, Recipe("default"), until="2013-03-28T00:00:00Z").verdict == "PROMOTE"
    assert in_force() == first  # nor does a version on trial

    # While both answer, each row's features are those of its own version.
    both = served(home)
    assert both["1"]["low"] < 0 < 500 < both["2"]["low"]
    assert both["1"]["views"] == {"feature_times.sales"}
    assert both["2"]["views"] == {"feature_times.sales_in_pence"}

    controller().override(MODEL, "promote", spec.rollout, who="anna", why="wanted")
    second = in_force()
    assert all(second[part] != first[part] for part in first), second
    assert second["thresholds"] == (0.4, 0.2)
    assert set(served(home)) == {"2"}

    # An operator goes back: one revision of the plan, and all four are the first version's.
    revision = plans().current(MODEL).revision
    done = CliRunner().invoke(app, ["rollout", "rollback", MODEL, "--why", "worse", "--who", "anna"])
    assert done.exit_code == 0, done.output
    assert (in_force(), plans().current(MODEL).revision) == (first, revision + 1)
    again = served(home)
    assert set(again) == {"1"}
    assert again["1"]["low"] < 0
    told = CliRunner().invoke(app, ["rollout", "explain", MODEL], env={"COLUMNS": "200"}).output
    for release in (first, second):
        assert release["features"][1].removeprefix("sha256:")[:8] in told
        assert release["model"][1].removeprefix("sha256:")[:8] in told
    shown = json.loads(CliRunner().invoke(app, ["rollout", "show", MODEL, "--json"]).output)
    assert shown["plan"]["variants"][0]["release"]["drift"]["psi_alarm"] == first["thresholds"][0]

    # The loop goes back by the same way.
    controller().rollback(MODEL, spec.rollout, who="anna", why="the other way round", to="2")
    assert in_force() == second
    work = Work.__new__(Work)
    work._model, work._spec = MODEL, spec
    cycle = type("Cycle", (), {"version": "2", "why": "worse", "champion": "1"})
    work.give_back(cycle)
    assert in_force() == first

    # The first version's features are defined otherwise by now, or gone: then nothing moves, and it says why.
    controller().rollback(MODEL, spec.rollout, who="anna", why="the other way round again", to="2")
    history = len(plans().history(MODEL))
    other = FIRST.replace('sales = view("sales")', "").replace("[sales]", "[sales_in_pence]")
    for definitions, state in (((SECOND, other), "defined otherwise"), ((SECOND,), "not served any more")):
        define(shops, *definitions)
        from pipelines.data import feature_store

        feature_store().apply()
        with pytest.raises(FeatureVersionError, match=f"shops_v1.*{state}"):
            controller().rollback(MODEL, spec.rollout, who="anna", why="worse")
        assert (in_force(), len(plans().history(MODEL))) == (second, history)
