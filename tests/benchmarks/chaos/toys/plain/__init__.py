"""A model of one number, in closed form: nothing to train, quick to load, and faulty on wish."""

import json

import numpy as np

from trellis.contract import Dataset, Field, Metric, ModelPlugin, ModelSpec, Predictor, RolloutPolicy, Target

SPEC = ModelSpec(
    name="plain",
    version="1",
    task="binary",
    owner="tests",
    description="One number in, one probability out.",
    request=(Field("x", "float", "A number.", minimum=0, maximum=1, example=0.5),),
    inputs=("x",),
    outputs=(Field("probability", "float", "Of yes.", minimum=0, maximum=1, example=0.5),),
    target=Target("y", "Whether.", classes=("no", "yes")),
    metric=Metric("auc", floor=0.5),
    rollout=RolloutPolicy(steps=(0.5,), min_labels=100),
)


class Plain(Predictor):
    """Raises on the share ``broken`` of all numbers."""

    def __init__(self, weights):
        self.weights = weights

    def predict(self, batch):
        if (batch["x"] > 1 - self.weights.get("broken", 0.0)).any():
            raise RuntimeError("this number is too large for me")
        return {"probability": np.clip(batch["x"] * self.weights["slope"], 0, 1)}

    def save(self, directory):
        (directory / "weights.json").write_text(json.dumps(self.weights))


class Toy(ModelPlugin):
    spec = SPEC

    def train(self, data, run):
        return Plain({"slope": 1.0})

    def load(self, directory):
        return Plain(json.loads((directory / "weights.json").read_text()))

    def sample(self, rows):
        n = np.arange(rows)
        return Dataset({"x": (n % 10) / 20}, n % 2, np.array([f"r{i}" for i in n]))


plugin = Toy()
