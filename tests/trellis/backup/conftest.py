"""A home with something of everything in it, and what somebody would miss of it."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.prediction_log import PredictionLog
from trellis.adapters.registry import ModelRegistry, RunRecord
from trellis.artifact import seal, verify
from trellis.decision import Check, Verdict, decision_of, dumps
from trellis.rollout.plan import RolloutPlan, Variant

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
DEFINITIONS = """
import os
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

shop = Entity(name="shop", value_type=ValueType.STRING)
path = str(Path(os.environ["TRELLIS_HOME"]) / "features/sales.parquet")
source = FileSource(name="sales", path=path, timestamp_field="event_timestamp")
sales = FeatureView(
    name="sales", entities=[shop], ttl=timedelta(days=9), schema=[Field(name="sum", dtype=Float64)], source=source
)
everything = FeatureService(name="everything", features=[sales])
"""
SHOPS = pd.DataFrame(
    {
        "shop": ["a", "b", "a"],
        "sum": [1.25, -3.5, 7.0],
        "event_timestamp": pd.to_datetime(["2013-06-30", "2013-07-01", "2013-07-01"], utc=True),
    }
)


def make_home(place: Path, store_url: str | None = None, until: datetime = NOW, online_store: str = "sqlite") -> Path:
    """Fill a home: a champion and its rollout, a decision, features online and offline, the log, a torn last line."""
    repo, home = place / "repo", place / "home"
    repo.mkdir(parents=True)
    (repo / "definitions.py").write_text(DEFINITIONS)
    shutil.copy(Path(__file__).parents[3] / "feature_repo/feature_store.yaml", repo)
    (home / "features").mkdir(parents=True)
    SHOPS.to_parquet(home / "features/sales.parquet", index=False)
    features = FeatureStore(repo, home, online_store)
    features.apply()
    features.materialize(until)

    registry = ModelRegistry(f"sqlite:///{home}/mlflow/mlflow.db", home / "mlflow/artifacts")
    artifact = place / "artifact"
    artifact.mkdir()
    (artifact / "m.json").write_text("[1]")
    manifest = seal(artifact, model="toy", plugin_version="1", recipe="default", seed=1, inputs=("x",), outputs=("y",))
    dataset = {"name": "toy", "digest": "d" * 64, "source": "snapshot"}
    version = registry.register(artifact, manifest, RunRecord("k", {}, {"auc": 0.7}, {}, dataset, {"card.md": "# Toy"}))
    registry.set_alias("toy", "champion", version.version)

    url = store_url or f"sqlite:///{home}/store/trellis.db"
    (home / "store").mkdir()
    plans = PlanStore(url)
    first = RolloutPlan("toy", 0, "salt", (Variant("0", "champion", 1.0, str(artifact), manifest.digest),))
    plans.save(first, expected_revision=0, who="anna", why="first")
    now = RolloutPlan("toy", 1, "salt", (Variant(version.version, "champion", 1.0, version.location, version.digest),))
    plans.save(now, expected_revision=1, who="platform", why="better")
    verdict = Verdict("PROMOTE", "Because.", (Check("c", True, "0.3 < 1", 0.1 + 0.2, 1.0),), {"rows": 3.0})
    DecisionStore(engine(url)).record(
        decision_of("gate", model="toy", subject="1", at=NOW.isoformat(), inputs={"x": 0.1}, policy={}, verdict=verdict)
    )

    log = PredictionLog(home, "toy", flush_seconds=0)
    log.append({"id": "p1", "model": "toy", "version": "1", "time": NOW.isoformat(), "outputs": {"y": 0.1 + 0.2}})
    log.close()
    (home / "predictions/toy/killed.jsonl").write_text('{"id": "p2", "outp')
    engine(url).dispose()
    return home


def missed(home: Path, store_url: str | None = None) -> dict[str, Any]:
    """Return what must be the same after a restore, read afresh through the platform's own stores."""
    url = store_url or f"sqlite:///{home}/store/trellis.db"
    engine(url).dispose()
    registry = ModelRegistry(f"sqlite:///{home}/mlflow/mlflow.db", home / "mlflow/artifacts")
    champion = registry.with_alias("toy", "champion")
    assert champion is not None
    features = FeatureStore(home.parent / "repo", home)
    keys = {"shop": np.array(["a", "b", "c"])}
    online, times = features.online("everything", keys, {})
    trained = features.training_set("everything", keys, np.full(3, np.datetime64("2013-06-30T12:00", "us")))
    plans = PlanStore(url)
    predictions = [path.read_text() for path in sorted((home / "predictions/toy").iterdir())]
    return {
        "champion": champion.version,
        "artifact": verify(Path(champion.location), champion.digest).digest,
        "metrics": registry.metrics(champion),
        "card": registry.document(champion, "card.md"),
        "plan": plans.current("toy"),
        "history": plans.history("toy"),
        "decisions": [dumps(one) for one in DecisionStore(engine(url)).list()],
        "online": repr({name: column.tolist() for name, column in online.items()}),
        "times": repr({name: column.tolist() for name, column in times.items()}),
        "trained": repr({name: column.tolist() for name, column in trained.items()}),
        "predictions": predictions,
    }


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A home, and beside it ``repo``; copied by who changes it, at the same path."""
    return make_home(tmp_path_factory.mktemp("pristine"))
