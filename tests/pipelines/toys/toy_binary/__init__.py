"""A small whole plug-in: a year of hourly rows with a known law, fitted in closed form, quick to train in a test."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from trellis.contract import (
    Dataset,
    Field,
    GatePolicy,
    Metric,
    ModelPlugin,
    ModelSpec,
    Predictor,
    RetrainPolicy,
    RolloutPolicy,
    Target,
    select,
)

SPEC = ModelSpec(
    name="toy_binary",
    version="1",
    task="binary",
    owner="tests",
    description="Whether y is 1, from x and z.",
    request=(
        Field("x", "float", "One number.", minimum=-10, maximum=10, nullable=True, example=0.5),
        Field("z", "category", "One of two.", choices=("a", "b"), example="a"),
        Field("at", "timestamp", "When.", example="2013-01-01T00:00:00Z"),
    ),
    inputs=("x", "z"),
    outputs=(Field("probability", "float", "Of y = 1.", minimum=0, maximum=1),),
    target=Target("y", "Whether.", classes=("no", "yes"), delay_hours=2),
    metric=Metric("auc", floor=0.6),
    time_field="at",
    segments=("z",),
    recipes=("linear", "blind"),
    gates=GatePolicy(margin=0.02, min_rows=200),
    rollout=RolloutPolicy(steps=(0.5,), min_labels=100),
    retrain=RetrainPolicy(min_new_labels=100),
)


def rows(count: int) -> pd.DataFrame:
    """P(y) = 0.1 + 0.8 [x > 0], x standard normal, one row an hour."""
    random = np.random.default_rng(7)
    x = random.normal(size=count).astype(np.float32)
    at = np.datetime64("2013-01-01", "us") + np.arange(count) * np.timedelta64(1, "h")
    y = (random.random(count) < np.where(x > 0, 0.9, 0.1)).astype(np.int64)
    return pd.DataFrame({"x": x, "z": np.where(np.arange(count) % 2, "a", "b"), "at": at, "y": y})


def dataset(frame: pd.DataFrame) -> Dataset:
    """Truth is known two hours later."""
    at = frame["at"].to_numpy("datetime64[us]")
    return Dataset(
        columns={"x": frame["x"].to_numpy(np.float32), "z": frame["z"].to_numpy(str), "at": at},
        target=frame["y"].to_numpy(np.int64),
        row_id=np.array([f"r{i}" for i in range(len(frame))]),
        time=at,
        known=at + np.timedelta64(2, "h"),
    )


class ToyPredictor(Predictor):
    """Two probabilities, chosen by the sign of x."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def predict(self, batch):
        x = np.nan_to_num(select(batch, ("x",))["x"])
        return {"probability": np.where(x > 0, self.high, self.low)}

    def save(self, directory: Path) -> None:
        (directory / "toy.json").write_text(json.dumps([self.low, self.high]))


class Toy(ModelPlugin):
    """See ``rows``; the recipe ``blind`` ignores x."""

    spec = SPEC

    def train(self, data, run):
        x, y = data.train.columns["x"], data.train.target
        if run.recipe == "blind":
            return ToyPredictor(float(y.mean()), float(y.mean()) + 1e-9)
        return ToyPredictor(float(y[x <= 0].mean()), float(y[x > 0].mean()))

    def learn(self, start, data, run):
        """Each half moves a tenth of the way to what the rows say."""
        x, y = data.train.columns["x"], data.train.target
        low, high = (
            part.mean() if len(part) else old for part, old in ((y[x <= 0], start.low), (y[x > 0], start.high))
        )
        return ToyPredictor(float(0.9 * start.low + 0.1 * low), float(0.9 * start.high + 0.1 * high))

    def load(self, directory):
        return ToyPredictor(*json.loads((directory / "toy.json").read_text()))

    def sample(self, rows_wanted):
        return dataset(rows(min(rows_wanted, 500)))

    def ingest(self, directory):
        frame = rows(5_000)
        frame.loc[3, "x"] = 99.0  # a bad row for quarantine
        frame.to_parquet(directory / "rows.parquet", index=False)

    def examples(self, snapshot):
        return dataset(pd.read_parquet(snapshot / "rows.parquet"))


plugin = Toy()
