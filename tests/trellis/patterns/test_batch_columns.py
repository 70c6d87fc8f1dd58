"""Batch holds fields to the declaration as the service does: what one takes the other takes, with the same value."""

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prediction.columns import column as online_column
from services.prediction.schema import model_schema, parse
from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.errors import RequestError
from trellis.patterns.columns import read_column, require_type

floats = st.floats() | st.sampled_from([0.0, 1.0, 10.0, -5.0, 9.999999, 10.000001]) | st.none()
words = st.text("aé\u4e2d🙂", max_size=6) | st.sampled_from(["red", "blue", "green"]) | st.none()
moments = st.datetimes(datetime(1890, 1, 1), datetime(2210, 1, 1)).map(lambda m: m.replace(tzinfo=UTC)) | st.none()
matrices = st.lists(
    st.lists(st.floats(width=32) | st.none(), min_size=1, max_size=3) | st.none(), min_size=1, max_size=3
)

CASES = {
    "float": (Field("x", "float", minimum=-5.0, maximum=10.0), floats, pa.float64()),
    "float nullable": (Field("x", "float", nullable=True), floats, pa.float64()),
    "int": (Field("x", "int", minimum=-3, maximum=2**40), st.integers(-(2**63), 2**63 - 1) | st.none(), pa.int64()),
    "int nullable": (Field("x", "int", nullable=True), st.integers(-9, 9) | st.none(), pa.int64()),
    "unsigned": (Field("x", "int"), st.integers(0, 2**64 - 1) | st.none(), pa.uint64()),
    "bool": (Field("x", "bool"), st.booleans() | st.none(), pa.bool_()),
    "bool nullable": (Field("x", "bool", nullable=True), st.booleans() | st.none(), pa.bool_()),
    "choices": (Field("x", "category", choices=("red", "blue")), words, pa.string()),
    "open": (Field("x", "category", max_length=4), words, pa.string()),
    "text nullable": (Field("x", "text", max_length=4, nullable=True), words, pa.large_string()),
    "timestamp": (Field("x", "timestamp"), moments, pa.timestamp("us", "UTC")),
    "timestamp nullable": (Field("x", "timestamp", nullable=True), moments, pa.timestamp("us")),
    "tensor": (Field("x", "tensor", shape=(2, 2), minimum=-5.0), matrices, pa.list_(pa.list_(pa.float32()))),
    "vector": (
        Field("x", "tensor", shape=(2,), maximum=10.0),
        st.lists(st.floats(width=32), max_size=3),
        pa.list_(pa.float32()),
    ),
}


def spec_of(field):
    return ModelSpec(
        name="m",
        version="1",
        task="regression",
        owner="o",
        description="d",
        request=(field,),
        inputs=("x",),
        outputs=(Field("value", "float"),),
        target=Target("y", ""),
        metric=Metric("mae", 1.0),
    )


@cache
def request_of(field):
    return model_schema(spec_of(field), max_rows=9).request


def online(field, value):
    """Return the service's column for one value, or None where it refuses; a NaN is sent as null."""
    if isinstance(value, float) and value != value:
        value = None
    if isinstance(value, datetime):
        value = value.isoformat()
    body = json.dumps({"rows": [{"x": value}]}).encode()
    try:
        row = parse(request_of(field), body).rows[0]
    except RequestError:
        return None
    return online_column(field, [row.x])


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_the_same_values_are_taken_as_online(name, data):
    field, values, kind = CASES[name]
    value = data.draw(values)
    require_type(field, kind)
    mine = read_column(field, pa.array([value], kind), may_miss=field.nullable)
    theirs = online(field, value)
    assert (theirs is None) == bool(mine.refused), mine.refused
    if theirs is not None:
        assert mine.values.dtype.kind == theirs.dtype.kind
        np.testing.assert_array_equal(mine.values, theirs)


@given(st.lists(floats, min_size=1, max_size=8))
def test_rows_are_judged_one_by_one(values):
    field = CASES["float"][0]
    found = read_column(field, pa.array(values, pa.float64()), may_miss=False)
    assert len(found.values) == len(values)
    assert sorted(found.refused) == [i for i, v in enumerate(values) if online(field, v) is None]


def test_integers_may_come_as_floats_as_pandas_writes_them():
    field = Field("x", "int", nullable=True)
    found = read_column(field, pa.array([1.0, None, 2.5, float("inf"), 1e30]), may_miss=True)
    assert sorted(found.refused) == [2, 3, 4]
    assert found.values[0] == 1
    whole = read_column(field, pa.array([1.0, 2.0]), may_miss=True)
    assert whole.values.dtype == np.int64


def test_timestamps_of_any_unit_and_zone_are_the_same_moment():
    moment = datetime(2013, 7, 1, 9, 15, tzinfo=UTC)
    local = moment.astimezone(ZoneInfo("America/New_York"))
    field = Field("x", "timestamp")
    for unit in ("s", "ms", "us", "ns"):
        for zone, value in (("UTC", moment), ("America/New_York", local), (None, moment.replace(tzinfo=None))):
            found = read_column(field, pa.array([value], pa.timestamp(unit, zone)), may_miss=False)
            assert found.values[0] == np.datetime64("2013-07-01T09:15", "us")
    far = read_column(field, pa.array([2**62, -(2**62), 0], pa.timestamp("s")), may_miss=False)
    assert sorted(far.refused) == [0, 1]
    with pytest.raises(RequestError, match="Write it as timestamps"):
        require_type(field, pa.string())


def test_dictionaries_are_strings_and_slices_keep_their_place():
    field = Field("x", "category", choices=("red", "blue"))
    column = pa.array(["red", "green", "blue", "red"]).dictionary_encode()
    require_type(field, column.type)
    found = read_column(field, pa.chunked_array([column.slice(1, 2), column.slice(3)]), may_miss=False)
    assert list(found.refused) == [0]
    assert found.values[1:].tolist() == ["blue", "red"]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 4), pa.list_(pa.float64()), pa.large_list(pa.int64())])
def test_tensors_may_be_flat_lists(kind):
    field = Field("x", "tensor", shape=(2, 2))
    require_type(field, kind)
    found = read_column(field, pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], kind).slice(1), may_miss=False)
    np.testing.assert_array_equal(found.values, [[[5, 6], [7, 8]]])


def test_one_long_string_does_not_widen_the_column():
    found = read_column(Field("x", "text", max_length=5), pa.array(["a", "b" * 100_000]), may_miss=False)
    assert list(found.refused) == [1]
    assert found.values.dtype.itemsize <= 20


def test_moments_at_the_edge_are_refused_as_online():
    field = Field("x", "timestamp")
    for edge in (datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)):
        for step in (-1, 0, 1):
            value = edge + timedelta(microseconds=step)
            mine = read_column(field, pa.array([value], pa.timestamp("us", "UTC")), may_miss=False)
            assert bool(mine.refused) == (online(field, value) is None)
