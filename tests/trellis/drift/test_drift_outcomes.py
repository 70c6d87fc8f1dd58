"""Scores and labels: each kind of change moves what it must and leaves what it must, by the simulator's own truth."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trellis.drift.outcomes import compare_outcomes, estimate_labels, outcomes_like, reference_outcomes
from trellis.drift.simulate import Change, inject

ROWS = 24_000


def world(seed: int, rows: int = ROWS) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return {"x": x, "z": rng.normal(size=rows)}, (rng.random(rows) < score(x)).astype(float)


def score(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(0.5 - 1.5 * x))


def shift_of(*changes: Change, seed: int = 1, rows: int = ROWS):
    held, truth = world(1_000 + seed, rows)
    reference = reference_outcomes("binary", score(held["x"]), truth)
    columns, target = world(seed, rows)
    found = inject(columns, changes, target=target, seed=seed)
    return compare_outcomes(reference, outcomes_like(score(found.columns["x"]), found.target, reference))


def test_nothing_changed_is_nothing_found_at_the_tests_level() -> None:
    p_values = np.array(
        [
            [
                getattr(shift_of(seed=s, rows=4_000), n)[1]
                for n in ("prediction", "label", "score_given_label", "label_given_score")
            ]
            for s in range(2, 62)
        ]
    )
    # 60 runs; each question against the uniform distribution, one time in ten thousand by chance.
    for column in p_values.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("change", "stays", "moves"),
    [
        (Change("covariate", ("x",), size=0.6), "label_given_score", "score_given_label"),
        (Change("label", size=0.8), "score_given_label", "label_given_score"),
    ],
)
def test_what_a_change_must_leave_it_leaves(change: Change, stays: str, moves: str) -> None:
    found = shift_of(change)
    # By effect, not by p-value: rows drawn twice are not independent, and within a bin the score moves a little.
    assert getattr(found, stays)[0] < 0.06
    assert getattr(found, moves)[0] > 0.15
    assert getattr(found, moves)[1] < 1e-6
    assert found.prediction[1] < 1e-6


def test_a_concept_change_moves_both_links_and_no_margin() -> None:
    found = shift_of(Change("concept", ("x",), size=0.4))
    assert found.score_given_label[1] < 1e-6
    assert found.label_given_score[1] < 1e-6
    assert min(found.prediction[1], found.label[1]) > 1e-3


def test_the_mix_of_labels_is_estimated_from_scores_alone() -> None:
    inside = 0
    for seed in range(1, 41):
        held, truth = world(1_000 + seed)
        reference = reference_outcomes("binary", score(held["x"]), truth)
        columns, target = world(seed, 6_000)
        found = inject(columns, [Change("label", size=1.0)], target=target, seed=seed)
        now = outcomes_like(score(found.columns["x"]), np.full(6_000, np.nan), reference)
        estimate, error = estimate_labels(reference, now)
        # The draw's own expectation: log-odds plus one.
        odds = target.mean() / (1 - target.mean()) * math.e
        inside += abs(estimate[1] - odds / (1 + odds)) <= 1.96 * error[1]
    assert inside >= 33  # 95 % of 40 less three standard errors


def test_several_classes_and_numbers_have_tables_too() -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, 9_000)
    logits = rng.normal(size=(9_000, 3)) + 1.5 * np.eye(3)[label]
    reference = reference_outcomes("multiclass", logits, label)
    kept = rng.random(9_000) < np.array([0.2, 1.0, 0.6])[label]
    found = compare_outcomes(reference, outcomes_like(logits[kept], label[kept], reference))
    truth = np.bincount(label[kept]) / kept.sum()
    np.testing.assert_allclose(found.estimated, truth, atol=0.05)
    assert found.label[0] > 0.2
    y = rng.gamma(2, 5, 9_000)
    numbers = reference_outcomes("regression", y + rng.normal(0, 2, 9_000), y)
    worse = compare_outcomes(numbers, outcomes_like(y + rng.normal(3, 2, 9_000), y, numbers))
    assert worse.label_given_score[1] < 1e-6
    assert worse.label[1] > 1e-3


def test_rows_of_a_day_that_resemble_each_other_count_for_less() -> None:
    rng = np.random.default_rng(4)

    def days(seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        day = np.repeat(np.arange(30), 100)
        rate = 1 / (1 + np.exp(-generator.normal(0, 0.8, 30)))
        return (generator.random(3_000) < rate[day]).astype(float), day

    label, day = days(0)
    reference = reference_outcomes("binary", rng.random(3_000), label, day)
    assert reference.design > 5
    alarms = [
        compare_outcomes(reference, outcomes_like(rng.random(3_000), days(s)[0], reference)).label[1] <= 0.05
        for s in range(1, 81)
    ]
    assert np.mean(alarms) <= 0.2  # independent rows would alarm in most


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(0, 99))
def test_parts_add_up_to_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    held, truth = world(0, 500)
    reference = reference_outcomes("binary", score(held["x"]), truth)
    total = sum(sizes)
    values, label = rng.random(total), np.where(rng.random(total) < 0.3, np.nan, rng.integers(0, 2, total))
    bounds = np.cumsum([0, *sizes])
    parts = [outcomes_like(values[a:b], label[a:b], reference) for a, b in pairwise(bounds)]
    assert sum(parts[1:], parts[0]) == outcomes_like(values, label, reference)


def test_odd_input_has_an_answer() -> None:
    held, truth = world(0, 500)
    reference = reference_outcomes("binary", score(held["x"]), truth)
    empty = compare_outcomes(reference, outcomes_like(np.empty(0), np.empty(0), reference))
    assert (empty.prediction, empty.label, empty.labels) == ((0.0, 1.0), (0.0, 1.0), 0)
    odd = outcomes_like(np.array([np.nan, np.inf, 0.3]), np.array([1.0, 0.0, np.nan]), reference)
    assert sum(odd.scored) == 1
    one_class = reference_outcomes("binary", np.linspace(0, 1, 50), np.zeros(50))
    assert estimate_labels(one_class, odd) == ((), ())
