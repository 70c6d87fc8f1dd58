"""Online, batch and embedded: the same rows get the same answers, for every reference model."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.prediction.app import PredictionService
from services.prediction.metrics import Metrics
from trellis.adapters.plan_store import PlanStore
from trellis.artifact import seal
from trellis.catalog import Catalogue
from trellis.contract import Predictor
from trellis.patterns import export_model, patterns_agree, predict_batch
from trellis.patterns.parity import json_row, read_scores, run_export
from trellis.rollout.plan import Variant, first_plan
from trellis.settings import Settings

ROOT = Path(__file__).parents[3]

ROWS = 60
# One row or many, another order of float32 sums; and nothing else.
RTOL, ATOL = 1e-5, 1e-6
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning")


@dataclass
class Way:
    trained: object
    rows: object


@pytest.fixture(params=["flights", "digits"])
def way(request):
    trained = request.getfixturevalue(request.param)
    return Way(trained, trained.unseen.take(slice(0, ROWS)))


def online(trained, rows, home):
    """Ask the real application, one row per request and then all at once."""
    spec, plans = trained.spec, PlanStore(f"sqlite:///{home}/trellis.db")
    champion = Variant("7", "champion", 1.0, str(trained.artifact), trained.manifest.digest)
    plans.save(first_plan(spec.name, champion, salt="s"), expected_revision=0, who="test", why="test")
    catalogue = Catalogue([trained.plugin_folder], entry_points=False)
    service = PredictionService(home, Settings(home=home), plans, catalogue, None, Metrics(CollectorRegistry()))
    service.models.poll()
    sent = [json_row(trained.plugin, rows.columns, i) for i in range(len(rows))]

    async def ask():
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = []
            for body in [{"rows": [row]} for row in sent] + [{"rows": sent}]:
                answer = await client.post(f"/v1/models/{spec.name}/predict", json=body)
                assert answer.status_code == 200, answer.text
                answers.append(answer.json()["predictions"])
            return answers

    *single, together = asyncio.run(ask())
    service._watcher.start()
    service.stop()
    plans.close()

    def outputs(predictions):
        return {f.name: np.array([p[f.name] for p in predictions]) for f in spec.outputs}

    return outputs([answer[0] for answer in single]), outputs(together)


def test_every_way_gives_the_same_answers(way, tmp_path, arrow):
    import pyarrow.parquet as pq

    trained, rows = way.trained, way.rows
    single, together = online(trained, rows, tmp_path)
    pq.write_table(arrow({name: rows.columns[name] for name in trained.spec.fields}), tmp_path / "in.parquet")
    predict_batch(trained.batch, tmp_path / "in.parquet", tmp_path / "out.parquet", part_rows=17)
    export_model(trained.spec, trained.artifact, tmp_path / "export", version="7")
    ways = {
        "online, together": together,
        "batch": read_scores(trained.plugin, tmp_path / "out.parquet"),
        "embedded": run_export(
            trained.plugin,
            tmp_path / "export",
            [json.dumps(json_row(trained.plugin, rows.columns, i)) for i in range(ROWS)],
        ),
    }
    for name, outputs in ways.items():
        for field in trained.spec.outputs:
            np.testing.assert_allclose(
                outputs[field.name], single[field.name], rtol=RTOL, atol=ATOL, err_msg=f"{name}, {field.name}"
            )


def test_the_gates_function_says_so_too(way):
    found = patterns_agree(way.trained.plugin, way.trained.artifact, way.rows, digest=way.trained.manifest.digest)
    assert found.agree, found.problems
    assert found.rows == ROWS
    assert set(found.worst) == {"batch", "embedded", "plug-in"}
    assert max(found.worst["batch"], found.worst["embedded"]) <= RTOL + ATOL


class Wrong(Predictor):
    def __init__(self, inner):
        self.inner = inner

    def predict(self, batch):
        answer = dict(self.inner.predict(batch))
        name = next(iter(answer))
        # A fault that only shows with many rows at once: the last one is the first one's.
        answer[name] = np.concatenate([answer[name][:-1], answer[name][:1]]) if len(answer[name]) > 1 else answer[name]
        return answer

    def save(self, directory):
        raise AssertionError


def test_a_way_that_differs_is_named(way, monkeypatch):
    from trellis.patterns import parity

    real = parity.load_predictor
    monkeypatch.setattr(parity, "load_predictor", lambda *a: (Wrong(real(*a)[0]), "python"))
    found = patterns_agree(way.trained.plugin, way.trained.artifact, way.rows)
    assert not found.agree
    assert set(found.problems) == {"batch"}
    assert f"row {ROWS - 1} differs" in found.problems["batch"]


def test_a_graph_of_other_weights_than_the_plugins_is_named(tmp_path):
    """The export is stale: sealed together with weights that it was not made from."""
    plugin = Catalogue([ROOT / "tests" / "services" / "toys"], entry_points=False).plugin("toy_tensor")
    for place, seed in (("good", 0), ("other", 1)):
        (tmp_path / place).mkdir()
        matrix = np.random.default_rng(seed).normal(size=(4, 3))
        (tmp_path / place / "weights.json").write_text(json.dumps(matrix.tolist()))
    artifact = tmp_path / "good"

    def sealed(weights):
        plugin.load(weights).export_onnx(artifact / "model.onnx")
        outputs = tuple(f.name for f in plugin.spec.outputs)
        how = {"plugin_version": "1", "recipe": "r", "seed": 0, "inputs": plugin.spec.inputs, "outputs": outputs}
        seal(artifact, model=plugin.spec.name, **how)

    rows = plugin.sample(20)
    sealed(artifact)
    assert patterns_agree(plugin, artifact, rows).agree
    sealed(tmp_path / "other")
    found = patterns_agree(plugin, artifact, rows)
    assert set(found.problems) == {"plug-in"}
    assert found.worst["plug-in"] > 0.01
