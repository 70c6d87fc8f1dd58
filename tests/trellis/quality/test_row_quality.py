"""Each fault put into healthy rows is the one finding that comes out; healthy rows have none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trellis.contract import Field, QualityPolicy
from trellis.quality import ColumnHistory, ahead_of_clock, check_rows, newest_time

FIELDS = (
    Field("line", "category"),
    Field("kind", "category", choices=("a", "b")),
    Field("at", "timestamp"),
    Field("load", "float", minimum=0, maximum=1),
    Field("seats", "int", nullable=True),
    Field("temp", "float", nullable=True),
)
HISTORY = {"line": ColumnHistory(values=frozenset({"north", "south"})), "seats": ColumnHistory(null_rate=0.05)}
N = 400


def healthy() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    time = pd.date_range("2024-07-01", periods=N, freq="min", tz="UTC")
    return pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(N)],
            "time": time,
            "received_at": time,
            "request.line": rng.choice(["north", "south"], N),
            "request.kind": rng.choice(["a", "b"], N),
            "request.at": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "request.load": rng.random(N),
            "request.seats": np.where(np.arange(N) % 25 == 0, np.nan, rng.integers(10, 90, N)),
            "features.temp": rng.normal(50, 5, N),
            "feature_times.weather": (time - pd.Timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


def look(frame: pd.DataFrame):
    return check_rows(frame, FIELDS, QualityPolicy(), history=HISTORY)


def some(frame: pd.DataFrame, column: str, value, step: int = 10) -> pd.DataFrame:
    values = frame[column].astype(object)
    values.iloc[::step] = pd.Series([value] * len(values.iloc[::step]), index=values.iloc[::step].index, dtype=object)
    return frame.assign(**{column: values})


def test_healthy_and_no_rows_have_no_finding() -> None:
    assert look(healthy()) == ()
    assert look(healthy().head(0)) == ()


@pytest.mark.parametrize(
    ("change", "kind", "column"),
    [
        (lambda f: f.drop(columns="features.temp"), "missing_column", "temp"),
        (lambda f: f.assign(**{"request.extra": 1}), "unexpected_column", "extra"),
        (lambda f: f.assign(**{"features.temp": None}), "all_null", "temp"),
        (lambda f: some(f, "features.temp", np.nan, 3), "nulls", "temp"),
        (lambda f: some(f, "request.load", None, 50), "nulls", "load"),
        (lambda f: some(f, "request.line", ""), "nulls", "line"),
        (lambda f: f.assign(**{"features.temp": 61.0}), "constant", "temp"),
        (lambda f: some(f, "features.temp", np.inf), "infinite", "temp"),
        (lambda f: some(f, "request.load", 1.5), "out_of_range", "load"),
        (lambda f: some(f, "features.temp", "warm"), "type_changed", "temp"),
        (lambda f: some(f, "features.temp", {"f": 1}), "type_changed", "temp"),
        (lambda f: some(f, "request.seats", 7.5), "type_changed", "seats"),
        (lambda f: some(f, "request.line", 3), "type_changed", "line"),
        (lambda f: some(f, "request.at", "yesterday"), "type_changed", "at"),
        (lambda f: some(f, "request.line", "island"), "new_category", "line"),
        (lambda f: some(f, "request.kind", "c"), "new_category", "kind"),
        (lambda f: some(f.assign(**{"stale.weather": None}), "stale.weather", "impute"), "stale", "weather"),
        (
            lambda f: f.assign(received_at=f["time"].where(f.index % 9 > 0, f["time"] - pd.Timedelta("1h"))),
            "clock_skew",
            "",
        ),
        (
            lambda f: pd.concat([f, f.head(20).assign(id=[f"again{i}" for i in range(20)])], ignore_index=True),
            "duplicates",
            "",
        ),
    ],
)
def test_each_fault_is_named_and_nothing_else(change, kind, column) -> None:
    found = look(change(healthy()))
    assert [(f.kind, f.column) for f in found] == [(kind, column)]
    assert 0 < found[0].share <= 1
    assert kind == "missing_column" or found[0].examples


def test_simulated_time_ahead_of_the_clock_is_no_skew_and_small_shares_are_none() -> None:
    frame = healthy()
    assert look(frame.assign(received_at=frame["time"] - pd.Timedelta("9000D"))) == ()
    frame.loc[0, "request.load"] = 1.5
    assert [f.kind for f in look(frame)] == ["out_of_range"]
    assert check_rows(frame, FIELDS, QualityPolicy(max_invalid=0.01), history=HISTORY) == ()


def test_a_row_far_ahead_is_named_with_those_it_was_received_with_and_is_not_the_newest() -> None:
    """One of 2099 among 400, sent in the second of three hours; the windows are the hours."""
    frame = healthy()
    frame.loc[100, "time"] = pd.Timestamp("2099-01-01", tz="UTC")
    assert newest_time(frame) == frame["time"][N - 1]
    start = pd.Timestamp("2024-07-01", tz="UTC")
    for hour, told in enumerate((0, 1, 0)):
        end = start + pd.Timedelta(hours=hour + 1)
        window = frame[(frame["time"] >= end - pd.Timedelta(hours=1)) & (frame["time"] < end)]
        found = check_rows(window, FIELDS, QualityPolicy(), later=frame[frame["time"] >= end])
        clocks = [f for f in found if f.kind == "clock_skew"]
        assert [(f.rows, f.examples) for f in clocks] == [(1, ("p100",))] * told, hour
        # Taken again later, or as soon as the row was there, the look finds the same.
        then = frame[frame["received_at"] < end]
        assert check_rows(window, FIELDS, QualityPolicy(), later=then[then["time"] >= end]) == found


def test_time_that_is_simulated_ahead_of_the_clock_is_the_newest_there_is() -> None:
    frame = healthy()
    frame["received_at"] -= pd.Timedelta("9000D")
    assert newest_time(frame) == frame["time"].max()
    assert not ahead_of_clock(frame).any()
    assert newest_time(frame.head(0)) is None
    # Five minutes are within what clocks differ by, and history is behind its log.
    frame["received_at"] = frame["time"] + pd.Timedelta("9000D")
    frame.loc[N - 1, "received_at"] = frame["time"][N - 1] - pd.Timedelta("5min")
    assert newest_time(frame) == frame["time"].max()
    frame.loc[N - 1, "received_at"] -= pd.Timedelta("1s")
    assert newest_time(frame) == frame["time"][N - 2]


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(anything, anything, anything, anything), min_size=1, max_size=8))
def test_nothing_that_can_stand_in_a_log_is_a_crash(rows) -> None:
    frame = healthy().head(len(rows))
    for place, column in enumerate(("request.line", "request.load", "request.at", "features.temp")):
        frame[column] = pd.Series([row[place] for row in rows], index=frame.index, dtype=object)
    for found in look(frame):
        assert found.rows >= 1
