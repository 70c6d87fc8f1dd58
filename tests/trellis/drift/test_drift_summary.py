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
from trellis.drift import Reference, WindowSketch, build_reference, merge, sketch_window, summarise_window
from trellis.drift.sketch import Layout, merge_sketches
from trellis.drift.summary import (
    GRID,
    CategorySummary,
    reference_edges,
    reference_layout,
    sketch_numeric,
    summarise_category,
    summarise_like,
    summarise_numeric,
    summary_of,
)
from trellis.errors import DataError

LAYOUT = Layout((-1.0, 0.0, 2.5), tuple(np.linspace(-2, 4, 41)))
numbers = st.lists(st.floats(width=32) | st.just(math.nan) | st.sampled_from([0.0, 2.5]), max_size=60)
words = st.lists(st.sampled_from(["a", "b", "c", "", None, "new"]), max_size=40)


parts = st.lists(numbers, min_size=1, max_size=5)


@settings(deadline=None)
@given(parts, st.randoms(use_true_random=False))
def test_merged_sketches_are_the_sketch_of_all_rows_to_the_last_bit(values: list[list[float]], random) -> None:
    whole = sketch_numeric(np.array([v for part in values for v in part], dtype=np.float64), LAYOUT)
    merged = [sketch_numeric(np.array(part, dtype=np.float64), LAYOUT) for part in values]
    while len(merged) > 1:  # in any order, in any tree
        random.shuffle(merged)
        merged.append(merge_sketches(merged.pop(), merged.pop()))
    assert merged[0] == whole
    assert summary_of(merged[0]) == summary_of(whole)


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=80))
def test_moments_are_those_of_the_rows(values: list[float]) -> None:
    found = summarise_numeric(np.array(values), LAYOUT)
    # Values are read to 2^-17 spreads.
    assert found.mean == pytest.approx(np.mean(values), abs=2e-5)
    assert found.std == pytest.approx(np.std(values), abs=1e-3 + 1e-5 * np.std(values))


@pytest.mark.parametrize("draw", ["normal", "lognormal", "far", "kelvin"])
def test_quantiles_are_values_that_occurred_and_near_the_exact_ones(draw: str) -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(50, 10, 30_000)
    layout = reference_layout(training, 10)
    x = {
        "normal": rng.normal(55, 12, 20_000),
        "lognormal": rng.lognormal(3, 1, 20_000),
        "far": rng.normal(-1e6, 1e3, 20_000),
        "kelvin": rng.normal(283, 5, 20_000),
    }[draw].astype(np.float32)
    found = np.array(summarise_numeric(x, layout).quantiles)
    assert np.isin(found.astype(np.float32), x).all()
    exact = np.quantile(x.astype(np.float64), np.maximum(0, GRID - 1e-9), method="inverted_cdf")
    # Near the training data a cell is at most a 16th of a spread wide, beyond it 2.2 % of the distance.
    away = np.maximum(0, np.maximum(training.min() - exact, exact - training.max()))
    assert (np.abs(found - exact) <= 10 / 16 + 0.025 * away).all()
    np.testing.assert_allclose(found[[0, -1]], exact[[0, -1]], rtol=1e-8)
    np.testing.assert_array_equal(summarise_numeric(training, layout).quantiles, layout.points)


@given(words, words)
def test_merged_categories_are_the_whole(first: list[str | None], second: list[str | None]) -> None:
    known = ("a", "b", "c")
    parts = [summarise_category(np.array(p, dtype=object), known) for p in (first, second)]
    whole = summarise_category(np.array([*first, *second], dtype=object), known)
    rows = [WindowSketch("a", "b", len(v), {"c": p}) for v, p in zip((first, second), parts, strict=True)]
    assert merge(rows[0], rows[1]).columns["c"] == whole
    assert whole.rows == len(first) + len(second)
    assert whole.other == sum(v == "new" for v in (*first, *second))
    assert whole.nulls == sum(v in ("", None) for v in (*first, *second))


def test_sketches_on_other_grids_do_not_merge() -> None:
    one, other = (sketch_numeric(np.ones(3), Layout((edge,))) for edge in (0.0, 1.0))
    with pytest.raises(DataError, match="different grids"):
        merge_sketches(one, other)
    with pytest.raises(DataError, match="different vocabularies"):
        merge(WindowSketch("a", "b", 3, {"x": one}), WindowSketch("a", "b", 3, {"x": CategorySummary(("a",), (1,))}))


def test_several_machines_windows_are_one_window() -> None:
    rng = np.random.default_rng(2)
    fields = [Field("x", "float"), Field("c", "category"), Field("late", "float")]
    batch = {"x": rng.normal(size=900), "c": rng.choice(["a", "b", "z"], 900), "late": rng.gamma(2, 1, 900)}
    reference = build_reference({k: v[:500] for k, v in batch.items()}, fields)
    ages = rng.gamma(2, 3, 900)

    def part(rows: slice, drop: str = "") -> WindowSketch:
        chosen = {k: v[rows] for k, v in batch.items() if k != drop}
        return sketch_window(chosen, fields, reference, start="a", end="b", ages_hours={"v": ages[rows]})

    cuts = [slice(0, 10), slice(10, 450), slice(450, 900)]
    whole = part(slice(None))
    merged = merge(merge(part(cuts[2]), part(cuts[0])), part(cuts[1]))
    assert merged.window() == whole.window()
    assert TypeAdapter(WindowSketch).validate_json(dumps(merged)) == merged  # it travels as JSON
    assert whole.window().ages_hours["v"] == pytest.approx(np.median(ages), rel=0.03)
    # A column that one machine never saw is null in its rows.
    lacking = merge(part(cuts[2], drop="late"), part(slice(0, 450)))
    assert lacking.columns["late"].nulls == 450
    assert lacking.rows == lacking.window().columns["late"].rows == 900


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=80))
def test_bins_hold_every_row_and_are_open_at_both_ends(values: list[float]) -> None:
    x = np.array(values)
    edges = reference_edges(x, 10)
    assert list(edges) == sorted(set(edges))
    assert sum(summarise_numeric(x, Layout(edges)).counts) == len(x)
    outside = summarise_numeric(np.array([-1e9, 1e9]), Layout(edges))
    assert outside.counts[0] == outside.counts[-1] == 1


def test_ties_get_a_bin_of_their_own() -> None:
    x = np.concatenate([np.zeros(900), np.linspace(0.1, 5, 100)])
    edges = reference_edges(x, 10)
    before = summarise_numeric(x, Layout(edges))
    assert 900 in before.counts
    assert summarise_numeric(np.full(10, -0.01), Layout(edges)).counts[0] == 10
    constant = reference_edges(np.full(50, 7.0), 10)
    assert summarise_numeric(np.array([6.0, 7.0, 8.0]), Layout(constant)).counts == (1, 1, 1)


def test_a_float32_value_falls_into_its_bin_after_json() -> None:
    x = np.array([39.02, 41.0, 44.06, 46.04] * 50, dtype=np.float32)
    edges = reference_edges(x.astype(np.float64), 10)
    through = np.array(json.loads(json.dumps([round(float(v), 5) for v in x])))
    assert summarise_numeric(through, Layout(edges)).counts == summarise_numeric(x, Layout(edges)).counts


@pytest.mark.parametrize(
    ("values", "nulls", "invalid"),
    [
        (np.array([1.0, math.nan, math.inf, -math.inf]), 3, 2),
        (np.array(["1", "2.5", "x", ""], dtype=object), 2, 1),
        (np.array([1, None, "3", [4]], dtype=object), 2, 1),
        (np.array(["2013-01-01"], dtype="datetime64[us]"), 1, 1),
        (np.array([True, False]), 0, 0),
        (np.array([], dtype=float), 0, 0),
        (np.array([1e300]), 1, 1),
    ],
)
def test_odd_values_have_a_place(values: np.ndarray, nulls: int, invalid: int) -> None:
    found = summarise_numeric(values, LAYOUT)
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
