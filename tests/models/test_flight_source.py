"""The moments of the flights: every row of the year, against properties that the wrong day or zone would break."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from trellis.catalog import Catalogue
from trellis.errors import CorruptSnapshotError, DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plugin():
    return Catalogue([ROOT / "models"], entry_points=False).plugin("flight_delay")


@pytest.fixture(scope="module")
def source(plugin):
    return import_module(type(plugin).__module__.rsplit(".", 1)[0] + ".source")


@pytest.fixture(scope="module")
def raw(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("raw")
    source.ingest(directory)
    return directory


@pytest.fixture(scope="module")
def flights(source, raw):
    return source.timetable(raw)


@pytest.fixture(scope="module")
def table(raw):
    return pq.read_table(raw / "flights.parquet").to_pandas()


def _minute_of_day(moments: pd.Series, zone: str) -> pd.Series:
    local = moments.dt.tz_localize("UTC").dt.tz_convert(zone)
    return local.dt.hour * 60 + local.dt.minute


def _hhmm(column: pd.Series) -> pd.Series:
    return (column // 100 * 60 + column % 100) % 1440


def test_ingest_writes_the_five_tables_whole_and_always_the_same(source, raw, tmp_path):
    source.ingest(tmp_path)
    rows = {p.stem: pq.read_metadata(p).num_rows for p in raw.glob("*.parquet")}
    assert rows == {"flights": 336_776, "weather": 26_115, "planes": 3_322, "airlines": 16, "airports": 1_458}

    def digests(directory):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}

    assert digests(raw) == digests(tmp_path)
    assert str(pq.read_schema(raw / "flights.parquet").field("time_hour").type) == "timestamp[us, tz=UTC]"


def test_scheduled_departure_falls_in_the_hour_the_table_gives_in_utc(flights, table):
    hour = table["time_hour"].dt.tz_localize(None)
    assert (flights["sched_dep"].dt.floor("h") == hour).all()


def test_departure_shows_on_new_yorks_clocks(flights, table):
    left = flights["departed"].notna()
    assert left.sum() == table["dep_time"].notna().sum()
    assert (_minute_of_day(flights["departed"][left], "America/New_York") == _hhmm(table["dep_time"][left])).all()


def test_landing_shows_on_the_destinations_clocks_to_the_minute(flights, table, raw, source):
    """The recorded arrival time was not used to work the landing out, so it is independent evidence on every row."""
    zones = pq.read_table(raw / "airports.parquet").to_pandas().set_index("faa")["tzone"].to_dict() | source.TERRITORIES
    landed = flights["landed"].notna()
    wrong = []
    for zone, rows in flights[landed].groupby(flights["dest"].map(zones)):
        shown = _minute_of_day(rows["landed"], zone)
        wrong += rows.index[shown != _hhmm(table["arr_time"][rows.index])].tolist()
    # One flight landed in the hour that clocks skipped; the record gives the time they would have shown.
    assert len(wrong) == 1
    row = table.loc[wrong[0]]
    assert (row["month"], row["day"], row["sched_arr_time"], row["arr_time"]) == (3, 9, 34, 203)
    assert flights.loc[wrong[0], "landed"] == pd.Timestamp("2013-03-10T07:03")


def test_time_in_the_air_fits_between_departure_and_landing(flights, table):
    landed = flights["landed"].notna()
    minutes = (flights["landed"] - flights["departed"])[landed] / pd.Timedelta(minutes=1)
    on_the_ground = minutes - table["air_time"][landed].astype(float)
    assert on_the_ground.min() >= 0  # taxiing out and in takes from minutes to a few hours, never a wrong day
    assert on_the_ground.max() < 300


def test_scheduled_duration_is_plausible_for_the_distance(flights):
    minutes = (flights["sched_arr"] - flights["sched_dep"]) / pd.Timedelta(minutes=1)
    at_500_mph = flights["distance"].astype(float) / 500 * 60
    assert (minutes > at_500_mph).mean() > 0.99  # no jet here averages more from gate to gate
    assert (minutes < at_500_mph + 240).all()  # an hour's error in a zone or a day's would stand out


@pytest.mark.parametrize(
    ("local", "zone", "expected"),
    [
        # Independent truth: zoneinfo on single moments, winter, summer, both sides of each change, no change.
        ((2013, 1, 15, 12, 0), "America/Chicago", None),
        ((2013, 7, 15, 12, 0), "America/Los_Angeles", None),
        ((2013, 7, 15, 12, 0), "America/Phoenix", None),
        ((2013, 3, 10, 1, 59), "America/New_York", None),
        ((2013, 3, 10, 3, 0), "America/New_York", None),
        ((2013, 11, 3, 0, 59), "America/New_York", None),
        ((2013, 11, 3, 2, 0), "America/New_York", None),
        ((2013, 7, 1, 23, 59), "Pacific/Honolulu", None),
        ((2013, 7, 1, 23, 59), "America/St_Thomas", None),
        ((2013, 3, 10, 2, 30), "America/New_York", datetime(2013, 3, 10, 7, 0)),  # skipped: its end
        ((2013, 11, 3, 1, 30), "America/New_York", datetime(2013, 11, 3, 6, 30)),  # shown twice: winter time
    ],
)
def test_local_times_become_utc(source, local, zone, expected):
    moment = datetime(*local)
    truth = expected or moment.replace(tzinfo=ZoneInfo(zone)).astimezone(ZoneInfo("UTC")).replace(tzinfo=None)
    assert source._to_utc(pd.Series([moment]), zone).tolist() == [pd.Timestamp(truth)]


def test_examples_are_the_flights_that_arrived_in_time_order(plugin, source, raw, table):
    data = source.examples(raw)
    assert len(data) == table["arr_delay"].notna().sum() == 327_346
    assert len(set(data.row_id)) == len(data)
    assert (np.diff(data.time) >= np.timedelta64(0)).all()
    assert (data.known > data.time).all()
    assert data.target.mean() == pytest.approx((table["arr_delay"].dropna() > 15).mean())
    first = table[table["flight"].eq(1545) & table["month"].eq(1) & table["day"].eq(1)].iloc[0]
    i = list(data.row_id).index("UA-1545-20130101T1015-EWR")
    assert (data.columns["dest"][i], data.target[i]) == (first["dest"], int(first["arr_delay"] > 15))
    assert data.known[i] == np.datetime64("2013-01-01T14:30")  # 8:30 on Houston's clocks
    for field in plugin.spec.request:
        values = data.columns[field.name]
        if field.minimum is not None:
            assert field.minimum <= values.min() <= values.max() <= field.maximum, field.name
        if field.choices is not None:
            assert set(values) <= set(field.choices)
        if values.dtype.kind == "U":
            assert max(map(len, values)) <= field.max_length
    assert data.columns["distance"].dtype == data.columns["sched_minutes"].dtype == np.float32


def test_bad_snapshots_are_named(source, raw, tmp_path):
    with pytest.raises(CorruptSnapshotError, match="no table 'flights'"):
        source.examples(tmp_path)
    for name in ("flights", "airports"):
        table = pq.read_table(raw / f"{name}.parquet")
        if name == "airports":
            table = table.filter(np.array([code != "IAH" for code in table["faa"].to_pylist()]))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"'IAH'.*no known time zone"):
        source.examples(tmp_path)


def test_rolling_values_equal_a_recount_from_the_raw_events(plugin, flights, raw, tmp_path):
    """Counts and means of windows at sampled grid moments, counted again in pandas from the definition."""
    plugin.build_features(raw, tmp_path)
    origin = pd.read_parquet(tmp_path / "origin_delays.parquet").set_index(["origin", "event_timestamp"])
    carrier = pd.read_parquet(tmp_path / "carrier_delays.parquet").set_index(["carrier", "event_timestamp"])
    aircraft = pd.read_parquet(tmp_path / "aircraft_delays.parquet")
    rng = np.random.default_rng(3)
    for minutes in rng.integers(30 * 96, 360 * 96, 12) * 30 % (340 * 1440) + 20 * 1440:
        g = pd.Timestamp("2013-01-01") + timedelta(minutes=int(minutes))

        def within(moments, hours, g=g):
            return (moments > g - timedelta(hours=hours)) & (moments <= g)

        jfk, ua = flights[flights["origin"] == "JFK"], flights[flights["carrier"] == "UA"]
        row = origin.loc[("JFK", g.tz_localize("UTC"))]
        assert row["origin_departed_1h"] == within(jfk["departed"], 1).sum()
        never = jfk["departed"].isna()
        assert row["origin_cancelled_6h"] == within(jfk["sched_dep"][never] + timedelta(hours=1), 6).sum()
        gone = jfk["departed"].fillna(jfk["sched_dep"] + timedelta(hours=1))
        assert row["origin_overdue"] == ((jfk["sched_dep"] + timedelta(minutes=15) <= g) & (gone > g)).sum()
        row = carrier.loc[("UA", g.tz_localize("UTC"))]
        landed = within(ua["landed"], 3)
        assert row["carrier_landed_3h"] == landed.sum()
        steady = row["carrier_late_rate_28d"]
        late = (ua["arr_delay"][landed] > 15).sum()
        assert row["carrier_late_rate_3h"] == pytest.approx((late + 10 * steady) / (landed.sum() + 10), rel=1e-5)
    some = aircraft.sample(20, random_state=1)
    for row in some.itertuples():
        mine = flights[(flights["tailnum"] == row.tailnum) & flights["landed"].notna()]
        at = row.event_timestamp.tz_localize(None)
        assert row.aircraft_last_delay in mine["arr_delay"][mine["landed"] == at].tolist()
        recent = (mine["landed"] <= at) & (mine["landed"] >= at - timedelta(days=28))
        assert row.aircraft_landed_28d == recent.sum()
