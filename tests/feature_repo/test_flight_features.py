"""The feature repository over a real week-sized cut of the flights: no future, one truth offline and online."""

from __future__ import annotations

import math
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trellis.adapters.feature_store import FeatureStore
from trellis.catalog import Catalogue
from trellis.errors import ConfigError, MissingFeatureError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[2]
SERVICE = "flight_delay_v1"
MOMENT = datetime(2013, 3, 12, 17, 7, tzinfo=UTC)  # off every grid, two days after the clocks changed
NAIVE = np.datetime64(MOMENT.replace(tzinfo=None), "us")


@pytest.fixture(scope="module")
def plugin():
    return Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")


@pytest.fixture(scope="module")
def raw(plugin, tmp_path_factory):
    """The raw tables, flights and weather cut to 1–20 March."""
    directory = tmp_path_factory.mktemp("raw")
    plugin.ingest(directory)
    for name in ("flights", "weather"):
        table = pq.read_table(directory / f"{name}.parquet")
        frame = table.select(["month", "day"]).to_pandas()
        pq.write_table(
            table.filter(pa.array((frame["month"] == 3) & (frame["day"] <= 20))), directory / f"{name}.parquet"
        )
    return directory


def _store(plugin, raw, home) -> FeatureStore:
    plugin.build_features(raw, home / "features")
    store = FeatureStore(ROOT / "feature_repo", home)
    store.apply()
    return store


@pytest.fixture(scope="module")
def store(plugin, raw, tmp_path_factory):
    return _store(plugin, raw, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def rows(plugin, raw):
    return plugin.examples(raw)


def _same(a, b):
    return all(np.array_equal(a[name], b[name], equal_nan=True) for name in a) and set(a) == set(b)


def _altered(plugin, raw: Path, directory: Path) -> None:
    """Rewrite everything that happened after the moment; what was known at the moment stays as it was."""
    shutil.copytree(raw, directory)
    rng = np.random.default_rng(7)
    source = __import__(type(plugin).__module__.rsplit(".", 1)[0] + ".source", fromlist=["timetable"])
    flights = source.timetable(raw)
    frame = pq.read_table(raw / "flights.parquet").to_pandas()
    for name in ("dep_delay", "arr_delay", "air_time", "dep_time", "arr_time"):
        frame[name] = frame[name].astype("Int64")
    left_after = (flights["departed"] > NAIVE).to_numpy()
    not_known_cancelled = flights["departed"].isna() & (flights["sched_dep"] + timedelta(minutes=60) > NAIVE)
    landed_after = ((flights["landed"] > NAIVE) | flights["landed"].isna()).to_numpy() & ~flights[
        "departed"
    ].isna().to_numpy()
    # A departure after the moment may happen at any later time; every landing after it likewise.
    late = ((NAIVE - flights["sched_dep"]) / pd.Timedelta(minutes=1)).clip(lower=0).to_numpy()
    open_departure = left_after | not_known_cancelled.to_numpy()
    frame.loc[open_departure, "dep_delay"] = (late + rng.integers(1, 600, len(frame))).astype(int)[open_departure]
    frame.loc[open_departure, "dep_time"] = 1200
    late = ((NAIVE - flights["sched_arr"]) / pd.Timedelta(minutes=1)).clip(lower=0).to_numpy()
    open_arrival = landed_after | open_departure
    frame.loc[open_arrival, "arr_delay"] = (late + rng.integers(1, 600, len(frame))).astype(int)[open_arrival]
    assert open_departure.sum() > 5_000
    assert open_arrival.sum() > open_departure.sum()
    # Whole flights scheduled after the moment vanish, others are repeated under another carrier and aircraft.
    future = (flights["sched_dep"] > NAIVE + np.timedelta64(1, "D")).to_numpy()
    gone = future & (rng.random(len(frame)) < 0.3)
    frame.loc[future & (rng.random(len(frame)) < 0.3), ["carrier", "tailnum"]] = ["HA", "N999ZZ"]
    frame = frame[~gone]
    schema = pq.read_schema(raw / "flights.parquet")
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), directory / "flights.parquet")
    weather = pq.read_table(raw / "weather.parquet").to_pandas()
    unknown = weather["time_hour"] + timedelta(hours=1) > MOMENT
    assert unknown.sum() > 500
    for name in ("temp", "humid", "wind_speed", "precip", "pressure", "visib"):
        weather.loc[unknown, name] = rng.permutation(weather.loc[unknown, name].to_numpy()) + 1
    schema = pq.read_schema(raw / "weather.parquet")
    pq.write_table(pa.Table.from_pandas(weather, schema=schema, preserve_index=False), directory / "weather.parquet")


def test_no_feature_knows_the_future(plugin, raw, store, rows, tmp_path):
    """Everything after T is another story; the rows up to T must not change by a bit."""
    _altered(plugin, raw, tmp_path / "raw")
    other = _store(plugin, tmp_path / "raw", tmp_path / "home")
    past = rows.take(rows.time <= NAIVE)
    future = rows.take(rows.time > NAIVE + np.timedelta64(1, "D"))
    assert len(past) > 8_000

    assert _same(
        store.training_set(SERVICE, past.columns, past.time), other.training_set(SERVICE, past.columns, past.time)
    )
    # The change was real: later rows do differ.
    before = store.training_set(SERVICE, future.columns, future.time)
    after = other.training_set(SERVICE, future.columns, future.time)
    changed = [n for n in before if not np.array_equal(before[n], after[n], equal_nan=True)]
    assert {"carrier_late_rate_3h", "route_delay_7d", "origin_overdue", "aircraft_last_delay", "weather_temp"} <= set(
        changed
    )


def test_online_after_materialisation_equals_the_offline_join(store, rows):
    store.materialize(MOMENT)
    some = rows.take(np.flatnonzero(rows.time > NAIVE)[::40])
    now = np.full(len(some), NAIVE)
    columns = {**some.columns, "sched_dep": now}

    online, times = store.online(SERVICE, {k: columns[k] for k in store.describe(SERVICE)["keys"]}, {"sched_dep": now})
    offline = store.training_set(SERVICE, columns, now)

    assert list(online) == list(offline) == store.describe(SERVICE)["features"]
    for name in offline:
        np.testing.assert_array_equal(online[name], offline[name], err_msg=name)
    for view, when in times.items():
        assert np.nanmax(when) <= NAIVE, view
    assert not all(np.isnan(offline[name]).all() for name in offline)


def test_online_agrees_with_feasts_own_reader_for_every_view(store, rows):
    store.materialize(MOMENT)
    some = rows.take(slice(0, 15))
    keys = {k: some.columns[k] for k in store.describe(SERVICE)["keys"]}
    ours, _ = store.online(SERVICE, keys, {"sched_dep": some.time})
    entities = [
        {**{k: str(v[i]) for k, v in keys.items()}, "sched_dep": some.time[i].tolist()} for i in range(len(some))
    ]
    feast = store._feast
    theirs = feast.get_online_features(feast.get_feature_service(SERVICE), entities).to_dict()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, np.array(theirs[name], dtype="float32"), err_msg=name)


def test_an_older_event_never_overwrites_a_newer_one(store, rows):
    keys = {k: rows.columns[k][-50:] for k in store.describe(SERVICE)["keys"]}
    now = {"sched_dep": np.full(50, NAIVE)}
    store.materialize(MOMENT)
    before, times = store.online(SERVICE, keys, now)

    store.materialize(MOMENT - timedelta(days=3), since=MOMENT - timedelta(days=9))

    after, times_after = store.online(SERVICE, keys, now)
    assert _same(before, after)
    assert _same(times, times_after)


def test_materialising_in_steps_is_materialising_at_once(plugin, raw, store, rows, tmp_path):
    other = _store(plugin, raw, tmp_path)
    for hours in (50, 5, 1, 0):
        other.materialize(MOMENT - timedelta(hours=hours))
    assert sum(other.materialize(MOMENT).values()) <= 40  # nothing new but rows of that very moment
    store.materialize(MOMENT)
    keys = {k: rows.columns[k] for k in store.describe(SERVICE)["keys"]}
    now = {"sched_dep": np.full(len(rows), NAIVE)}
    assert _same(store.online(SERVICE, keys, now)[0], other.online(SERVICE, keys, now)[0])


def test_online_values_beyond_their_ttl_are_missing(store, rows):
    store.materialize(MOMENT)
    keys = {k: rows.columns[k][:5] for k in store.describe(SERVICE)["keys"]}
    late = np.full(5, NAIVE + np.timedelta64(7, "h"))  # weather lives 6 hours, carrier delays 12
    values, times = store.online(SERVICE, keys, {"sched_dep": late})
    assert np.isnan(values["weather_temp"]).all()
    assert not np.isnan(values["carrier_late_rate_3h"]).any()
    assert not np.isnat(times["origin_weather"]).any()  # still told how old it is
    stale = store.stale(SERVICE, times, {"sched_dep": late})
    assert list(stale) == ["origin_weather"]
    assert stale["origin_weather"].all()
    assert store.stale(SERVICE, times, {"sched_dep": np.full(5, NAIVE)}) == {}


def test_every_batch_view_promises_an_age_and_says_what_happens_past_it(store):
    slas = {sla.view: sla for sla in store.slas(SERVICE)}
    assert set(slas) == set(store.describe(SERVICE)["views"]) - {"departure_time"}
    assert (slas["origin_weather"].age, slas["origin_weather"].action) == (timedelta(hours=2), "serve")
    assert (slas["aircraft_delays"].age, slas["aircraft_delays"].action) == (timedelta(days=28), "impute")
    named = [name for sla in slas.values() for name in sla.features]
    assert sorted(named) == sorted(
        n for n in store.describe(SERVICE)["features"] if "_sin" not in n and "_cos" not in n
    )


def test_a_promise_that_means_nothing_is_refused_before_anything_changes(tmp_path):
    repo = tmp_path / "repo"
    shutil.copytree(ROOT / "feature_repo", repo)
    text = (repo / "definitions.py").read_text()
    (repo / "definitions.py").write_text(text.replace('action="impute"', 'action="hope"'))
    with pytest.raises(ConfigError, match=r"'hope' is not known.*feature view aircraft_delays.*serve"):
        FeatureStore(repo, tmp_path / "home").apply()
    assert not list((tmp_path / "home").rglob("*.db"))


def test_on_demand_features_need_no_online_store(plugin, raw, rows, tmp_path):
    store = _store(plugin, raw, tmp_path)
    some = rows.take(slice(0, 5))
    made = store.training_set(SERVICE, some.columns, some.time)
    (tmp_path / "feast" / "online.db").unlink(missing_ok=True)
    derived = store.derived(SERVICE, {"sched_dep": some.time})
    assert sorted(derived) == ["hour_cos", "hour_sin", "weekday_cos", "weekday_sin"]
    assert _same(derived, {name: made[name] for name in derived})
    with pytest.raises(MissingFeatureError, match="lacks"):
        store.derived(SERVICE, {})


def test_unknown_entities_have_no_values_and_no_time(store):
    keys = {k: np.array(["??"]) for k in store.describe(SERVICE)["keys"]}
    values, times = store.online(SERVICE, keys, {"sched_dep": np.array([NAIVE])})
    assert all(np.isnat(when).all() for when in times.values())
    assert all(np.isnan(v).all() for n, v in values.items() if not n.startswith(("hour_", "weekday_")))


def test_departure_time_is_new_yorks_clock_on_a_circle(store, rows):
    some = rows.take(slice(None, None, 97))
    made = store.training_set(SERVICE, some.columns, some.time)
    for i, moment in enumerate(some.time.tolist()):
        local = moment.replace(tzinfo=UTC).astimezone(ZoneInfo("America/New_York"))
        day = 2 * math.pi * (local.hour * 60 + local.minute) / 1440
        week = 2 * math.pi * local.weekday() / 7
        expected = (math.sin(day), math.cos(day), math.sin(week), math.cos(week))
        got = [made[n][i] for n in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")]
        assert got == pytest.approx(expected, abs=1e-6)


def test_declaration_and_spec_name_the_same_features_in_the_same_order(plugin, store):
    told = store.describe(SERVICE)
    assert told["features"] == [f.name for f in plugin.spec.features]
    assert tuple(told["keys"]) == plugin.spec.entity_keys
    assert told["digest"] == store.describe(SERVICE)["digest"]
    assert [(n, k) for n, _, _, k in store.views()] == sorted(
        [
            ("carrier_delays", ("carrier",)),
            ("route_delays", ("origin", "dest")),
            ("origin_delays", ("origin",)),
            ("aircraft_delays", ("tailnum",)),
            ("aircraft_facts", ("tailnum",)),
            ("origin_weather", ("origin",)),
            ("departure_time", ()),
        ]
    )
    assert all(owner and sla.startswith("P") for _, owner, sla, _ in store.views())


def test_every_feature_is_float32_and_in_its_declared_range(plugin, store, rows):
    made = store.training_set(SERVICE, rows.columns, rows.time)
    for field in plugin.spec.features:
        values = made[field.name]
        assert values.dtype == np.float32
        present = values[~np.isnan(values)]
        assert field.minimum <= present.min(), field.name
        assert present.max() <= field.maximum, field.name


def test_what_is_missing_is_named(plugin, raw, store, rows, tmp_path):
    with pytest.raises(MissingFeatureError, match="Did you mean 'flight_delay_v1'"):
        store.describe("flight_delay_v2")
    with pytest.raises(MissingFeatureError, match=r"lack \['tailnum'\]"):
        store.training_set(SERVICE, {k: v for k, v in rows.columns.items() if k != "tailnum"}, rows.time)
    with pytest.raises(MissingFeatureError, match=r"lacks \['sched_dep'\]"):
        store.online(SERVICE, {k: rows.columns[k][:1] for k in ("carrier", "origin", "dest", "tailnum")}, {})
    with pytest.raises(MissingFeatureError, match="Apply the feature repository first"):
        FeatureStore(ROOT / "feature_repo", tmp_path).describe(SERVICE)
    with pytest.raises(ConfigError, match=r"no feature_store\.yaml"):
        FeatureStore(tmp_path, tmp_path)
