"""A small plug-in with features from Feast: whether a shop has a good day, from yesterday's sales."""

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
    RolloutPolicy,
    Target,
    select,
)

SHOPS = np.array([f"s{i}" for i in range(30)])
SPEC = ModelSpec(
    name="toy_shops",
    version="1",
    task="binary",
    owner="tests",
    description="Whether a shop has a good day.",
    request=(
        Field("shop", "category", "Which.", example="s1"),
        Field("at", "timestamp", "When.", example="2013-02-01T12:00:00Z"),
    ),
    features=(Field("sales", "float", "Of yesterday.", nullable=True, example=1.0),),
    feature_service="shops_v1",
    entity_keys=("shop",),
    inputs=("sales",),
    outputs=(Field("probability", "float", "Of a good day.", minimum=0, maximum=1),),
    target=Target("good", "Whether.", classes=("no", "yes"), delay_hours=2),
    metric=Metric("auc", floor=0.55),
    time_field="at",
    gates=GatePolicy(margin=0.5, min_rows=100),
    rollout=RolloutPolicy(steps=(0.5,), min_labels=100),
)


def days() -> pd.DataFrame:
    """A quarter of daily sales by shop, standard normal, as known at midnight."""
    random = np.random.default_rng(3)
    at = pd.date_range("2013-01-01", periods=90, freq="D", tz="UTC")
    frame = pd.DataFrame({"shop": np.tile(SHOPS, len(at)), "event_timestamp": np.repeat(at, len(SHOPS))})
    return frame.assign(sales=random.normal(size=len(frame)).astype(np.float32))


def rows() -> pd.DataFrame:
    """One row a shop and day at noon: P(good) = 0.1 + 0.8 [sales > 0]."""
    random, frame = np.random.default_rng(4), days()
    good = (random.random(len(frame)) < np.where(frame["sales"] > 0, 0.9, 0.1)).astype(np.int64)
    return pd.DataFrame({"shop": frame["shop"], "at": frame["event_timestamp"] + pd.Timedelta(hours=12), "good": good})


def dataset(frame: pd.DataFrame) -> Dataset:
    at = pd.to_datetime(frame["at"], utc=True).dt.tz_localize(None).to_numpy("datetime64[us]")
    columns = {"shop": frame["shop"].to_numpy(str), "at": at}
    if "sales" in frame:
        columns["sales"] = frame["sales"].to_numpy(np.float64)
    names = np.array([f"r{i}" for i in frame.index])
    return Dataset(columns, frame["good"].to_numpy(np.int64), names, at, at + np.timedelta64(2, "h"))


class ShopPredictor(Predictor):
    """Two probabilities, by which side of the middle sales lie."""

    def __init__(self, middle: float, low: float, high: float) -> None:
        self.values = (middle, low, high)

    def predict(self, batch):
        middle, low, high = self.values
        sales = np.nan_to_num(select(batch, ("sales",))["sales"].astype(float))
        return {"probability": np.where(sales > middle, high, low)}

    def save(self, directory: Path) -> None:
        (directory / "shop.json").write_text(json.dumps(self.values))


class Shops(ModelPlugin):
    """See ``rows``. The view ``sales_in_pence`` is the same feature, a hundred times as large and raised by 1000."""

    spec = SPEC

    def train(self, data, run):
        sales, good = data.train.columns["sales"], data.train.target
        middle = float(np.median(sales))
        return ShopPredictor(middle, float(good[sales <= middle].mean()), float(good[sales > middle].mean()))

    def load(self, directory):
        return ShopPredictor(*json.loads((directory / "shop.json").read_text()))

    def sample(self, rows_wanted):
        frame = rows().assign(sales=days()["sales"].to_numpy(float))
        return dataset(frame.head(rows_wanted))

    def ingest(self, directory):
        rows().to_parquet(directory / "rows.parquet", index=False)
        days().to_parquet(directory / "days.parquet", index=False)

    def examples(self, snapshot):
        return dataset(pd.read_parquet(snapshot / "rows.parquet"))

    def build_features(self, snapshot, directory):
        frame = pd.read_parquet(snapshot / "days.parquet").sort_values("event_timestamp")
        frame.to_parquet(directory / "sales.parquet", index=False)
        pence = (1000 + 100 * frame["sales"]).astype(np.float32)
        frame.assign(sales=pence).to_parquet(directory / "sales_in_pence.parquet", index=False)


plugin = Shops()
