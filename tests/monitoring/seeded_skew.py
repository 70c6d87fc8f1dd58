"""Seeded bugs between training and serving, in a real, small feature store that serves a day and a half of requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.skew import replay
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.prediction_log import PredictionLog, read_predictions
from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.quality import SkewReport

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2024, 7, 1, tzinfo=UTC)
CITIES = ("oslo", "rome", "cairo", "lima")
HOURS = 36
DEFINITIONS = """
import os
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Float64, UnixTimestamp

FEATURES = Path(os.environ["TRELLIS_HOME"]) / "features"
city = Entity(name="city", value_type=ValueType.STRING)


def view(name, sla, features):
    return FeatureView(
        name=name, entities=[city], ttl=timedelta(hours=24), owner="us",
        schema=[Field(name=f, dtype=Float32) for f in features],
        source=FileSource(name=name, path=str(FEATURES / f"{name}.parquet"), timestamp_field="event_timestamp"),
        tags={"freshness_sla": sla},
    )


weather = view("weather", "PT3H", ["temp", "wind"])
sales = view("sales", "PT3H", ["sold_3h"])
request = RequestSource(name="request", schema=[Field(name="at", dtype=UnixTimestamp)])


@on_demand_feature_view(
    sources=[request], schema=[Field(name="minute_of_day", dtype=Float64)], mode="python", owner="us",
    tags={"freshness_sla": "PT0S"},
)
def clock(inputs):
    return {"minute_of_day": [float(t.hour * 60 + t.minute) for t in inputs["at"]]}


toy_v1 = FeatureService(name="toy_v1", features=[weather, sales, clock], tags={"time_field": "at"}, owner="us")
"""
SPEC = ModelSpec(
    name="toy",
    version="1",
    task="regression",
    owner="us",
    description="A toy.",
    request=(Field("city", "category"), Field("at", "timestamp")),
    features=tuple(Field(n, "float", nullable=True) for n in ("temp", "wind", "sold_3h", "minute_of_day")),
    inputs=("temp", "wind", "sold_3h", "minute_of_day"),
    outputs=(Field("p", "float"),),
    target=Target("y", "Truth."),
    metric=Metric("mae", 1.0),
    feature_service="toy_v1",
    entity_keys=("city",),
    time_field="at",
)
VIEWS = {"temp": "weather", "wind": "weather", "sold_3h": "sales", "minute_of_day": "on_demand"}


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    hours = pd.DatetimeIndex([START + timedelta(hours=h) for h in range(-12, HOURS)])
    frames = []
    for number, city in enumerate(CITIES):
        frame = pd.DataFrame({"city": city, "event_timestamp": hours})
        wave = 8 * np.sin(2 * np.pi * (hours.hour.to_numpy() + number) / 24)
        frame["temp"] = (55 + 6 * number + wave + rng.normal(0, 2, len(hours))).astype("float32")
        frame["wind"] = rng.gamma(4, 2.5, len(hours)).astype("float32")
        frame["sold_3h"] = rng.normal(200, 30, len(hours)).astype("float32")
        frames.append(frame)
    whole = pd.concat(frames, ignore_index=True)
    return {
        "weather": whole[["city", "event_timestamp", "temp", "wind"]],
        "sales": whole[["city", "event_timestamp", "sold_3h"]],
    }


def write(home: Path, frames: dict[str, pd.DataFrame]) -> None:
    for name, frame in frames.items():
        path = home / "features" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.sort_values("event_timestamp").to_parquet(path, index=False)


def serve(home: Path, *, stops: int = HOURS, holds_back: bool = False) -> FeatureStore:
    """Materialise every hour, answer requests in between, and log them, as the platform does.

    Args:
        home: Trellis's home.
        stops: Hour after which nothing is materialised any more.
        holds_back: Whether every third hour's weather of Rome reaches the table only after the job has run.
    """
    repo = home / "repo"
    repo.mkdir(parents=True)
    (repo / "definitions.py").write_text(DEFINITIONS)
    shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", repo)
    frames = tables()
    if holds_back:
        weather = frames["weather"]
        late = (weather["city"] == "rome") & (weather["event_timestamp"].dt.hour % 3 != 0)
        frames["weather"] = weather[~late]
    write(home, frames)
    store = FeatureStore(repo, home)
    store.apply()
    log, rng = PredictionLog(home, "toy", flush_seconds=1), np.random.default_rng(1)
    for hour in range(HOURS):
        if hour <= stops:
            store.materialize(START + timedelta(hours=hour))
        minutes = np.sort(rng.integers(1, 60, 8))
        at = np.array([np.datetime64(START.replace(tzinfo=None), "us")] * 8) + (hour * 60 + minutes) * np.timedelta64(
            60_000_000, "us"
        )
        city = rng.choice(CITIES, 8)
        features, times = store.online("toy_v1", {"city": city}, {"at": at})
        for i in range(8):
            log.append(
                {
                    "id": f"{hour:02d}-{i}",
                    "version": "1",
                    "time": f"{at[i]}Z",
                    "received_at": f"{at[i]}Z",
                    "request": {"city": str(city[i]), "at": f"{at[i]}Z"},
                    "features": {n: float(v[i]) for n, v in features.items()},
                    "feature_times": {n: None if np.isnat(t[i]) else f"{t[i]}Z" for n, t in times.items()},
                    "overrides": [],
                    "outputs": {"p": 1.0},
                }
            )
    log.close()
    write(home, tables())
    return store


@dataclass(frozen=True)
class Clean:
    """A run without a bug: its home, its store and what it logged."""

    home: Path
    store: FeatureStore
    frame: pd.DataFrame

    @classmethod
    def run(cls, home: Path) -> Clean:
        """Serve in ``home``."""
        return cls(home, serve(home), read_predictions(home, "toy"))

    def served(self, **features: pd.Series | float) -> SkewReport:
        """Replay the run as if these features had been served."""
        return replay(self.frame.assign(**{f"features.{n}": v for n, v in features.items()}), SPEC, VIEWS, self.store)

    def offline(self, change: Callable[[dict[str, pd.DataFrame]], dict[str, pd.DataFrame]]) -> SkewReport:
        """Replay the run against other offline tables."""
        try:
            write(self.home, change(tables()))
            return replay(self.frame, SPEC, VIEWS, self.store)
        finally:
            write(self.home, tables())


@dataclass(frozen=True)
class Bug:
    """A bug, and what a replay has to say of it.

    Attributes:
        name: For tables.
        named: Cause, view and features of every finding there is to be.
        told: Words of the findings' texts.
        seed: Plays it, given a clean run and an empty directory.
    """

    name: str
    named: frozenset[tuple[str, str, tuple[str, ...]]]
    told: tuple[str, ...]
    seed: Callable[[Clean, Path], SkewReport]


def _clock_in_another_zone(clean: Clean, _: Path) -> SkewReport:
    at = pd.to_datetime(clean.frame["request.at"]).dt.tz_localize(None).to_numpy("datetime64[us]")
    return clean.served(**clean.store.derived("toy_v1", {"at": at - np.timedelta64(4, "h")}))


def _table_in_another_zone(new: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    weather = new["weather"]
    return {"weather": weather.assign(event_timestamp=weather["event_timestamp"] + pd.Timedelta(hours=5))}


def _other_formulas(new: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    new["weather"]["temp"] = (new["weather"]["temp"] - 32) / 1.8
    new["sales"]["sold_3h"] = new["sales"].groupby("city")["sold_3h"].transform(lambda s: s.rolling(3, 1).mean())
    return new


def _stopped(_: Clean, home: Path) -> SkewReport:
    store = serve(home, stops=20)
    return replay(read_predictions(home, "toy"), SPEC, VIEWS, store)


def _held_back(_: Clean, home: Path) -> SkewReport:
    store = serve(home, holds_back=True)
    return replay(read_predictions(home, "toy"), SPEC, VIEWS, store)


def _cast(name: str, told: str, cast: Callable[[pd.Series], pd.Series]) -> Bug:
    named = frozenset({("dtype", "weather", ("temp",))})
    return Bug(name, named, (told,), lambda clean, _: clean.served(temp=cast(clean.frame["features.temp"])))


BUGS = (
    Bug(
        "time zone in a view on demand",
        frozenset({("time_zone", "on_demand", ("minute_of_day",))}),
        ("-4 h",),
        _clock_in_another_zone,
    ),
    Bug(
        "time zone in an offline table",
        frozenset({("time_zone", "weather", ("temp", "wind"))}),
        ("+5 h",),
        lambda clean, _: clean.offline(_table_in_another_zone),
    ),
    _cast("a number cut to an integer", "cut to an integer", np.trunc),
    _cast("a number rounded", "rounded to one decimal", lambda v: np.round(v, 1)),
    _cast("a number held as float16", "held as float16", lambda v: v.astype(np.float16).astype(float)),
    _cast("a number sent as text", "as text", lambda v: v.map(str)),
    Bug(
        "changed transforms",
        frozenset({("changed_transform", "weather", ("temp",)), ("changed_transform", "sales", ("sold_3h",))}),
        ("is 1.8 x the offline value +32", "computed otherwise"),
        lambda clean, _: clean.offline(_other_formulas),
    ),
    Bug(
        "a job that has stopped",
        frozenset({("stale_job", "weather", ("temp", "wind")), ("stale_job", "sales", ("sold_3h",))}),
        ("3 are allowed",),
        _stopped,
    ),
    Bug("late data", frozenset({("late_data", "weather", ("temp", "wind"))}), (), _held_back),
    Bug(
        "values lost on the way",
        frozenset({("missing_online", "weather", ("wind",))}),
        (),
        lambda clean, _: clean.served(wind=np.nan),
    ),
)


def named(report: SkewReport) -> frozenset[tuple[str, str, tuple[str, ...]]]:
    """Return cause, view and features of every finding."""
    return frozenset((f.cause, f.view, f.features) for f in report.findings)
