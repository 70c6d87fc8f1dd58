"""Two things that go wrong in real life, done to real data."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pandas as pd

from pipelines.data import Tables, TrainingSet, load
from trellis.adapters.datasets import save_dataset
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.snapshots import open_snapshot, take_snapshot
from trellis.contract import Dataset, ModelSpec
from trellis.settings import settings

# In summer New York's clocks are four hours behind UTC: a job that writes local time and calls it UTC makes every value
# known four hours before it was.
EARLY = pd.Timedelta(hours=4)
_SHIFTED = ("carrier_delays", "origin_delays", "aircraft_delays")


def weather_in_celsius(tables: Tables, since: datetime) -> Tables:
    """Return raw tables in which the weather feed reports degrees Celsius from a moment on."""

    def write(directory: Path) -> None:
        for source in Path(tables.path).glob("*.parquet"):
            if source.stem != "weather":
                shutil.copyfile(source, directory / source.name)
        weather = pd.read_parquet(Path(tables.path) / "weather.parquet")
        changed = weather["time_hour"] >= pd.Timestamp(since)
        for column in ("temp", "dewp"):
            weather.loc[changed, column] = (weather.loc[changed, column] - 32) * 5 / 9
        weather.to_parquet(directory / "weather.parquet", index=False)

    origin = open_snapshot(Path(tables.path)).digest
    snapshot = take_snapshot(write, settings().directory("snapshots"), origin=f"weather in Celsius on {origin}")
    return Tables(str(snapshot.path), snapshot.digest)


def time_zone_bug(spec: ModelSpec, good: TrainingSet) -> TrainingSet:
    """Return a training set whose delay features carry local time as UTC, so that they know the next four hours."""
    rows = load(good)
    assert spec.feature_service is not None
    assert rows.time is not None
    with tempfile.TemporaryDirectory(prefix=".time-zone-bug-", dir=settings().directory()) as work:
        home = Path(work)
        (home / "features").mkdir()
        for source in settings().directory("features").glob("*.parquet"):
            frame = pd.read_parquet(source)
            if source.stem in _SHIFTED:
                frame["event_timestamp"] -= EARLY
            frame.to_parquet(home / "features" / source.name, index=False)
        store = FeatureStore(settings().feature_repo, home)
        store.apply()
        joined = store.training_set(spec.feature_service, rows.columns, rows.time)
    columns = {**rows.columns, **{f.name: joined[f.name] for f in spec.features}}
    path = Path(good.path).with_name(f"time-zone-bug-{good.digest[:16]}.parquet")
    digest = save_dataset(Dataset(columns, rows.target, rows.row_id, rows.time, rows.known), path)
    version = hashlib.sha256(f"{good.features} with a time-zone bug".encode()).hexdigest()
    return replace(good, path=str(path), digest=digest, features=version)
