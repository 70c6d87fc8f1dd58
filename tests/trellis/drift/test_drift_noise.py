"""The ruler of healthy days: its tail is scipy's, what it learns is what was put in, and its level holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trellis.drift.noise import LEAST_PERIODS, Noise, noise_of, quadratic_sf, roots
from trellis.drift.outcomes import compare_outcomes, outcomes_like, reference_outcomes


@pytest.mark.parametrize("units", [4.0, 6.0, 17.5, 180.0, math.inf])
@pytest.mark.parametrize("weights", [1, 2, 5, 10])
@pytest.mark.parametrize("p_value", [0.3, 1e-2, 5e-4, 1e-6])
def test_equal_variances_have_fishers_tail(units: float, weights: int, p_value: float) -> None:
    """Within 5 %, and within 16 % where one variance meets few units; never too small by more than 2 %."""
    f = stats.chi2.isf(p_value, weights) if math.isinf(units) else weights * stats.f.isf(p_value, weights, units)
    found = quadratic_sf(0.3 * f, [0.3] * weights, units) / p_value
    assert 0.98 <= found <= (1.05 if units > 10 and weights > 1 else 1.16)


def test_unequal_variances_have_the_tail_of_a_simulation() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([1.0, 0.3, 0.1, 0.05])
    drawn = (rng.standard_normal((400_000, 4)) ** 2 @ weights) / (rng.chisquare(17, 400_000) / 17)
    for distance in (2.0, 5.0, 10.0):
        share = float((drawn > distance).mean())
        assert quadratic_sf(distance, weights, 17.0) == pytest.approx(share, rel=0.05, abs=2e-4)


@given(
    st.floats(0, 1e12),
    st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=12),
    st.floats(1, 500) | st.just(math.inf),
)
def test_it_is_a_probability_and_falls_with_the_distance(distance, variances, units) -> None:
    near, far = quadratic_sf(distance, variances, units), quadratic_sf(distance * 1.5, variances, units)
    assert 0 <= far <= near + 1e-3 * near + 1e-9
    assert near <= 1


def test_what_days_share_is_found_and_a_season_is_not_among_it() -> None:
    rng = np.random.default_rng(1)
    at = np.linspace(-1, 1, 400)
    day = rng.normal(0, 0.3, 400)
    found = noise_of((day + 5 * at + 3 * at**2)[:, None], [200.0] * 400, 1)
    assert found.spectrum[0] == pytest.approx(day.var(), rel=0.05)
    assert 8 < found.units <= 397
    assert found.effect == pytest.approx(day.var() * 200, rel=0.05)
    # Half the rows bring their own noise, a week of days averages seven.
    assert found.variances(100)[0] - found.variances(200)[0] == pytest.approx(1 / 100 - 1 / 200)
    assert found.variances(1400, 7)[0] == pytest.approx(
        found.spectrum[0] * (min(1.0, found.stretch / 7) + found.stretch / 400)
    )


def test_neighbours_that_resemble_each_other_and_heavy_tails_are_worth_fewer_units() -> None:
    rng = np.random.default_rng(2)
    alone = rng.normal(size=(500, 1))
    chain = alone.copy()
    for i in range(1, 500):
        chain[i] = 0.8 * chain[i - 1] + 0.6 * alone[i]
    heavy = rng.standard_t(3, size=(500, 1))
    rows = [100.0] * 500
    calm = noise_of(alone, rows, 1).units
    assert noise_of(chain, rows, 1).units < calm / 2
    assert noise_of(chain, rows, 1).stretch == pytest.approx(1.8 / 0.2, rel=0.25)
    assert noise_of(heavy, rows, 1).units < 10 < calm


def test_too_few_periods_and_periods_that_are_all_the_same_know_nothing() -> None:
    few = noise_of(np.zeros((LEAST_PERIODS - 1, 3)), [50.0] * (LEAST_PERIODS - 1), 2)
    same = noise_of(np.ones((30, 3)), [50.0] * 30, 2)
    assert few == same == Noise()
    assert few.p_value(np.ones(3), 100) == few.effect == 1.0
    assert few.effective(70) == 70


@pytest.mark.parametrize("memory", [0.0, 0.6])
@pytest.mark.parametrize("periods", [26, 182])
def test_the_level_holds_far_out_where_days_share_a_fifth_of_their_variance(memory: float, periods: int) -> None:
    """Tail probabilities of ten bins' counts, at levels that thirty columns and thirty looks ask for."""
    rng = np.random.default_rng([periods, int(memory * 10)])
    edges = stats.norm.ppf(np.linspace(0, 1, 11))
    p_values = []
    for _ in range(60):
        day = rng.normal(size=periods + 40)
        for i in range(1, len(day)):
            day[i] = memory * day[i - 1] + math.sqrt(1 - memory**2) * day[i]
        cells = np.diff(stats.norm.cdf((edges - math.sqrt(0.2) * day[:, None]) / math.sqrt(0.8)), axis=1)
        points = np.array([roots(c) for c in rng.multinomial(300, cells).astype(float)])
        noise = noise_of(points[:periods], [300.0] * periods, 9)
        p_values += [noise.p_value(p, 300) for p in points[periods:]]
    # A week of looks shares its days' memory, so five standard errors of independent ones.
    for level in (1e-2, 1e-3):
        allowed = level * len(p_values)
        assert sum(p <= level for p in p_values) <= allowed + 5 * math.sqrt(allowed), level


def test_a_window_of_few_days_is_judged_by_how_days_differ() -> None:
    rng = np.random.default_rng(3)

    def world(days: int, per_day: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        day = np.repeat(np.arange(days), per_day)
        rate = 1 / (1 + np.exp(-rng.normal(-1, 0.5, days)))[day]
        return rng.random(len(day)), (rng.random(len(day)) < rate).astype(float), day

    score, label, day = world(42, 100)
    reference = reference_outcomes("binary", score, label, day)
    for days, per_day in ((1, 100), (1, 5_000), (7, 2_000)):
        found = []
        for _ in range(120):
            score, label, day = world(days, per_day)
            found.append(compare_outcomes(reference, outcomes_like(score, label, reference, day)).label[1])
        # 0.05 of 120 is 6; the reference is one draw of 42 days, so its own error moves every comparison alike.
        assert sum(p <= 0.05 for p in found) <= 16, (days, per_day)
        assert sum(p <= 0.001 for p in found) <= 2, (days, per_day)
