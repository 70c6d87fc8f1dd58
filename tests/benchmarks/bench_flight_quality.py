"""The flight model's two recipes on flights they have not seen, against base rates, in one run.

Raw tables, features and the point-in-time join are the platform's own. Train on January to April, validate on May and
June, judge on July to December of 2013; the reference models see January to June. Intervals are 95 %, from resampled
days. Under a minute on two cores.

With ``--write-sample`` it only writes the plug-in's ``sample.parquet`` anew, which is due when the features change.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from trellis.catalog import Catalogue
from trellis.contract import Dataset, TrainingData, TrainingRun
from trellis.metrics import blocks_of, intervals
from trellis.settings import silence_telemetry

ROOT = Path(__file__).parents[2]
PERIODS = {"July–August": ("2013-07", "2013-09"), "September–December": ("2013-09", "2014-01")}
SHOWN = ("auc", "average_precision", "brier", "calibration_error")


def main() -> None:
    """Train, score and print."""
    silence_telemetry()
    plugin = Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")
    with tempfile.TemporaryDirectory() as home:
        data = _joined(plugin, Path(home))
    if "--write-sample" in sys.argv:
        importlib.import_module("_trellis_models.flight_delay.plugin").make_sample(data)
        return
    train, validation = _between(data, "2013-01", "2013-05"), _between(data, "2013-05", "2013-07")
    past = _between(data, "2013-01", "2013-07")
    print(f"train {len(train):,} rows, validation {len(validation):,}")
    models = {"base rate": lambda rows: np.full(len(rows), past.target.mean()), "carrier-hour table": _table(past)}
    for recipe in plugin.spec.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            start, cpu = time.perf_counter(), time.process_time()
            predictor = plugin.train(TrainingData(train, validation), TrainingRun(7, recipe, Path(scratch)))
            print(f"{recipe}: trained in {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU")
        models[recipe] = lambda rows, predictor=predictor: predictor.predict(rows.columns)["probability"]
        if recipe == "xgboost":
            models |= _other_calibrations(predictor, validation)
    for period, (start, end) in PERIODS.items():
        rows = _between(data, start, end)
        blocks = blocks_of(rows.time, rows.row_id)
        print(
            f"\n{period}: {len(rows):,} flights, {rows.target.mean():.3f} late\n{'':26}"
            + "".join(f"{m:>28}" for m in SHOWN)
        )
        for name, model in models.items():
            scored = intervals("binary", rows.target, model(rows), blocks, seed=1, confidence=0.95, replicates=200)
            cells = (f"{scored[m][1]:.4f} ({scored[m][0]:.4f}–{scored[m][2]:.4f})" for m in SHOWN)
            print(f"{name:26}" + "".join(f"{cell:>28}" for cell in cells))


def _joined(plugin, home: Path) -> Dataset:
    os.environ.setdefault("TRELLIS_HOME", str(home))
    from trellis.adapters.feature_store import FeatureStore

    plugin.ingest(home / "raw")
    plugin.build_features(home / "raw", home / "features")
    rows = plugin.examples(home / "raw")
    store = FeatureStore(ROOT / "feature_repo", home)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.apply()
        features = store.training_set(plugin.spec.feature_service, rows.columns, rows.time)
    return Dataset({**rows.columns, **features}, rows.target, rows.row_id, rows.time, rows.known)


def _between(data: Dataset, start: str, end: str) -> Dataset:
    return data.take((data.time >= np.datetime64(start)) & (data.time < np.datetime64(end)))


def _table(past: Dataset):
    """The share of late flights per carrier and scheduled local hour, drawn towards the overall share by 50 flights."""

    def keys(rows: Dataset) -> list[tuple[str, int]]:
        hour = pd.DatetimeIndex(rows.time).tz_localize("UTC").tz_convert("America/New_York").hour
        return list(zip(rows.columns["carrier"].tolist(), hour.tolist(), strict=True))

    overall = past.target.mean()
    sums: dict[tuple[str, int], list[float]] = {}
    for key, late in zip(keys(past), past.target.tolist(), strict=True):
        entry = sums.setdefault(key, [50 * overall, 50.0])
        entry[0] += late
        entry[1] += 1
    return lambda rows: np.array([np.divide(*sums.get(key, (overall, 1.0))) for key in keys(rows)])


def _other_calibrations(predictor, validation: Dataset):
    """The same trees without calibration, and with an isotonic one fitted on the same days."""
    from sklearn.isotonic import IsotonicRegression

    name = "_trellis_models.flight_delay"
    raw = importlib.import_module(f"{name}.xgb").XgbPredictor(
        predictor.booster, predictor.encoding, importlib.import_module(f"{name}.calibration").Platt()
    )
    _, days = importlib.import_module(f"{name}.encoding").halves(validation.time, len(validation))
    held = validation.take(days)
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(raw.predict(held.columns)["probability"], held.target)
    return {
        "  without calibration": lambda rows: raw.predict(rows.columns)["probability"],
        "  isotonic instead": lambda rows: isotonic.predict(raw.predict(rows.columns)["probability"]),
    }


if __name__ == "__main__":
    main()
