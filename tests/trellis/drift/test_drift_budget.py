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


def worst_month(policy: DriftPolicy, days: np.ndarray) -> float:
    """Return the most that looks at these moments spend in any 30 days, in budgets; counted as the job counts."""
    days = np.sort(days)
    first = np.searchsorted(days, days - 30, side="right")
    levels = np.array([look_alpha(policy, k) for k in np.arange(len(days)) - first])
    spent = np.concatenate([[0.0], np.cumsum(levels)])
    return float((spent[1:] - spent[first]).max()) / policy.false_alarms_per_month


@given(st.floats(0.01, 1), st.floats(0.1, 60), st.integers(1, 400))
def test_however_many_looks_their_levels_never_rise_and_add_up_to_no_more_than_the_budget(
    budget, planned, looks
) -> None:
    policy = DriftPolicy(false_alarms_per_month=budget, looks_per_month=planned)
    levels = [look_alpha(policy, k) for k in range(looks)]
    assert sum(levels) <= budget + 1e-9
    assert min(levels) > 0
    assert (np.diff(levels) <= 0).all()


@pytest.mark.parametrize(
    ("planned", "looks"),
    [(30, 29), (30, 30), (30, 31), (30, 32), (90, 91), (90, 100), (8, 9), (8, 30), (8, 1_440), (30 / 7, 5), (1, 2)],
)
def test_a_steady_pace_stays_within_the_budget_also_just_above_the_declared_one(planned: float, looks: int) -> None:
    policy = DriftPolicy(looks_per_month=planned)
    assert worst_month(policy, np.arange(10 * looks) * 30 / looks) <= 1 + 1e-9


@pytest.mark.parametrize("planned", [1.0, 30 / 7, 8.0, 30.0, 90.0])
def test_jitter_bursts_and_chance_stay_within_the_budget_in_any_30_days(planned: float) -> None:
    rng = np.random.default_rng(0)
    policy = DriftPolicy(looks_per_month=planned)
    even = np.arange(int(12 * planned)) * 30 / planned
    for _ in range(20):
        jittered = even + rng.uniform(0, 30 / 86_400, len(even))
        bursts = np.concatenate([day + rng.uniform(0, 0.1, rng.integers(1, 40)) for day in rng.uniform(0, 200, 12)])
        chance = np.cumsum(rng.exponential(30 / planned / rng.uniform(0.5, 3), len(even)))
        for days in (jittered, bursts, chance, np.concatenate([jittered, bursts])):
            assert worst_month(policy, days) <= 1 + 1e-9
    # Who looks as declared, up to half a minute, keeps nearly all of it.
    assert worst_month(policy, even + rng.uniform(0, 30 / 86_400, len(even))) >= 0.85


@given(st.floats(0.5, 40), st.lists(st.floats(0, 120), min_size=1, max_size=150))
def test_whenever_looks_are_taken_no_30_days_spend_more_than_the_budget(planned: float, days: list[float]) -> None:
    assert worst_month(DriftPolicy(looks_per_month=planned), np.unique(days)) <= 1 + 1e-9


@given(st.floats(0.5, 40), st.lists(st.integers(0, 360), min_size=1, max_size=80, unique=True))
def test_in_whatever_order_looks_are_taken_no_30_days_spend_more_than_the_budget(planned, taken: list[int]) -> None:
    """The naive reference of the job's count: of those on record, the ones less than 30 days away on either side."""
    policy = DriftPolicy(looks_per_month=planned)
    month = 120  # in quarters of a day
    levels = [look_alpha(policy, sum(abs(end - other) < month for other in taken[:i])) for i, end in enumerate(taken)]
    spent = [sum(a for a, end in zip(levels, taken, strict=True) if last - month < end <= last) for last in taken]
    assert max(spent) <= policy.false_alarms_per_month * (1 + 1e-9)


def test_the_declared_looks_share_nine_tenths_evenly() -> None:
    policy = DriftPolicy(false_alarms_per_month=0.6, looks_per_month=30)
    assert look_alpha(policy) == look_alpha(policy, 29) == pytest.approx(0.018)
    # The first look beyond would get 0.06 * 6 / pi^2 = 0.036 of the tenth kept back, and gets no more than the others.
    assert look_alpha(policy, 30) == pytest.approx(0.018)
    assert look_alpha(policy, 31) == pytest.approx(0.06 * 6 / (2 * math.pi) ** 2)
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
