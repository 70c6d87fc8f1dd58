"""Batch where the input lacks features: joined as of each row's own time, part by part as all at once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trellis.adapters.feature_store import FeatureStore
from trellis.errors import ConfigError, RequestError
from trellis.patterns import predict_batch

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HOUR = np.timedelta64(1, "h")


@pytest.fixture(scope="module")
def store(tmp_path_factory, flights):
    """Feature tables in which every value is the number of hours from the start of 2013 to its own moment.

    So what is joined to a row says which moment it is from, and the newest before the row's time is known by hand.
    """
    home = tmp_path_factory.mktemp("home")
    (home / "features").mkdir()
    feature_store = FeatureStore(ROOT / "feature_repo", home)
    feature_store.apply()
    columns = flights.unseen.columns
    # A row every 3 hours over the sample's time, for every entity; the last one after all flights.
    moments = np.arange(columns["sched_dep"].min() - 48 * HOUR, columns["sched_dep"].max() + 9 * HOUR, 3 * HOUR)
    for view in feature_store._feast.list_feature_views():
        keys = [e.name for e in view.entity_columns]
        entities = pd.DataFrame({k: columns[k] for k in keys}).drop_duplicates()
        frame = entities.merge(pd.DataFrame({"event_timestamp": moments}), how="cross")
        hours = (frame["event_timestamp"].to_numpy() - np.datetime64("2013-01-01")) / HOUR
        for feature in view.features:
            frame[feature.name] = hours.astype("float32")
        frame["event_timestamp"] = frame["event_timestamp"].dt.tz_localize("UTC")
        frame.to_parquet(home / "features" / f"{view.name}.parquet", index=False)
    return feature_store


@pytest.fixture
def bare(tmp_path, flights, arrow):
    source = tmp_path / "in.parquet"
    request = {f.name: flights.unseen.columns[f.name] for f in flights.spec.request}
    pq.write_table(arrow(request), source, row_group_size=70)
    return source, tmp_path / "out.parquet"


def test_joined_part_by_part_as_of_each_rows_time(bare, flights, store, tmp_path):
    seen = []

    class Watching:
        describe = store.describe

        def training_set(self, service, rows, time):
            found = store.training_set(service, rows, time)
            seen.append((time, found))
            return found

    summary = predict_batch(flights.batch, *bare, features=Watching, part_rows=64)
    assert set(summary.joined) == {f.name for f in flights.spec.features}
    assert [len(time) for time, _ in seen] == [64, 64, 64, 8]
    for time, found in seen:
        hours = found["carrier_landed_3h"].astype(float)
        own = (time - np.datetime64("2013-01-01")) / HOUR
        assert ((own - hours > -0.01) & (own - hours < 3.01)).all(), (
            "the newest before the row's time, and none after it"
        )
    whole = store.training_set("flight_delay_v1", flights.unseen.columns, flights.unseen.columns["sched_dep"])
    inputs = {n: whole.get(n, flights.unseen.columns[n]) for n in flights.spec.inputs}
    expected = flights.batch.predictor.predict(inputs)["probability"]
    np.testing.assert_allclose(pq.read_table(bare[1])["probability"], expected, rtol=1e-5)


def test_a_feature_in_the_input_is_taken_and_its_null_is_missing(bare, flights, store):
    source, output = bare
    given = [None if i % 3 else 0.5 for i in range(200)]
    table = pq.read_table(source).append_column("origin_late_rate_3h", pa.array(given, pa.float64()))
    pq.write_table(table, source)
    summary = predict_batch(flights.batch, source, output, features=lambda: store)
    assert "origin_late_rate_3h" not in summary.joined
    whole = store.training_set("flight_delay_v1", flights.unseen.columns, flights.unseen.columns["sched_dep"])
    whole["origin_late_rate_3h"] = np.array([np.nan if v is None else v for v in given])
    inputs = {n: whole.get(n, flights.unseen.columns[n]) for n in flights.spec.inputs}
    expected = flights.batch.predictor.predict(inputs)["probability"]
    np.testing.assert_allclose(pq.read_table(output)["probability"], expected, rtol=1e-5)


def test_bad_rows_are_kept_from_the_join_and_keep_their_place(bare, flights, store):
    source, output = bare
    table = pq.read_table(source)
    times = table["sched_dep"].to_pylist()
    times[5] = times[77] = None
    kind = table.schema.field("sched_dep").type
    table = table.set_column(table.column_names.index("sched_dep"), "sched_dep", pa.array(times, kind))
    pq.write_table(table, source)
    with pytest.raises(RequestError, match="row 5, sched_dep: is missing"):
        predict_batch(flights.batch, source, output, features=lambda: store, part_rows=64)
    summary = predict_batch(flights.batch, source, output, features=lambda: store, on_bad="skip", part_rows=64)
    scores = pq.read_table(output)["probability"].to_pylist()
    assert [i for i, v in enumerate(scores) if v is None] == [5, 77]
    assert summary.rejected == 2
    whole = store.training_set("flight_delay_v1", flights.unseen.columns, flights.unseen.columns["sched_dep"])
    inputs = {n: whole.get(n, flights.unseen.columns[n]) for n in flights.spec.inputs}
    expected = flights.batch.predictor.predict(inputs)["probability"]
    np.testing.assert_allclose(scores[78:], expected[78:], rtol=1e-5)


def test_without_a_store_it_says_what_is_lacking(bare, flights):
    with pytest.raises(ConfigError, match=r"carrier_late_rate_3h.*has no feature store"):
        predict_batch(flights.batch, *bare)


def test_a_row_without_a_feature_it_must_have_is_bad(bare, flights, store):
    class Lacking:
        describe = store.describe

        def training_set(self, service, rows, time):
            found = dict(store.training_set(service, rows, time))
            found["hour_sin"] = np.where(np.arange(len(time)) == 9, np.nan, found["hour_sin"])
            return found

    with pytest.raises(RequestError, match=r"row 9, hour_sin: there are no features for carrier="):
        predict_batch(flights.batch, *bare, features=Lacking)
    summary = predict_batch(flights.batch, *bare, features=Lacking, on_bad="skip")
    assert summary.rejected == 1
    assert pq.read_table(bare[1])["probability"].to_pylist()[9] is None
