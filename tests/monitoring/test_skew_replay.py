"""Seeded skew bugs in a real, small feature store: every one found and named, none on the clean run."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.skew import replay
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.prediction_log import PredictionLog, read_predictions
from trellis.contract import Field, Metric, ModelSpec, Target

ROOT = Path(__file__).parents[2]
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
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


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


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    home = tmp_path_factory.mktemp("clean")
    return home, serve(home), read_predictions(home, "toy")


def named(report) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(f.cause, f.view, f.features) for f in report.findings}


def test_the_clean_run_has_no_finding(clean) -> None:
    _, store, frame = clean
    report = replay(frame, SPEC, VIEWS, store)
    assert (report.rows, report.mismatched, report.findings, report.passed) == (288, 0, (), True)
    assert report.first_feature == ""


def test_a_time_zone_in_what_is_computed_on_demand(clean) -> None:
    _, store, frame = clean
    at = pd.to_datetime(frame["request.at"]).dt.tz_localize(None).to_numpy("datetime64[us]")
    served = store.derived("toy_v1", {"at": at - np.timedelta64(4, "h")})
    report = replay(frame.assign(**{"features.minute_of_day": served["minute_of_day"]}), SPEC, VIEWS, store)
    assert named(report) == {("time_zone", "on_demand", ("minute_of_day",))}
    assert "-4 h" in report.findings[0].text
    assert (report.rate, report.passed) == (1.0, False)
    assert (report.first_feature, report.first_id) == ("minute_of_day", "00-0")


def test_a_time_zone_in_an_offline_table(clean) -> None:
    home, store, frame = clean
    local = {n: t.assign(event_timestamp=t["event_timestamp"] + pd.Timedelta(hours=5)) for n, t in tables().items()}
    try:
        write(home, {"weather": local["weather"]})
        report = replay(frame, SPEC, VIEWS, store)
    finally:
        write(home, tables())
    assert named(report) == {("time_zone", "weather", ("temp", "wind"))}
    assert "+5 h" in report.findings[0].text


@pytest.mark.parametrize(
    ("cast", "told"),
    [
        (np.trunc, "cut to an integer"),
        (lambda v: np.round(v, 1), "rounded to one decimal"),
        (lambda v: v.astype(np.float16).astype(float), "held as float16"),
        (lambda v: v.map(str), "as text"),
    ],
)
def test_a_narrower_type(clean, cast, told) -> None:
    _, store, frame = clean
    report = replay(frame.assign(**{"features.temp": cast(frame["features.temp"])}), SPEC, VIEWS, store)
    assert named(report) == {("dtype", "weather", ("temp",))}
    assert told in report.findings[0].text
    assert report.first_feature == "temp"


def test_a_changed_transform_linear_and_not(clean) -> None:
    home, store, frame = clean
    new = tables()
    new["weather"]["temp"] = (new["weather"]["temp"] - 32) / 1.8
    new["sales"]["sold_3h"] = new["sales"].groupby("city")["sold_3h"].transform(lambda s: s.rolling(3, 1).mean())
    try:
        write(home, new)
        report = replay(frame, SPEC, VIEWS, store)
    finally:
        write(home, tables())
    assert named(report) == {
        ("changed_transform", "weather", ("temp",)),
        ("changed_transform", "sales", ("sold_3h",)),
    }
    texts = {f.view: f.text for f in report.findings}
    assert "is 1.8 x the offline value +32" in texts["weather"]
    assert "computed otherwise" in texts["sales"]


def test_a_stale_job(tmp_path) -> None:
    store = serve(tmp_path, stops=20)
    report = replay(read_predictions(tmp_path, "toy"), SPEC, VIEWS, store)
    assert named(report) == {("stale_job", "weather", ("temp", "wind")), ("stale_job", "sales", ("sold_3h",))}
    assert all("3 are allowed" in f.text for f in report.findings)
    # The last hour materialised is 20; within the SLA of three hours nothing is wrong.
    assert report.first_at.startswith("2024-07-01T23:")
    assert report.lagging > 0
    assert not report.passed


def test_late_data(tmp_path) -> None:
    store = serve(tmp_path, holds_back=True)
    report = replay(read_predictions(tmp_path, "toy"), SPEC, VIEWS, store)
    assert named(report) == {("late_data", "weather", ("temp", "wind"))}
    example = read_predictions(tmp_path, "toy").set_index("id").loc[report.findings[0].example]
    assert example["request.city"] == "rome"


def test_what_callers_send_is_no_skew_and_lost_values_are_named(clean) -> None:
    _, store, frame = clean
    sent = frame.assign(**{"features.temp": 1.0, "overrides": [["temp"]] * len(frame)})
    assert replay(sent, SPEC, VIEWS, store).findings == ()
    lost = frame.assign(**{"features.wind": np.nan})
    assert named(replay(lost, SPEC, VIEWS, store)) == {("missing_online", "weather", ("wind",))}
    assert named(replay(frame.drop(columns="features.wind"), SPEC, VIEWS, store)) == {
        ("missing_online", "weather", ("wind",))
    }
    assert replay(frame.head(0), SPEC, VIEWS, store).rows == 0
