"""A model small enough to read at a glance: p = sigmoid(a * x + b * rate + c), with features from a service."""

import json
import os
import time

import numpy as np

from trellis.contract import Dataset, Field, Metric, ModelPlugin, ModelSpec, Predictor, Target

SPEC = ModelSpec(
    name="toy_linear",
    version="1.0",
    task="binary",
    owner="tests",
    description="A toy.",
    request=(
        Field("x", "float", "A number.", minimum=-10, maximum=10, example=0.5),
        Field("colour", "category", "A closed set.", choices=("red", "green"), example="red"),
        Field("shop", "category", "An entity.", max_length=20, example="s1"),
        Field("note", "text", "Free text.", max_length=50, nullable=True, example="hello"),
        Field("amount", "int", "A whole number.", minimum=0, maximum=1000, nullable=True, example=3),
        Field("member", "bool", "Yes or no.", nullable=True, example=True),
        Field("at", "timestamp", "When.", example="2013-07-01T09:15:00Z"),
    ),
    features=(
        Field("rate", "float", "Of the shop.", minimum=0, maximum=1, nullable=True, example=0.2),
        Field("size", "float", "Of the shop; needed.", minimum=0, example=10.0),
    ),
    feature_service="toy_v1",
    entity_keys=("shop",),
    time_field="at",
    inputs=("x", "rate", "size"),
    outputs=(Field("probability", "float", "P(positive).", minimum=0, maximum=1, example=0.5),),
    target=Target("hit", "Whether it hit.", classes=("miss", "hit")),
    metric=Metric("auc", floor=0.5),
)


class Linear(Predictor):
    def __init__(self, weights):
        self.weights = weights

    def predict(self, batch):
        w = self.weights
        if w.get("raises") and (batch["x"] > 9).any():
            raise RuntimeError("x is too large for me")
        if w.get("sleeps") and (batch["x"] > 9).any():
            time.sleep(w["sleeps"])
        if w.get("strays") and (batch["x"] > 9).any():
            return {"probability": np.full(len(batch["x"]), w["strays"])}
        if w.get("hangs") and (batch["x"] > 9).any():
            time.sleep(600)
        if w.get("dies") and (batch["x"] > 9).any():
            os.abort()
        if w.get("always"):
            return {"probability": np.full(len(batch["x"]), w["always"])}
        rate = np.where(np.isnan(batch["rate"]), 0.5, batch["rate"])
        return {"probability": 1 / (1 + np.exp(-(w["a"] * batch["x"] + w["b"] * rate + w["c"])))}

    def save(self, directory):
        (directory / "weights.json").write_text(json.dumps(self.weights))


class Toy(ModelPlugin):
    spec = SPEC

    def train(self, data, run):
        return Linear({"a": 1.0, "b": 1.0, "c": 0.0})

    def load(self, directory):
        return Linear(json.loads((directory / "weights.json").read_text()))

    def sample(self, rows):
        n = np.arange(rows)
        columns = {
            "x": n % 3 - 1.0,
            "colour": np.array(["red"] * rows, object),
            "shop": np.array(["s1"] * rows, object),
            "note": np.array([""] * rows, object),
            "amount": n,
            "member": np.ones(rows, bool),
            "at": np.array(["2013-07-01T09:15:00"] * rows, "datetime64[us]"),
            "rate": np.full(rows, 0.2),
            "size": np.full(rows, 10.0),
        }
        return Dataset(columns, n % 2, np.array([f"r{i}" for i in n]))


plugin = Toy()
