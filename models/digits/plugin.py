"""The digits plug-in: its declaration and its three verbs; whatever is heavy is imported when it is needed."""

from __future__ import annotations

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
    RolloutPolicy,
    Target,
    TrainingData,
    TrainingRun,
)

SIDE = 8
PIXELS = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]

SPEC = ModelSpec(
    name="digits",
    version="1.0",
    task="multiclass",
    owner="vision@trellis.example",
    description="Reads one handwritten digit from an image of 8 by 8 grey levels; a small convolutional network.",
    request=(
        Field(
            "image",
            "tensor",
            "Ink per cell, 0 (paper) to 16 (full), one channel, rows from the top.",
            minimum=0.0,
            maximum=16.0,
            shape=(1, SIDE, SIDE),
        ),
    ),
    inputs=("image",),
    outputs=(
        Field("probabilities", "tensor", "Probability of each digit 0–9.", minimum=0.0, maximum=1.0, shape=(10,)),
        Field("label", "int", "The most probable digit.", minimum=0, maximum=9),
    ),
    target=Target("digit", "The digit the writer was asked for.", classes=tuple("0123456789"), delay_hours=24.0),
    metric=Metric("accuracy", floor=0.95),
    recipes=("cnn",),
    gates=GatePolicy(min_rows=200, min_segment_rows=50, max_latency_ms=10.0, max_bytes=2_000_000),
    rollout=RolloutPolicy(min_labels=100),
    drift=DriftPolicy(min_rows=200),
    settings={
        "cnn": {"epochs": 60, "patience": 12, "batch_size": 64, "learning_rate": 3e-3, "dropout": 0.25, "shift": 1}
    },
)


class DigitsPlugin(ModelPlugin):
    """A Lightning network on images; also knows where its data come from."""

    spec = SPEC

    def train(self, data: TrainingData, run: TrainingRun) -> Predictor:
        """Fit the network on ``data.train``; stop and calibrate on ``data.validation``."""
        from .training import train

        return train(data, run, {**SPEC.settings["cnn"], **run.params})

    def load(self, directory: Path) -> Predictor:
        """Read a saved network; needs torch, not Lightning."""
        from .network import DigitsPredictor

        return DigitsPredictor.load(directory)

    def sample(self, rows: int) -> Dataset:
        """Return the first ``rows`` digits of the bundled data."""
        return _dataset(_bundled().head(rows))

    def ingest(self, directory: Path) -> None:
        """Write ``digits.parquet``: one row per image with its pixels and the digit."""
        directory.mkdir(parents=True, exist_ok=True)
        _bundled().to_parquet(directory / "digits.parquet", index=False)

    def examples(self, snapshot: Path) -> Dataset:
        """Return every image of the snapshot with its digit; images carry no time."""
        return _dataset(pd.read_parquet(snapshot / "digits.parquet"))


def _bundled() -> pd.DataFrame:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    frame = pd.DataFrame(bunch.data.astype(np.float32), columns=PIXELS)
    frame.insert(0, "image_id", [f"digit-{i:04d}" for i in range(len(frame))])
    frame["digit"] = bunch.target.astype(np.int64)
    return frame


def _dataset(frame: pd.DataFrame) -> Dataset:
    return Dataset(
        columns={"image": frame[PIXELS].to_numpy(np.float32).reshape(-1, 1, SIDE, SIDE)},
        target=frame["digit"].to_numpy(np.int64),
        row_id=frame["image_id"].to_numpy(dtype=np.str_),
    )


plugin = DigitsPlugin()
