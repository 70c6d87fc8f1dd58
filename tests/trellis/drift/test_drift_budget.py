"""The budget: what all looks of a month may take adds up to it, and one look's questions share it truly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.contract import DriftPolicy
from trellis.drift.budget import WEIGHTS, look_alpha, spread_weights, weighted_holm
from trellis.drift.statistics import holm


@given(st.floats(0.01, 1), st.floats(1, 60), st.integers(1, 400))
def test_however_many_looks_their_levels_add_up_to_no_more_than_the_budget(budget, planned, looks) -> None:
    policy = DriftPolicy(false_alarms_per_month=budget, looks_per_month=planned)
    levels = [look_alpha(policy, k) for k in range(looks)]
    # A planned number that is not whole lets its last look have a whole share.
    assert sum(levels) <= budget * (1 + 1 / planned if planned % 1 else 1) + 1e-9
    assert min(levels) > 0


def test_the_declared_looks_share_nine_tenths_evenly() -> None:
    policy = DriftPolicy(false_alarms_per_month=0.6, looks_per_month=30)
    assert look_alpha(policy) == look_alpha(policy, 29) == pytest.approx(0.018)
    assert look_alpha(policy, 30) == pytest.approx(0.06 * 6 / math.pi**2)
    assert look_alpha(DriftPolicy(false_alarms_per_month=9.0, looks_per_month=1.0)) == 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_equal_weights_are_holms_procedure(p_values) -> None:
    np.testing.assert_allclose(weighted_holm(p_values, [3.0] * len(p_values)), holm(p_values), atol=1e-12)


def test_weighted_holm_keeps_the_chance_of_any_error_below_the_level() -> None:
    rng = np.random.default_rng(0)
    weights = spread_weights(["features"] * 30 + ["harm", "prediction"])
    assert sum(weights) == pytest.approx(WEIGHTS["features"] + WEIGHTS["harm"] + WEIGHTS["prediction"])
    wrong = 0
    for _ in range(3_000):
        p_values = rng.random(32)
        p_values[5] = 0.0  # one is false: its error would not count
        adjusted = weighted_holm(list(p_values), weights)
        wrong += any(a <= 0.05 for i, a in enumerate(adjusted) if i != 5)
    # With one hypothesis false the others share the level fully; 0.05 +- 3 standard errors.
    assert 0.03 < wrong / 3_000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3_000)


def test_a_family_that_asks_once_is_not_drowned_by_thirty_columns() -> None:
    weights = spread_weights(["features"] * 30 + ["joint"])
    adjusted = weighted_holm([0.5] * 30 + [0.001], weights)
    assert adjusted[-1] == pytest.approx(0.001 * 6)
    assert holm([0.5] * 30 + [0.001])[-1] == pytest.approx(0.031)
