"""Redis as the online store: our reader against Feast's own read, over every view and type, on a real server."""

import asyncio
import contextlib
import os
import shutil
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from trellis.adapters.feast_encoding import KeyEncoder, decode_time, decode_value, hash_field
from trellis.adapters.feature_store import FeatureStore
from trellis.adapters.online_redis import connection_string
from trellis.adapters.row_reader import _decoder
from trellis.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[3]
NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)

DEFINITIONS = """
import os
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

FEATURES = Path(os.environ["TRELLIS_HOME"]) / "features"

def view(name, entities, **features):
    source = FileSource(name=name, path=str(FEATURES / f"{name}.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name=f, dtype=t) for f, t in features.items()]
    return FeatureView(name=name, entities=entities, ttl=timedelta(days=2), schema=schema, source=source)

shop = Entity(name="shop", value_type=ValueType.STRING)
user = Entity(name="user", value_type=ValueType.INT64)
slot = Entity(name="slot", value_type=ValueType.INT32)
numbers = view("numbers", [shop], f32=Float32, f64=Float64, i32=Int32, i64=Int64)
others = view("others", [shop], text=String, flag=Bool, when=UnixTimestamp, blob=Bytes)
lists = view(
    "lists", [user], floats=Array(Float32), words=Array(String), doubles=Array(Float64), ints=Array(Int32),
    longs=Array(Int64), flags=Array(Bool), moments=Array(UnixTimestamp), blobs=Array(Bytes),
)
by_slot = view("by_slot", [slot], load=Float64)
pairs = view("pairs", [user, shop], score=Float32)
everything = FeatureService(name="everything", features=[numbers, others, lists, by_slot, pairs])
"""


def tables(home):
    """Write the tables: shops s0 to s3, users 1 to 3, negative and large numbers, missing values."""
    rng = np.random.default_rng(0)
    (home / "features").mkdir(parents=True)
    times = [NOW - timedelta(hours=h) for h in (1, 5, 30, 60)]
    shops = pd.DataFrame({"shop": [f"s{i}é" for i in range(4)], "event_timestamp": times})
    users = pd.DataFrame({"user": [1, -2, 2**40], "event_timestamp": times[:3]})
    written = {
        "numbers": shops.assign(
            f32=np.array([0.0, -1.5, np.nan, 3.25], "float32"),
            f64=[0.1, -1e300, 5e-324, np.nan],
            i32=np.array([0, -1, 2**31 - 1, -(2**31)], "int32"),
            i64=np.array([0, -1, 2**53, -(2**53)], "int64"),
        ),
        "others": shops.assign(
            text=["", "é" * 200, None, "x"],
            flag=[True, False, True, False],
            when=pd.to_datetime(["2013-01-01", "1969-12-31", "2030-06-01", "1970-01-01"], utc=True),
            blob=[b"", b"\x00\xff", None, b"\x80\x04"],
        ),
        "lists": users.assign(
            floats=[[1.0, 2.5], [0.0], [3.0]],
            words=[["a"], ["b", "ç"], ["d"]],
            doubles=[[0.1, -1e300], [5e-324], [0.0]],
            ints=[[1, -(2**31)], [0], [2**31 - 1]],
            longs=[[-(2**53)], [0, 1], [2**53]],
            flags=[[True, False], [False], [True]],
            moments=[[pd.Timestamp("2013-01-01", tz="UTC")], [pd.Timestamp("1970-01-01", tz="UTC")] * 2, []],
            blobs=[[b"\x00"], [b"", b"a"], [b"\xff"]],
        ),
        "by_slot": pd.DataFrame({"slot": np.array([7, -8], "int32"), "load": [1.5, 2.5], "event_timestamp": times[:2]}),
        "pairs": pd.DataFrame(
            {
                "user": [1, 1, -2],
                "shop": ["s0é", "s1é", "s0é"],
                "score": rng.random(3, "float32"),
                "event_timestamp": times[:3],
            }
        ),
    }
    for name, frame in written.items():
        frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], utc=True)
        frame.to_parquet(home / "features" / f"{name}.parquet", index=False)


def open_store(tmp, url):
    repo, home = tmp / "repo", tmp / "home"
    repo.mkdir()
    (repo / "definitions.py").write_text(DEFINITIONS)
    shutil.copy(ROOT / "feature_repo" / "feature_store.yaml", repo)
    tables(home)
    store = FeatureStore(repo, home, url)
    store.apply()
    store.materialize(NOW)
    store.describe("everything")
    return store


@pytest.fixture(scope="module")
def redis_store(redis_url, tmp_path_factory):
    return open_store(tmp_path_factory.mktemp("with_redis"), redis_url)


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory):
    return open_store(tmp_path_factory.mktemp("with_sqlite"), "sqlite")


ROWS = {
    "shop": np.array(["s0é", "s1é", "s2é", "s3é", "nobody", "s0é", ""]),
    "user": np.array([1, -2, 2**40, 1, 99, 1, 0]),
    "slot": np.array([7, -8, 7, 9, 7, -8, 0]),
}


def feasts_own(store):
    names = list(store.describe("everything")["features"])
    views = {name: v for v in store._feast.list_feature_views() for name in (f.name for f in v.features)}
    rows = [dict(zip(ROWS, cells, strict=True)) for cells in zip(*(c.tolist() for c in ROWS.values()), strict=True)]
    refs = [f"{views[name].name}:{name}" for name in names]
    answer = store._feast.get_online_features(refs, rows).to_dict(include_event_timestamps=True)
    return {name: answer[name] for name in names}, {
        views[name].name: answer[f"{name}__ts"] for name in names if f"{name}__ts" in answer
    }


def plain(value):
    if isinstance(value, float) and np.isnan(value):
        return None
    return list(value) if isinstance(value, list | tuple | np.ndarray) else value


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_every_view_and_type_reads_as_feast_reads_it(kind, request):
    store = request.getfixturevalue(f"{kind}_store")
    values, times = store.online("everything", ROWS, {})
    theirs, their_times = feasts_own(store)
    assert set(values) == set(theirs)
    assert len(values) == 18
    for name, column in values.items():
        for row, (mine, feasts) in enumerate(zip(column.tolist(), theirs[name], strict=True)):
            assert plain(mine) == plain(feasts), f"{name}, row {row}"
            if mine is not None and name in ("text", "flag", "when", "blob"):
                assert type(mine) is type(feasts)
    assert values["i32"][3] == -(2**31)
    assert values["flag"].tolist()[:4] == [True, False, True, False]
    assert times["numbers"][0] == np.datetime64("2013-07-01T11:00:00")
    assert np.isnat(times["numbers"][4:5]).all()
    for view, stamps in their_times.items():
        mine = times[view].astype("datetime64[s]").astype(int).tolist()
        found = ~np.isnat(times[view])
        assert [m for m, f in zip(mine, found, strict=True) if f] == [
            int(s) for s, f in zip(stamps, found, strict=True) if f
        ]


def test_both_stores_give_the_same(redis_store, sqlite_store):
    ours, times = redis_store.online("everything", ROWS, {})
    other, other_times = sqlite_store.online("everything", ROWS, {})
    for name in ours:
        assert ours[name].dtype == other[name].dtype
        assert [plain(v) for v in ours[name].tolist()] == [plain(v) for v in other[name].tolist()], name
    for view in times:
        np.testing.assert_array_equal(times[view], other_times[view])


def test_a_closed_store_leaves_redis_no_connection_and_can_be_used_again(redis_url, tmp_path):
    store = open_store(tmp_path, redis_url)
    reader = store.row_reader("everything")
    row = {name: cells[0] for name, cells in ROWS.items()}

    def ours(client):
        return {c["id"] for c in client.client_list()} - before

    async def scene():
        fetched = await reader.fetch(row)
        store.online("everything", ROWS, {})
        during = ours(client)
        store.close()
        end = time.monotonic() + 10
        while ours(client):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        again = await reader.fetch(row)
        store.close()
        await asyncio.sleep(0.01)
        return fetched, during, again

    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        store.close()
        before = {c["id"] for c in client.client_list()}
        fetched, during, again = asyncio.run(scene())
    assert len(during) == 2, "one for the loop and one for threads"
    assert again.times == fetched.times


@pytest.mark.parametrize("way", ["in a thread", "on a loop"])
def test_row_by_row_is_what_columns_are(redis_store, way):
    values, times = redis_store.online("everything", ROWS, {})
    reader = redis_store.row_reader("everything")
    assert reader.is_for_loops
    rows = [dict(zip(ROWS, cells, strict=True)) for cells in zip(*(c.tolist() for c in ROWS.values()), strict=True)]

    async def together():
        found = await asyncio.gather(*(reader.fetch(row) for row in rows))
        redis_store._loop_redis.close()
        await asyncio.sleep(0.01)
        return found

    found = asyncio.run(together()) if way == "on a loop" else [reader.read(row) for row in rows]
    for i, stored in enumerate(found):
        assert list(stored.cells) == list(values)
        for name, value in stored.cells.items():
            mine = np.array((value,), reader.dtypes[name])
            assert mine.dtype == values[name].dtype
            assert plain(mine.tolist()[0]) == plain(values[name].tolist()[i]), f"{name}, row {i}"
            assert type(mine.tolist()[0]) is type(values[name].tolist()[i])
        assert list(stored.times) == list(times)
        for view, at in stored.times.items():
            np.testing.assert_array_equal(np.datetime64("NaT" if at is None else at, "us"), times[view][i])
        assert stored.old == (), "without a time field nothing is too old"


def test_all_views_take_one_round_trip(redis_store):
    pool = redis_store._redis._client.connection_pool
    connection = pool.get_connection()
    pool.release(connection)
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        real = connection.send_packed_command
        patch.setattr(connection, "send_packed_command", lambda *a, **k: (sent.append(a[0]), real(*a, **k))[1])
        redis_store.online("everything", {k: v[:1] for k, v in ROWS.items()}, {})
    assert len(sent) == 1
    # Four sets of join keys, so four hashes: the two views of a shop share theirs.
    assert b"".join(sent[0]).count(b"HMGET") == 4


def test_a_newer_row_replaces_and_an_older_one_does_not(redis_url, tmp_path):
    store = open_store(tmp_path, redis_url + "/1")
    path = tmp_path / "home" / "features" / "by_slot.parquet"
    for hours, load, expected in ((-1, 9.0, 9.0), (3, 4.0, 9.0)):
        at = pd.to_datetime([NOW - timedelta(hours=hours)], utc=True)
        pd.DataFrame({"slot": np.array([7], "int32"), "load": [load], "event_timestamp": at}).to_parquet(path)
        store.materialize(NOW + timedelta(hours=2), since=NOW - timedelta(days=9))
        values, _ = store.online("everything", {k: v[:1] for k, v in ROWS.items()}, {})
        assert values["load"].tolist() == [expected]


def test_what_one_redis_holds_another_does_not(redis_url, tmp_path):
    store = open_store(tmp_path, redis_url + "/2")
    assert store.materialize(NOW)["numbers"] == 0
    other = FeatureStore(tmp_path / "repo", tmp_path / "home")
    other.apply()
    assert other.materialize(NOW)["numbers"] == 4


def test_a_redis_that_is_away_raises_at_once(redis_store, monkeypatch):
    from redis.exceptions import ConnectionError as Away

    from trellis.adapters.online_redis import RedisReader

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setitem(
            redis_store.__dict__, "_redis", RedisReader(f"127.0.0.1:{taken.getsockname()[1]},db=0", "trellis")
        )
        with pytest.raises(Away):
            redis_store.online("everything", ROWS, {})


def test_a_url_becomes_feasts_connection_string():
    assert connection_string("redis://h:1/3").startswith("h:1,db=3,")
    whole = connection_string("rediss://me:p%40ss@h").split(",")
    assert whole[0] == "h:6379"
    assert {"ssl=true", 'username="me"', 'password="p@ss"'} <= set(whole)
    for wrong in ("redis://", "http://h", "redis://h/x", "redis://:a%2Cb@h", "redis://h:99999"):
        with pytest.raises(ConfigError):
            connection_string(wrong)


# --- the form itself, against Feast's code


names = st.lists(st.text("abcé_", min_size=1, max_size=6), min_size=1, max_size=3, unique=True)


@given(names, st.data())
def test_keys_are_feasts_bytes(names, data):
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    kinds = [data.draw(st.sampled_from(["STRING", "INT32", "INT64"])) for _ in names]
    ranges = {"STRING": st.text(max_size=9), "INT32": st.integers(-(2**31), 2**31 - 1)}
    values = [data.draw(ranges.get(k, st.integers(-(2**63), 2**63 - 1))) for k in kinds]
    protos = [Value(**{f"{k.lower()}_val": v}) for k, v in zip(kinds, values, strict=True)]
    theirs = serialize_entity_key(EntityKey(join_keys=names, entity_values=protos), 3)
    assert KeyEncoder(names, kinds)(values) == theirs


@given(
    st.one_of(
        st.floats(allow_nan=False).map(lambda v: ("double_val", v)),
        st.floats(width=32, allow_nan=False).map(lambda v: ("float_val", v)),
        st.integers(-(2**31), 2**31 - 1).map(lambda v: ("int32_val", v)),
        st.integers(-(2**63), 2**63 - 1).map(lambda v: ("int64_val", v)),
        st.booleans().map(lambda v: ("bool_val", v)),
        st.text().map(lambda v: ("string_val", v)),
        st.binary().map(lambda v: ("bytes_val", v)),
    )
)
def test_values_are_what_feast_wrote(cell):
    from feast.protos.feast.types.Value_pb2 import Value

    kind, value = cell
    found = decode_value(Value(**{kind: value}).SerializeToString())
    assert (type(found), found) == (type(value), value)
    assert decode_value(None) is decode_value(b"") is None


CELLS = st.one_of(
    st.none(),
    st.just(("float_val", None)),
    st.floats(width=32).map(lambda v: ("float_val", v)),
    st.floats(allow_nan=False).map(lambda v: ("double_val", v)),
    st.integers(-(2**31), 2**31 - 1).map(lambda v: ("int32_val", v)),
    st.booleans().map(lambda v: ("bool_val", v)),
)


@given(st.lists(CELLS, min_size=1, max_size=6))
def test_many_floats_at_once_are_what_each_is_alone(cells):
    from feast.protos.feast.types.Value_pb2 import Value

    stored = [None if cell is None else Value(**{cell[0]: cell[1]}).SerializeToString() for cell in cells]
    together = _decoder([np.dtype("f4")] * len(stored))(stored)
    alone = [np.nan if (value := decode_value(cell)) is None else float(value) for cell in stored]
    assert np.array_equal(together, alone, equal_nan=True)


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)))
def test_times_are_what_feast_wrote(moment):
    from google.protobuf.timestamp_pb2 import Timestamp

    stamp = Timestamp()
    stamp.FromDatetime(moment)
    data = stamp.SerializeToString()
    if data:
        assert decode_time(data) == np.datetime64(moment, "us")


@given(st.text(max_size=20), st.text(max_size=20))
def test_fields_are_feasts_hashes(view, feature):
    from feast.infra.online_stores.helpers import _mmh3

    assert hash_field(view, feature) == _mmh3(f"{view}:{feature}")


def test_no_variable_of_ours_stays_behind(sqlite_store):
    sqlite_store.online("everything", ROWS, {})
    assert "FEAST_ONLINE_STORE" not in os.environ
