"""The offline store against a naive reference in plain Python, and against Feast's own DuckDB store."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trellis.adapters.feast_setting import import_feast
from trellis.errors import DataError, MissingFeatureError

# Feast, ibis and DuckDB warn about each other's deprecated calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
START = datetime(2013, 1, 1, tzinfo=UTC)


def _config(directory: Path, kind: str = "ours"):
    import_feast()
    from feast.repo_config import RepoConfig

    from trellis.adapters.feast_asof import AsofOfflineStoreConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RepoConfig(
            project="test",
            provider="local",
            registry=str(directory / "registry.db"),
            offline_store=AsofOfflineStoreConfig() if kind == "ours" else {"type": "duckdb"},
            entity_key_serialization_version=3,
        )


def _view(path: Path, *, ttl: timedelta, created: bool, keys=("k",), mapping=None, name="view"):
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    return FeatureView(
        name=name,
        entities=[Entity(name=key, value_type=ValueType.INT64) for key in keys],
        ttl=ttl,
        schema=[*(Field(name=key, dtype=Int64) for key in keys), Field(name="v", dtype=Float64)],
        source=FileSource(
            name=f"{name}_source",
            path=str(path),
            timestamp_field="t",
            created_timestamp_column="c" if created else "",
            field_mapping=mapping or {},
        ),
    )


def _join(directory: Path, views, frame: pd.DataFrame, refs, *, kind="ours", **options) -> pd.DataFrame:
    from feast.infra.registry.registry import Registry

    if kind == "ours":
        from trellis.adapters.feast_asof import AsofOfflineStore as store
    else:
        from feast.infra.offline_stores.duckdb import DuckDBOfflineStore as store

    config = _config(directory, kind)
    registry = Registry("test", config.registry, None)
    job = store.get_historical_features(config, views, refs, frame.copy(), registry, "test", **options)
    return job.to_df()


def _write(path: Path, rows: list[tuple], *, unit: str = "us", zone: str | None = "UTC") -> None:
    frame = pd.DataFrame(rows, columns=["k", "t", "c", "v"])
    data = {
        "k": pa.array(frame["k"], pa.int64()),
        "v": pa.array(frame["v"], pa.float64()),
    }
    for name in "tc":
        moments = pd.to_datetime(frame[name], utc=True).astype("datetime64[us, UTC]")
        data[name] = pa.Array.from_pandas(moments, type=pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone))
    pq.write_table(pa.table(data), path)


def _naive(rows, key, at, ttl, *, known_only=False):
    """The rule, word for word: latest event, then latest creation, then last in the file; none beyond the ttl."""
    best = None
    for k, t, c, v in rows:
        if k == key and t <= at and (not known_only or c <= at) and (best is None or (t, c) >= best[:2]):
            best = (t, c, v)
    if best is None or (ttl and best[0] + ttl < at):
        return None
    return best[2]


# Few keys and few moments, so that ties, duplicates and values at the edge of the ttl are common.
moments = st.integers(0, 12).map(lambda h: START + timedelta(hours=h))
features = st.lists(st.tuples(st.integers(0, 2), moments, moments, st.integers(0, 99).map(float)), max_size=25)
entities = st.lists(st.tuples(st.integers(0, 3), moments), min_size=1, max_size=15)
ttls = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(hours=4)])
anywhere = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(autouse=True, scope="module")
def _feast():
    import_feast()


@settings(max_examples=60, **anywhere)
@given(rows=features, asked=entities, ttl=ttls, known_only=st.booleans())
def test_every_row_gets_what_the_naive_rule_says(tmp_path, rows, asked, ttl, known_only):
    path = tmp_path / "f.parquet"
    _write(path, rows)
    frame = pd.DataFrame(asked, columns=["k", "event_timestamp"])

    out = _join(
        tmp_path, [_view(path, ttl=ttl, created=True)], frame, ["view:v"], filter_by_created_timestamp=known_only
    )

    assert out[["k", "event_timestamp"]].to_numpy().tolist() == frame.to_numpy().tolist()  # order and number kept
    expected = [_naive(rows, key, at, ttl, known_only=known_only) for key, at in asked]
    assert [None if pd.isna(v) else v for v in out["v"]] == expected


@settings(max_examples=12, **anywhere)
@given(rows=features, asked=entities, ttl=ttls, created=st.booleans())
def test_agrees_with_feasts_own_duckdb_store_where_that_is_defined(tmp_path, rows, asked, ttl, created):
    pytest.importorskip("ibis", reason="Feast's own DuckDB store needs ibis-framework")
    # Where event and creation both tie, Feast's store takes any row: leave those out.
    rows = list({(r[:3] if created else r[:2]): r for r in rows}.values())
    path = tmp_path / "f.parquet"
    _write(path, rows)
    frame = pd.DataFrame(asked, columns=["k", "event_timestamp"]).assign(row=range(len(asked)))
    view = _view(path, ttl=ttl, created=created)

    ours = _join(tmp_path, [view], frame, ["view:v"])
    stock = _join(tmp_path, [view], frame, ["view:v"], kind="stock").sort_values("row").reset_index(drop=True)

    pd.testing.assert_frame_equal(ours[["row", "k", "v"]], stock[["row", "k", "v"]], check_dtype=False)


@pytest.mark.parametrize(("unit", "zone"), [("us", "UTC"), ("us", None), ("ns", "UTC"), ("ms", "America/New_York")])
@pytest.mark.parametrize("asked", ["UTC", "America/New_York", "Asia/Kolkata", None])
def test_time_zones_and_units_on_either_side_change_nothing(tmp_path, unit, zone, asked):
    path = tmp_path / "f.parquet"
    rows = [(1, START + timedelta(hours=h), START, float(h)) for h in range(6)]
    _write(path, rows, unit=unit, zone=zone)
    times = pd.Series([START + timedelta(hours=3), START + timedelta(hours=2, minutes=59)])
    times = times.dt.tz_convert(asked) if asked else times.dt.tz_localize(None)

    out = _join(
        tmp_path,
        [_view(path, ttl=timedelta(0), created=False)],
        pd.DataFrame({"k": [1, 1], "event_timestamp": times}),
        ["view:v"],
    )

    assert out["v"].tolist() == [3.0, 2.0]


def test_empty_table_null_keys_and_null_times_give_nulls(tmp_path):
    full, empty = tmp_path / "full.parquet", tmp_path / "empty.parquet"
    _write(full, [(1, START, START, 7.0), (None, START, START, 8.0)])
    _write(empty, [])
    frame = pd.DataFrame(
        {"k": pd.array([1, None, 1], "Int64"), "event_timestamp": pd.to_datetime([START, START, pd.NaT], utc=True)}
    )
    day = timedelta(days=1)
    views = [_view(full, ttl=day, created=False, name="a"), _view(empty, ttl=day, created=False, name="b")]

    out = _join(tmp_path, views, frame, ["a:v", "b:v"], full_feature_names=True)

    assert out["a__v"].fillna(-1).tolist() == [7.0, -1, -1]
    assert out["b__v"].isna().all()


def test_field_mapping_and_join_key_mapping(tmp_path):
    path = tmp_path / "f.parquet"
    table = pa.table({"raw_key": [1, 2], "raw": [10.0, 20.0], "t": pa.array([START, START], pa.timestamp("us", "UTC"))})
    pq.write_table(table, path)
    view = _view(path, ttl=timedelta(0), created=False, mapping={"raw": "v", "raw_key": "k"})
    mapped = view.with_join_key_map({"k": "other"}).with_name("renamed")

    out = _join(tmp_path, [mapped], pd.DataFrame({"other": [2, 1], "event_timestamp": [START] * 2}), ["renamed:v"])

    assert out["v"].tolist() == [20.0, 10.0]


def test_several_keys_join_on_all_of_them(tmp_path):
    path = tmp_path / "f.parquet"
    at = pa.array([START] * 3, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"k": [1, 1, 2], "j": [1, 2, 1], "v": [11.0, 12.0, 21.0], "t": at}), path)
    view = _view(path, ttl=timedelta(0), created=False, keys=("k", "j"))

    out = _join(
        tmp_path, [view], pd.DataFrame({"k": [1, 2, 2], "j": [2, 1, 2], "event_timestamp": [START] * 3}), ["view:v"]
    )

    assert out["v"].fillna(-1).tolist() == [12.0, 21.0, -1]


@settings(max_examples=20, **anywhere)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), moments), max_size=20),
    asked=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), moments), min_size=1, max_size=12),
)
def test_too_many_keys_or_too_long_a_time_for_one_integer_change_nothing(tmp_path, rows, asked):
    """With limits this low, keys and moments are numbered anew at every step."""
    from trellis.adapters import asof

    path = tmp_path / "f.parquet"
    frame = pd.DataFrame(rows, columns=["k", "j", "t"])
    columns = {name: pa.array(frame[name], pa.int64()) for name in "kj"}
    at = pa.Array.from_pandas(pd.to_datetime(frame["t"], utc=True).astype("datetime64[us, UTC]"))
    pq.write_table(pa.table({**columns, "v": pa.array(range(len(rows)), pa.float64()), "t": at}), path)
    view = _view(path, ttl=timedelta(hours=4), created=False, keys=("k", "j"))
    entity = pd.DataFrame(asked, columns=["k", "j", "event_timestamp"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asof, "_MOST_KEYS", 1)
        patch.setattr(asof, "_LARGEST", 1)
        out = _join(tmp_path, [view], entity, ["view:v"])
    flat = [((k, j), t, t, float(i)) for i, (k, j, t) in enumerate(rows)]
    expected = [_naive(flat, (k, j), at, timedelta(hours=4)) for k, j, at in asked]
    assert [None if pd.isna(v) else v for v in out["v"]] == expected


def test_key_types_that_differ_are_compared_or_refused(tmp_path):
    path = tmp_path / "f.parquet"
    _write(path, [(1, START, START, 7.0)])
    view = _view(path, ttl=timedelta(0), created=False)
    for kind in ("int8", "int32", "float64", "category"):
        frame = pd.DataFrame({"k": pd.Series([1, 2]).astype(kind), "event_timestamp": [START] * 2})
        assert _join(tmp_path, [view], frame, ["view:v"])["v"].fillna(-1).tolist() == [7.0, -1], kind
    with pytest.raises(DataError, match=r"'k' is string in the entity frame and int64 in a view's table"):
        _join(tmp_path, [view], pd.DataFrame({"k": ["1"], "event_timestamp": [START]}), ["view:v"])


def test_two_keys_may_read_one_column_of_the_frame(tmp_path):
    path = tmp_path / "f.parquet"
    at = pa.array([START] * 3, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"k": [1, 1, 2], "j": [1, 2, 2], "v": [11.0, 12.0, 22.0], "t": at}), path)
    view = _view(path, ttl=timedelta(0), created=False, keys=("k", "j")).with_join_key_map({"k": "x", "j": "x"})
    out = _join(tmp_path, [view], pd.DataFrame({"x": [2, 1, 3], "event_timestamp": [START] * 3}), ["view:v"])
    assert out["v"].fillna(-1).tolist() == [22.0, 11.0, -1]


def test_a_folder_of_files_is_one_table(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    _write(folder / "a.parquet", [(1, START, START, 1.0), (2, START, START, 2.0)])
    _write(folder / "b.parquet", [(1, START, START, 3.0)])  # the same moment, later in the table
    view = _view(folder, ttl=timedelta(0), created=False)
    out = _join(tmp_path, [view], pd.DataFrame({"k": [1, 2], "event_timestamp": [START] * 2}), ["view:v"])
    assert out["v"].tolist() == [3.0, 2.0]


def test_many_training_sets_at_once(tmp_path):
    path = tmp_path / "f.parquet"
    _write(path, [(k, START + timedelta(hours=h), START, 10.0 * k + h) for k in range(3) for h in range(200)])
    views = [_view(path, ttl=timedelta(0), created=False, name=name) for name in "abcd"]
    frame = pd.DataFrame({"k": [0, 1, 2] * 50, "event_timestamp": [START + timedelta(hours=h) for h in range(150)]})
    refs = [f"{name}:v" for name in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: _join(tmp_path, views, frame, refs, full_feature_names=True), range(8)))
    for out in made:
        for name in "abcd":
            assert out[f"{name}__v"].tolist() == [10.0 * (h % 3) + h for h in range(150)]


def test_what_is_missing_is_named(tmp_path):
    path = tmp_path / "f.parquet"
    frame = pd.DataFrame({"k": [1], "event_timestamp": [START]})
    view = _view(path, ttl=timedelta(0), created=False)
    with pytest.raises(MissingFeatureError, match=r"table of the view 'view' is missing.*Build the features"):
        _join(tmp_path, [view], frame, ["view:v"])
    pq.write_table(pa.table({"k": [1], "t": pa.array([START], pa.timestamp("us", "UTC"))}), path)
    with pytest.raises(MissingFeatureError, match=r"'view' lacks \['v'\]"):
        _join(tmp_path, [view], frame, ["view:v"])
    _write(path, [(1, START, START, 1.0)])
    with pytest.raises(MissingFeatureError, match=r"entity frame lacks the join keys \['k'\]"):
        _join(tmp_path, [view], frame.rename(columns={"k": "q"}), ["view:v"])
    with pytest.raises(DataError, match="already has a column 'v'"):
        _join(tmp_path, [view], frame.assign(v=0), ["view:v"])


@settings(max_examples=30, **anywhere)
@given(rows=features, start=moments, length=st.integers(0, 12))
def test_materialisation_takes_the_newest_row_of_each_key_in_the_range(tmp_path, rows, start, length):
    from trellis.adapters.feast_asof import AsofOfflineStore

    path = tmp_path / "f.parquet"
    _write(path, rows)
    end = start + timedelta(hours=length)
    source = _view(path, ttl=timedelta(0), created=True).batch_source
    config = _config(tmp_path)

    latest = AsofOfflineStore.pull_latest_from_table_or_query(
        config, source, ["k"], ["v"], "t", "c", start, end
    ).to_df()
    every = AsofOfflineStore.pull_all_from_table_or_query(config, source, ["k"], ["v"], "t", "c", start, end).to_df()

    inside = [r for r in rows if start <= r[1] <= end]
    expected = {key: _naive(inside, key, end, None) for key in {r[0] for r in inside}}
    assert dict(zip(latest["k"], latest["v"], strict=True)) == expected
    assert sorted(every["v"]) == sorted(r[3] for r in inside)


def test_rows_are_appended_or_refused(tmp_path):
    from trellis.adapters.feast_asof import AsofOfflineStore

    path = tmp_path / "f.parquet"
    _write(path, [(1, START, START, 1.0)])
    view = _view(path, ttl=timedelta(0), created=True)
    more = pq.read_table(path)
    AsofOfflineStore.offline_write_batch(_config(tmp_path), view, more.select(["v", "k", "c", "t"]), None)
    assert pq.read_table(path).num_rows == 2
    with pytest.raises(DataError, match="columns"):
        AsofOfflineStore.offline_write_batch(_config(tmp_path), view, more.drop(["v"]), None)
    assert pq.read_table(path).num_rows == 2
    assert [p.name for p in tmp_path.glob(".*")] == []
