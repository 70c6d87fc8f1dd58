"""The ledger against a naive reference written as loops, and the invariants of a join."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.contract import Field, Metric, ModelSpec, Target
from trellis.errors import DataError
from trellis.ledger import due_at, join, labelled, performance
from trellis.sums import LossSums, loss_sums, merged

BASE = np.datetime64("2013-07-01T00:00:00", "us")
HOUR = np.timedelta64(3_600_000_000, "us")


def batch(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for name in names:
        values = [r[name] for r in rows]
        if name in ("time", "observed_at", "received_at"):
            result[name] = np.array([BASE + v * HOUR for v in values], dtype="datetime64[us]")
        else:
            result[name] = np.array(values, dtype=object if name == "value" else str)
    return result


def predictions(count: int) -> dict[str, np.ndarray]:
    rows = [{"id": f"p{i}", "time": i, "version": "1" if i % 2 else "2"} for i in range(count)]
    return batch(rows, ("id", "time", "version"))


def labels(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return batch(rows, ("id", "value", "observed_at", "received_at"))


def seen(row: dict[str, Any]) -> int:
    """When a label counts as observed: a sender's clock may be ahead, but not of what the log received."""
    made = int(row["id"][1:]) if row["id"] != "stranger" else 99
    ahead = row["observed_at"] > row["received_at"] and made <= row["received_at"]
    return row["received_at"] if ahead else row["observed_at"]


def naive(count: int, rows: list[dict[str, Any]], as_of: int, received_by: int = 99) -> dict[str, tuple[float, int]]:
    best: dict[str, tuple[int, int, float]] = {}
    first: dict[tuple[Any, ...], int] = {}
    for r in rows:
        key = (r["id"], r["value"], r["observed_at"])
        if r["received_at"] <= received_by:
            first[key] = min(first.get(key, 10**9), r["received_at"])
    for (name, value, claimed), received in first.items():
        observed = seen({"id": name, "observed_at": claimed, "received_at": received})
        known = name in {f"p{i}" for i in range(count)}
        if not known or value not in (0, 1) or observed > as_of or observed < int(name[1:]):
            continue
        best[name] = max(best.get(name, (-1, -1, -1.0)), (observed, received, float(value)))
    return {name: (value, observed) for name, (observed, _, value) in best.items()}


label_rows = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from([f"p{i}" for i in range(6)] + ["stranger"]),
            "value": st.sampled_from([0, 1, 1, 0, 7, -1]),
            "observed_at": st.integers(0, 12),
            "received_at": st.integers(0, 12),
        }
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(rows=label_rows, as_of=st.integers(0, 13), by=st.integers(0, 13), order=st.randoms(use_true_random=False))
def test_join_is_the_naive_one_in_any_order_and_however_often_labels_come(rows, as_of, by, order) -> None:
    expected = naive(6, rows, as_of, by)
    again = [*rows, *rows]
    order.shuffle(again)
    for given_rows in (rows, again):
        found = join(
            predictions(6), labels(given_rows), task="binary", as_of=BASE + as_of * HOUR, received_by=BASE + by * HOUR
        )
        for i in range(6):
            value, observed = expected.get(f"p{i}", (math.nan, 0))
            assert found.known[i] == (f"p{i}" in expected)
            assert found.value[i] == value or (math.isnan(value) and math.isnan(found.value[i]))
            if found.known[i]:
                assert found.observed_at[i] == BASE + observed * HOUR


@settings(max_examples=60, deadline=None)
@given(rows=label_rows, as_of=st.integers(0, 12))
def test_past_days_do_not_change_when_later_labels_come(rows, as_of) -> None:
    then = [r for r in rows if seen(r) <= as_of]
    moment = BASE + as_of * HOUR
    early = join(predictions(6), labels(then), task="binary", as_of=moment)
    late = join(predictions(6), labels(rows), task="binary", as_of=moment)
    np.testing.assert_array_equal(early.value, late.value)
    assert early.findings == late.findings


@settings(max_examples=60, deadline=None)
@given(rows=label_rows, by=st.integers(0, 12))
def test_a_past_state_of_the_log_can_be_looked_at_again_whatever_arrived_since(rows, by) -> None:
    then = join(predictions(6), labels([r for r in rows if r["received_at"] <= by]), task="binary")
    now = join(predictions(6), labels(rows), task="binary", received_by=BASE + by * HOUR)
    np.testing.assert_array_equal(then.value, now.value)
    np.testing.assert_array_equal(then.revisions, now.revisions)
    assert then.findings == now.findings


def test_findings_name_and_count_what_was_left_out() -> None:
    rows = [
        {"id": "p1", "value": 1, "observed_at": 5, "received_at": 5},
        {"id": "p1", "value": 1, "observed_at": 5, "received_at": 6},
        {"id": "ghost", "value": 1, "observed_at": 5, "received_at": 5},
        {"id": "p2", "value": 3, "observed_at": 5, "received_at": 5},
        {"id": "p2", "value": None, "observed_at": 6, "received_at": 6},
        {"id": "p3", "value": 1, "observed_at": 1, "received_at": 5},
        {"id": "p0", "value": 1, "observed_at": 5, "received_at": 5},
        {"id": "p0", "value": 0, "observed_at": 5, "received_at": 5},
    ]
    found = join(predictions(4), labels(rows), task="binary")
    assert {f.kind: (f.count, f.examples) for f in found.findings} == {
        "duplicate": (1, ("p1",)),
        "unknown_id": (1, ("ghost",)),
        "impossible_value": (2, ("p2",)),
        "observed_too_early": (1, ("p3",)),
        "contradiction": (1, ("p0",)),
    }
    assert found.known.tolist() == [True, True, False, False]
    assert found.value[0] == 1.0


def test_class_names_are_labels_and_regression_takes_numbers_only() -> None:
    rows = [
        {"id": "p0", "value": "late", "observed_at": 5, "received_at": 5},
        {"id": "p1", "value": "sometimes", "observed_at": 5, "received_at": 5},
    ]
    found = join(predictions(2), labels(rows), task="binary", classes=("on_time", "late"))
    assert found.value[0] == 1.0
    assert not found.known[1]
    rows = [{"id": f"p{i}", "value": v, "observed_at": 9, "received_at": 9} for i, v in enumerate([2.5, math.inf, "x"])]
    assert join(predictions(3), labels(rows), task="regression").known.tolist() == [True, False, False]


def test_a_prediction_id_twice_is_an_error() -> None:
    double = {"id": np.array(["a", "a"]), "time": np.array([BASE, BASE])}
    with pytest.raises(DataError, match="not unique"):
        join(double, labels([]), task="binary")


def test_nothing_joins_to_nothing() -> None:
    found = join(predictions(3), labels([]), task="binary")
    assert not found.known.any()
    cells = performance(
        predictions(3), found, task="binary", score=np.full(3, 0.5), edges=np.array([BASE, BASE + 9 * HOUR])
    )
    assert [c.coverage for c in cells] == [0.0, 0.0]
    empty = predictions(0)
    assert (
        performance(
            empty,
            join(empty, labels([]), task="binary"),
            task="binary",
            score=np.empty(0),
            edges=np.array([BASE, BASE + HOUR]),
        )
        == ()
    )


def test_performance_by_window_version_and_segment() -> None:
    made = predictions(48)
    score = np.linspace(0.1, 0.9, 48)
    rows = [{"id": f"p{i}", "value": i % 3 == 0, "observed_at": i + 2, "received_at": i + 2} for i in range(0, 48, 2)]
    found = join(made, labels([{**r, "value": int(r["value"])} for r in rows]), task="binary")
    edges = np.array([BASE, BASE + 24 * HOUR, BASE + 48 * HOUR])
    carrier = np.array(["AA", "AA", "UA"] * 16)
    cells = performance(made, found, task="binary", score=score, edges=edges, segments={"carrier": carrier})
    whole = {(c.window, c.version): c for c in cells if not c.segment}
    assert set(whole) == {(0, "1"), (0, "2"), (1, "1"), (1, "2")}
    assert whole[0, "1"].loss.rows == 0
    expected = sum((score[i] - (i % 3 == 0)) ** 2 for i in range(0, 24, 2))
    assert whole[0, "2"].loss.total == pytest.approx(expected)
    assert whole[0, "2"].coverage == 1.0
    parts = [c.loss for c in cells if c.segment == "carrier" and c.window == 0 and c.version == "2"]
    assert sum(p.total for p in parts) == pytest.approx(expected)


def test_loss_sums_merge_and_their_error_is_the_ratio_estimators() -> None:
    rng = np.random.default_rng(1)
    days = rng.integers(0, 20, 500)
    losses = rng.random(500) + days * 0.05
    whole = loss_sums(losses, days)
    parts = merged([loss_sums(losses[days < 7], days[days < 7]), loss_sums(losses[days >= 7], days[days >= 7])])
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.standard_error == pytest.approx(whole.standard_error)
    spread = sum((losses[days == d] - whole.mean).sum() ** 2 for d in range(20))
    assert whole.standard_error == pytest.approx(math.sqrt(spread * 20 / 19) / 500)
    alone = loss_sums(losses)
    assert alone.standard_error == pytest.approx(losses.std(ddof=1) / math.sqrt(500))
    assert math.isnan(LossSums().mean)
    assert math.isnan(loss_sums([0.5]).standard_error)


def test_a_clock_ahead_is_named_and_its_label_is_not_lost_for_a_year() -> None:
    made, year = predictions(2), 24 * 365
    late = [{"id": "p0", "value": 1, "observed_at": year, "received_at": 3}]
    found = join(made, labels(late), task="binary", as_of=BASE + 4 * HOUR)
    assert found.known.tolist() == [True, False]
    assert found.observed_at[0] == BASE + 3 * HOUR
    assert [(f.kind, f.examples) for f in found.findings] == [("observed_after_received", ("p0",))]
    # Sent again it is the same label, not a revision that would undo a later one; so it is when it claims another time.
    again = [*late, {**late[0], "received_at": 7}, {**late[0], "observed_at": year + 1}]
    found = join(made, labels(again), task="binary")
    assert (found.revisions[0], found.observed_at[0]) == (1, BASE + 3 * HOUR)
    assert [(f.kind, f.count) for f in found.findings] == [("duplicate", 2), ("observed_after_received", 1)]
    revised = {"id": "p0", "value": 0, "observed_at": 5, "received_at": 5}
    found = join(made, labels([*again, revised]), task="binary")
    assert (found.value[0], found.revisions[0]) == (0, 2)
    # A simulation whose event time is ahead of the clock is not skew.
    simulated = {"id": np.array(["p0"]), "time": np.array([BASE + (year - 5) * HOUR])}
    found = join(simulated, labels(late), task="binary", as_of=BASE + 4 * HOUR)
    assert not found.known.any()
    assert found.findings == ()


def test_a_label_without_a_readable_time_or_value_is_a_finding_at_every_moment() -> None:
    batch = {
        "id": np.array(["p0", "p1"]),
        "value": np.array([1, {"late": True}], dtype=object),
        "observed_at": np.array(["NaT", BASE + HOUR], dtype="datetime64[us]"),
        "received_at": np.array([BASE, BASE + HOUR]),
    }
    found = join(predictions(2), batch, task="binary", as_of=BASE + 9 * HOUR)
    assert not found.known.any()
    assert {f.kind: f.examples for f in found.findings} == {"no_time": ("p0",), "impossible_value": ("p1",)}


SPEC = ModelSpec(
    name="toy",
    version="1",
    task="multiclass",
    owner="us",
    description="Three kinds.",
    request=(Field("x", "float"),),
    inputs=("x",),
    outputs=(Field("p", "tensor", shape=(3,)),),
    target=Target("kind", "Its kind.", ("a", "b", "c")),
    metric=Metric("accuracy", 0.1),
)


def test_frames_of_the_log_join_with_scores_that_may_be_malformed() -> None:
    utc = pd.to_datetime(BASE + np.arange(5) * HOUR).tz_localize("UTC")
    rows = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(5)],
            "time": utc,
            "received_at": utc,
            "outputs.p": [[0.2, 0.3, 0.5], None, [0.1], [0.9, 0.9, 0.9], ["x", 0, 1]],
        }
    )
    said = pd.DataFrame({"id": rows["id"], "value": "c", "observed_at": utc, "received_at": utc})
    found = labelled(SPEC, rows, said)
    assert found.told.tolist() == [True, False, False, False, False]
    assert found.known.known.all()
    assert found.loss[0] == pytest.approx((0.2**2 + 0.3**2 + 0.5**2) / 2)
    assert [(f.kind, f.count) for f in found.findings] == [("no_score", 4)]
    assert len(labelled(SPEC, rows, said, received_by=BASE + 2 * HOUR).rows) == 3
    assert len(labelled(SPEC, rows.head(0), said.head(0)).rows) == 0


def test_labels_of_rows_within_the_declared_delay_do_not_count_yet() -> None:
    times = BASE + np.arange(4) * HOUR
    utc = pd.to_datetime(times).tz_localize("UTC")
    rows = pd.DataFrame({"id": [f"p{i}" for i in range(4)], "time": utc, "received_at": utc})
    rows["outputs.p"] = [[0.2, 0.3, 0.5]] * 4
    said = pd.DataFrame({"id": ["p0", "p1", "p3"], "value": "c"}).assign(observed_at=utc[3], received_at=utc[3])
    spec = replace(SPEC, target=replace(SPEC.target, delay_hours=2.5))
    found = labelled(spec, rows, said)
    assert due_at(found.times, spec).tolist() == (times + 2 * HOUR + HOUR // 2).tolist()
    # At half past three the first two are due, the second to the minute.
    due = found.due(spec, BASE + 3 * HOUR + HOUR // 2)
    assert due.told.tolist() == due.known.known.tolist() == [True, True, False, False]
    assert due.loss[:2].tolist() == found.loss[:2].tolist()
    assert due.known.revisions.tolist() == [1, 1, 0, 0]
    assert np.isnan(due.known.value[3])
    assert np.isnat(due.known.observed_at[3])
    assert found.due(spec, BASE + 9 * HOUR).told.tolist() == found.told.tolist() == [True, True, False, True]
