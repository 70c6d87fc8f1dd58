"""Both reference models, trained small on real rows and sealed as the flow does it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trellis.adapters.loading import load_predictor
from trellis.artifact import Manifest, seal
from trellis.catalog import Catalogue
from trellis.contract import Dataset, ModelPlugin, TrainingData, TrainingRun
from trellis.patterns import BatchModel

MODELS = Path(__file__).parents[3] / "models"
SMALL = {"flight_delay": {"rounds": 40, "learning_rate": 0.1, "refit": False}, "digits": {"epochs": 2}}


@dataclass
class Trained:
    plugin: ModelPlugin
    artifact: Path
    manifest: Manifest
    unseen: Dataset
    plugin_folder: Path = MODELS

    @property
    def spec(self):
        return self.plugin.spec

    @property
    def batch(self):
        predictor, _ = load_predictor(self.plugin, self.artifact)
        return BatchModel(self.spec, predictor, "7", self.manifest.digest)


def train(name, root):
    plugin = Catalogue([MODELS], entry_points=False).plugin(name)
    rows = plugin.sample(900)
    scratch, artifact = root / "scratch", root / name
    scratch.mkdir()
    artifact.mkdir()
    data = TrainingData(rows.take(slice(0, 500)), rows.take(slice(500, 700)))
    predictor = plugin.train(data, TrainingRun(3, plugin.spec.recipes[0], scratch, params=SMALL[name]))
    predictor.save(artifact)
    predictor.export_onnx(artifact / "model.onnx")
    spec = plugin.spec
    manifest = seal(
        artifact,
        model=name,
        plugin_version=spec.version,
        recipe=spec.recipes[0],
        seed=3,
        inputs=spec.inputs,
        outputs=tuple(f.name for f in spec.outputs),
    )
    return Trained(plugin, artifact, manifest, rows.take(slice(700, None)))


@pytest.fixture(scope="session")
def flights(tmp_path_factory):
    return train("flight_delay", tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return train("digits", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def arrow():
    """Return a function from a batch to an Arrow table: tensors as fixed-size lists, empty strings as nulls."""

    def table(columns, rows=slice(None)):
        arrays = {}
        for name, column in columns.items():
            values = column[rows]
            if values.ndim > 1:
                flat = pa.array(np.ascontiguousarray(values).reshape(-1))
                arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values[0].size)
            elif values.dtype.kind == "U":
                arrays[name] = pa.array([v or None for v in values.tolist()], pa.string())
            else:
                arrays[name] = pa.array(values, from_pandas=True)
        return pa.table(arrays)

    return table


@pytest.fixture
def served(tmp_path, flights):
    """A home in which version 7 of the flight model is the champion: the command line, and how to run it there."""
    from trellis.adapters.plan_store import PlanStore
    from trellis.rollout.plan import Variant, first_plan

    home = tmp_path / "home"
    home.mkdir()
    url = f"sqlite:///{home}/trellis.db"
    plans = PlanStore(url)
    champion = Variant("7", "champion", 1.0, str(flights.artifact), flights.manifest.digest)
    plans.save(first_plan("flight_delay", champion, salt="s"), expected_revision=0, who="test", why="test")
    plans.close()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    environment |= {"TRELLIS_HOME": str(home), "TRELLIS_STORE_URL": url, "TRELLIS_MODELS": str(MODELS)}
    line = [sys.executable, "-c", "from trellis.cli import main; main()"]
    return line, {"env": environment, "cwd": tmp_path}
