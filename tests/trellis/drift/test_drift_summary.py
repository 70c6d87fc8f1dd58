"""Summaries: merging parts gives the whole, odd input has a place, JSON keeps every bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trellis.contract import Field
from trellis.decision import dumps
from trellis.drift import Reference, build_reference, merge, summarise_window
from trellis.drift.summary import (
    GRID,
    CategorySummary,
    NumericSummary,
    reference_edges,
    summarise_category,
    summarise_like,
    summarise_numeric,
)
from trellis.errors import DataError

EDGES = (-1.0, 0.0, 2.5)
numbers = st.lists(st.floats(width=32) | st.just(math.nan) | st.sampled_from([0.0, 2.5]), max_size=60)
words = st.lists(st.sampled_from(["a", "b", "c", "", None, "new"]), max_size=40)


@settings(deadline=None)
@given(numbers, numbers)
def test_merged_numbers_are_the_whole(first: list[float], second: list[float]) -> None:
    small = [v for v in (*first, *second) if not math.isfinite(v) or abs(v) < 1e15]
    cut = len(small) // 3
    parts = [summarise_numeric(np.array(p, dtype=np.float64), EDGES) for p in (small[:cut], small[cut:])]
    whole = summarise_numeric(np.array(small, dtype=np.float64), EDGES)
    merged = merge(parts[0], parts[1])
    assert isinstance(merged, NumericSummary)
    assert (merged.counts, merged.nulls, merged.rows) == (whole.counts, whole.nulls, whole.rows)
    if whole.mean is None:
        assert merged.mean is None
        return
    size = max(1.0, max(abs(v) for v in small if math.isfinite(v)))
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9 * size)
    assert merged.m2 == pytest.approx(whole.m2, rel=1e-6, abs=1e-9 * size * size)
    assert (merged.quantiles[0], merged.quantiles[-1]) == (whole.quantiles[0], whole.quantiles[-1])


def test_merged_quantiles_are_within_a_step_of_rank() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=4000), rng.normal(3, 2, size=1500)
    merged = merge(summarise_numeric(x, EDGES), summarise_numeric(y, EDGES))
    together = np.sort(np.concatenate([x, y]).astype(np.float32))
    ranks = np.searchsorted(together, np.array(merged.quantiles, dtype=np.float32)) / len(together)
    assert np.abs(ranks - GRID).max() <= 1 / 40 + 0.005


@given(words, words)
def test_merged_categories_are_the_whole(first: list[str | None], second: list[str | None]) -> None:
    known = ("a", "b", "c")
    parts = [summarise_category(np.array(p, dtype=object), known) for p in (first, second)]
    whole = summarise_category(np.array([*first, *second], dtype=object), known)
    assert merge(parts[0], parts[1]) == whole
    assert whole.rows == len(first) + len(second)
    assert whole.other == sum(v == "new" for v in (*first, *second))
    assert whole.nulls == sum(v in ("", None) for v in (*first, *second))


def test_summaries_on_other_bins_do_not_merge() -> None:
    with pytest.raises(DataError, match="different bins"):
        merge(summarise_numeric(np.ones(3), (0.0,)), summarise_numeric(np.ones(3), (1.0,)))
    with pytest.raises(DataError, match="different bins"):
        merge(summarise_numeric(np.ones(3), (0.0,)), CategorySummary(("a",), (1,)))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=80))
def test_bins_hold_every_row_and_are_open_at_both_ends(values: list[float]) -> None:
    x = np.array(values)
    edges = reference_edges(x, 10)
    assert list(edges) == sorted(set(edges))
    assert sum(summarise_numeric(x, edges).counts) == len(x)
    outside = summarise_numeric(np.array([-1e9, 1e9]), edges)
    assert outside.counts[0] == outside.counts[-1] == 1


def test_ties_get_a_bin_of_their_own() -> None:
    x = np.concatenate([np.zeros(900), np.linspace(0.1, 5, 100)])
    edges = reference_edges(x, 10)
    before = summarise_numeric(x, edges)
    assert 900 in before.counts
    assert summarise_numeric(np.full(10, -0.01), edges).counts[0] == 10
    constant = reference_edges(np.full(50, 7.0), 10)
    assert summarise_numeric(np.array([6.0, 7.0, 8.0]), constant).counts == (1, 1, 1)


def test_a_float32_value_falls_into_its_bin_after_json() -> None:
    x = np.array([39.02, 41.0, 44.06, 46.04] * 50, dtype=np.float32)
    edges = reference_edges(x.astype(np.float64), 10)
    through = np.array(json.loads(json.dumps([round(float(v), 5) for v in x])))
    assert summarise_numeric(through, edges).counts == summarise_numeric(x, edges).counts


@pytest.mark.parametrize(
    ("values", "nulls", "invalid"),
    [
        (np.array([1.0, math.nan, math.inf, -math.inf]), 3, 0),
        (np.array(["1", "2.5", "x", ""], dtype=object), 2, 1),
        (np.array([1, None, "3", [4]], dtype=object), 2, 1),
        (np.array(["2013-01-01"], dtype="datetime64[us]"), 1, 1),
        (np.array([True, False]), 0, 0),
        (np.array([], dtype=float), 0, 0),
        (np.array([1e300]), 1, 0),
    ],
)
def test_odd_values_have_a_place(values: np.ndarray, nulls: int, invalid: int) -> None:
    found = summarise_numeric(values, EDGES)
    assert found.rows == len(values)
    assert found.nulls == nulls
    assert found.invalid in (invalid, nulls if values.dtype == object else invalid)


def test_whole_numbers_in_floats_are_the_integers_they_were() -> None:
    found = summarise_category(np.array([1.0, 2.0, math.nan, 2.5]), ("1", "2"))
    assert (found.counts, found.other, found.nulls) == ((1, 1), 1, 1)


def test_reference_round_trips_and_names_what_is_no_reference() -> None:
    rng = np.random.default_rng(1)
    fields = [
        Field("x", "float"),
        Field("c", "category"),
        Field("t", "timestamp"),
        Field("image", "tensor", shape=(2, 2)),
    ]
    count = 3000
    times = np.datetime64("2013-01-01", "us") + np.sort(rng.integers(0, 60 * 86_400_000_000, count)).astype(
        "timedelta64[us]"
    )
    batch = {
        "x": rng.normal(size=count),
        "c": rng.choice(["a", "b"], count),
        "t": times,
        "image": rng.random((count, 2, 2)),
    }
    reference = build_reference(batch, fields, times=times)
    assert set(reference.columns) == {"x", "c", "image.mean", "image.std"}
    assert Reference.loads(reference.dumps()) == reference
    assert Reference.loads(reference.dumps()).digest == reference.digest
    with pytest.raises(DataError, match="cannot be read"):
        Reference.loads("{}", where="somewhere")
    window = summarise_window(batch, fields, reference, start="a", end="b")
    assert TypeAdapter(type(window)).validate_json(dumps(window)) == window
    assert window.columns["x"] == reference.columns["x"].summary
    assert summarise_like(batch["c"], reference.columns["c"].summary) == reference.columns["c"].summary


def test_a_vanished_column_is_left_out_and_no_rows_make_an_empty_window() -> None:
    fields = [Field("x", "float"), Field("y", "float")]
    reference = build_reference({"x": np.arange(9.0), "y": np.arange(9.0)}, fields)
    assert set(summarise_window({"x": np.arange(3.0)}, fields, reference, start="a", end="b").columns) == {"x"}
    assert summarise_window({}, fields, reference, start="a", end="b").rows == 0
    assert summarise_window({"x": np.empty(0)}, fields, reference, start="a", end="b").columns == {}
