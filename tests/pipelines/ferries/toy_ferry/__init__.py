"""A small plug-in for drills: whether a ferry is late, from its load, the temperature in Fahrenheit and the hour."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from trellis.contract import (
    Dataset,
    DriftPolicy,
    Field,
    GatePolicy,
    Metric,
    ModelPlugin,
    ModelSpec,
    Predictor,
    RetrainPolicy,
    Target,
    select,
)

SPEC = ModelSpec(
    name="toy_ferry",
    version="1",
    task="binary",
    owner="tests",
    description="Whether a ferry is late.",
    request=(
        Field("load", "float", "How full it is.", minimum=0, maximum=1, example=0.5),
        Field("temp", "float", "Air temperature, degrees Fahrenheit.", minimum=-60, maximum=130, nullable=True),
        Field("hour", "float", "Local hour of departure.", minimum=0, maximum=24, example=8.0),
        Field("at", "timestamp", "When.", example="2013-01-01T00:00:00Z"),
    ),
    inputs=("load", "temp", "hour"),
    outputs=(Field("probability", "float", "Of being late.", minimum=0, maximum=1),),
    target=Target("late", "Whether it came late.", classes=("no", "yes"), delay_hours=2),
    metric=Metric("auc", floor=0.6),
    time_field="at",
    gates=GatePolicy(margin=0.05, min_rows=200),
    drift=DriftPolicy(min_rows=300),
    retrain=RetrainPolicy(min_new_labels=100),
)


def rows(days: int, per_day: int, *, first: str = "2013-01-01", seed: int = 7) -> pd.DataFrame:
    """P(late) = 0.1 + 0.3 [load > 0.5] + 0.2 [temp > 60] + 0.3 [hour > 14]; ferries go from 6 to 22 o'clock."""
    random, count = np.random.default_rng(seed), days * per_day
    load, hour = random.beta(2, 2, count), np.clip(random.normal(14, 4, count), 6, 22)
    temp = random.normal(60, 8, count)
    chance = 0.1 + 0.3 * (load > 0.5) + 0.2 * (temp > 60) + 0.3 * (hour > 14)
    at = np.datetime64(first, "us") + np.arange(count) * np.timedelta64(86_400_000_000 // per_day, "us")
    late = (random.random(count) < chance).astype(np.int64)
    return pd.DataFrame({"load": load, "temp": temp, "hour": hour, "at": at, "late": late})


def dataset(frame: pd.DataFrame) -> Dataset:
    at = frame["at"].to_numpy("datetime64[us]")
    columns = {name: frame[name].to_numpy(float) for name in ("load", "temp", "hour")} | {"at": at}
    names = np.array([f"r{i}" for i in range(len(frame))])
    return Dataset(columns, frame["late"].to_numpy(np.int64), names, at, at + np.timedelta64(2, "h"))


def cells(columns) -> np.ndarray:
    middles = {"load": 0.5, "temp": 60, "hour": 14}
    high = [np.nan_to_num(columns[name].astype(float)) > middle for name, middle in middles.items()]
    return 4 * high[0] + 2 * high[1] + high[2]


class Table(Predictor):
    """One probability for each of eight cells."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)

    def predict(self, batch):
        return {"probability": self.values[cells(select(batch, ("load", "temp", "hour")))]}

    def save(self, directory: Path) -> None:
        (directory / "table.json").write_text(json.dumps(self.values.tolist()))


class Ferry(ModelPlugin):
    """See ``rows``."""

    spec = SPEC

    def train(self, data, run):
        cell, late = cells(data.train.columns), data.train.target
        return Table([float((late[cell == i].sum() + 1) / ((cell == i).sum() + 2)) for i in range(8)])

    def load(self, directory):
        return Table(json.loads((directory / "table.json").read_text()))

    def sample(self, rows_wanted):
        return dataset(rows(20, 50).head(rows_wanted))

    def ingest(self, directory):
        rows(60, 200).to_parquet(directory / "rows.parquet", index=False)

    def examples(self, snapshot):
        return dataset(pd.read_parquet(snapshot / "rows.parquet"))


plugin = Ferry()
