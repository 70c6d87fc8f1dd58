"""A model that can do without its one feature, which comes from the online store."""

import json

import numpy as np

from trellis.contract import Dataset, Field, Metric, ModelPlugin, ModelSpec, Predictor, Target

SPEC = ModelSpec(
    name="fed",
    version="1",
    task="binary",
    owner="tests",
    description="A number and a shop's rate in, one probability out.",
    request=(
        Field("x", "float", "A number.", minimum=0, maximum=1, example=0.5),
        Field("shop", "text", "Which shop.", example="s0"),
    ),
    features=(Field("rate", "float", "Of the shop.", nullable=True, example=0.2),),
    feature_service="fed_v1",
    entity_keys=("shop",),
    inputs=("x", "rate"),
    outputs=(Field("probability", "float", "Of yes.", minimum=0, maximum=1, example=0.5),),
    target=Target("y", "Whether.", classes=("no", "yes")),
    metric=Metric("auc", floor=0.5),
)


class Fed(Predictor):
    def __init__(self, weights):
        self.weights = weights

    def predict(self, batch):
        rate = np.nan_to_num(batch["rate"], nan=0.5)
        return {"probability": np.clip(batch["x"] * self.weights["slope"] * rate, 0, 1)}

    def save(self, directory):
        (directory / "weights.json").write_text(json.dumps(self.weights))


class Toy(ModelPlugin):
    spec = SPEC

    def train(self, data, run):
        return Fed({"slope": 1.0})

    def load(self, directory):
        return Fed(json.loads((directory / "weights.json").read_text()))

    def sample(self, rows):
        n = np.arange(rows)
        columns = {"x": (n % 10) / 20, "shop": np.array(["s0"] * rows, object), "rate": np.full(rows, 0.2)}
        return Dataset(columns, n % 2, np.array([f"r{i}" for i in n]))


plugin = Toy()
