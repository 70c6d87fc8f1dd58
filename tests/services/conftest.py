"""A prediction service over toy plug-ins, with the real plan store and the real logs, called without a socket."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.prediction.app import PredictionService
from services.prediction.metrics import Metrics
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.artifact import seal
from trellis.catalog import Catalogue
from trellis.rollout.plan import RolloutPlan, Variant

TOYS = Path(__file__).parent / "toys"


@dataclass
class Limits:
    plan_poll_seconds: float = 0.02
    flush_seconds: float = 0.0
    max_rows: int = 20
    max_body_bytes: int = 20_000
    request_seconds: float = 10.0
    max_waiting: int = 256
    cache_seconds: float = 0.0
    verify_key: Path | None = None
    unit_secret: object = None


@dataclass
class Shops:
    """A feature store that implements the one verb serving needs."""

    rows: dict = field(default_factory=lambda: {"s1": (0.2, 10.0), "s2": (0.8, 20.0)})
    calls: int = 0
    down: bool = False
    blanked: bool = False
    computed: dict = field(default_factory=dict)
    promises: tuple = ()

    def stale(self, service, times, request):
        return {view: np.full(len(moment), self.blanked) & ~np.isnat(moment) for view, moment in times.items()}

    def slas(self, service):
        return self.promises

    def derived(self, service, request):
        return {name: np.full(len(request["x"]), value) for name, value in self.computed.items()}

    def online(self, service, keys, request):
        assert service == "toy_v1"
        self.calls += 1
        if self.down:
            raise ConnectionError("the store is away")
        found = [self.rows.get(shop) for shop in keys["shop"]]
        nan = (np.nan, np.nan)
        if self.blanked:
            found, when = [row and (np.nan, row[1]) for row in found], found
        else:
            when = found
        features = {
            "rate": np.array([(row or nan)[0] for row in found]),
            "size": np.array([(row or nan)[1] for row in found]),
        }
        moment = np.datetime64("2013-07-01T08:00:00", "us")
        return features, {"shop_view": np.array([moment if row else np.datetime64("NaT", "us") for row in when])}


class World:
    """Everything around one service."""

    def __init__(self, home):
        self.home = home
        self.plans = PlanStore(f"sqlite:///{home}/trellis.db")
        self.plugins = Catalogue([TOYS], entry_points=False)
        self.shops = Shops()
        self.limits = Limits()
        self.registry = CollectorRegistry()
        self.service = self.make()
        self.app = self.service.app()
        self.runner = asyncio.Runner()

    def make(self, registry=None):
        metrics = Metrics(registry or self.registry)
        return PredictionService(self.home, self.limits, self.plans, self.plugins, self.shops, metrics)

    def artifact(self, version, model="toy_linear", onnx=False, seed=0, **weights):
        """Write and seal an artifact; return its variant."""
        directory = self.home / "artifacts" / model / version
        directory.mkdir(parents=True)
        plugin = self.plugins.plugin(model)
        if model == "toy_linear":
            (directory / "weights.json").write_text(json.dumps({"a": 1.0, "b": 1.0, "c": 0.0} | weights))
        else:
            matrix = np.random.default_rng(seed).normal(size=(4, 3))
            (directory / "weights.json").write_text(json.dumps(matrix.tolist()))
            if onnx:
                plugin.load(directory).export_onnx(directory / "model.onnx")
        spec = plugin.spec
        manifest = seal(
            directory,
            model=model,
            plugin_version=spec.version,
            recipe="default",
            seed=seed,
            inputs=spec.inputs,
            outputs=tuple(f.name for f in spec.outputs),
        )
        return Variant(version, "champion", 1.0, str(directory), manifest.digest)

    def deploy(self, champion, canary=None, share=0.0, unit=None, model="toy_linear", salt="salt"):
        """Write a plan and let the service follow it."""
        before = self.plans.current(model)
        variants = [Variant(champion.version, "champion", 1 - share, champion.location, champion.digest)]
        if canary is not None:
            variants.append(Variant(canary.version, "canary", share, canary.location, canary.digest))
        plan = RolloutPlan(model, 0, salt, tuple(variants), unit=unit)
        stored = self.plans.save(plan, expected_revision=before.revision if before else 0, who="test", why="test")
        self.service.models.poll()
        return stored

    async def send(self, method, path, app=None, **kwargs):
        transport = httpx.ASGITransport(app or self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **kwargs)

    def get(self, path):
        return self.runner.run(self.send("GET", path))

    def post(self, path, body=None, **kwargs):
        if body is not None:
            kwargs["json"] = body
        return self.runner.run(self.send("POST", path, **kwargs))

    def predict(self, *rows, model="toy_linear", **more):
        return self.post(f"/v1/models/{model}/predict", {"rows": list(rows), **more})

    def logged(self, model="toy_linear"):
        return read_predictions(self.home, model)

    def labels(self, model="toy_linear"):
        return read_labels(self.home, model)

    def metric(self, name, **labels):
        self.service.metrics.flush()
        return self.registry.get_sample_value(name, labels) or 0.0

    def close(self):
        self.runner.close()
        self.service._logs.close()
        self.service.workers.close()
        self.plans.close()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory):
    """One service with one champion of each toy, for tests that leave it as it was."""
    world = World(tmp_path_factory.mktemp("shared"))
    world.deploy(world.artifact("1"))
    world.deploy(world.artifact("1", model="toy_tensor", onnx=True), model="toy_tensor")
    yield world
    world.close()


@pytest.fixture(scope="session")
def row():
    """Return a good row of ``toy_linear``, with changes; a value of ... leaves the field out."""

    def make(**changes):
        base = {"x": 0.5, "colour": "red", "shop": "s1", "at": "2013-07-01T09:15:00Z"}
        return {name: value for name, value in {**base, **changes}.items() if value is not ...}

    return make
