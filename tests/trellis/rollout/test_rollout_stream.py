"""The loss stream: unbiased under changing shares, the paper's formula, and error rates under continuous looking."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.errors import DataError
from trellis.rollout import LossStream
from trellis.rollout.stream import TUNED_AT, information_for, reach

RNG = np.random.default_rng


def aa_losses(rng, days=30, per_day=300):
    """Brier losses of flights whose days share their weather; the same whoever answers."""
    logit = -1.7 + 0.7 * rng.normal(size=(days, 1)) + 0.9 * rng.normal(size=(days, per_day))
    p = 1 / (1 + np.exp(-logit))
    return (p - (rng.uniform(size=p.shape) < p)) ** 2


def test_update_agrees_with_a_row_by_row_loop():
    rng = RNG(0)
    arm, loss, share = rng.uniform(size=200) < 0.3, rng.uniform(size=200), rng.choice([0.1, 0.5], 200)
    score = square = information = total = surplus = 0.0
    for t in range(200):
        if t:
            y = (arm[t] - share[t]) * (loss[t] - total / t)
            score, square, information = score + y, square + y * y, information + share[t] * (1 - share[t])
            surplus += arm[t] - share[t]
        total += loss[t]
    ours = LossStream().update(arm, loss, share)
    assert (ours.score, ours.square, ours.information) == pytest.approx((score, square, information))
    assert ours.surplus == pytest.approx(surplus)
    assert (ours.rows, ours.canary_rows) == (200, arm.sum())
    assert ours.canary_loss == pytest.approx(loss[arm].sum())


@given(st.integers(0, 2**31), st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=40, deadline=None)
def test_batches_do_not_matter(seed, cuts):
    rng = RNG(seed)
    arm, loss = rng.uniform(size=60) < 0.3, rng.uniform(size=60)
    whole, parts = LossStream().update(arm, loss, 0.3), LossStream()
    for piece in np.split(np.arange(60), sorted(cuts)):
        parts = parts.update(arm[piece], loss[piece], 0.3)
    assert dataclasses.astuple(parts) == pytest.approx(dataclasses.astuple(whole))


def test_merging_adds_and_estimates_the_same():
    rng = RNG(1)
    arm, loss = rng.uniform(size=20_000) < 0.2, rng.uniform(size=20_000)
    loss = loss + 0.05 * arm
    half = [LossStream().update(arm[s], loss[s], 0.2) for s in (slice(0, 10_000), slice(10_000, None))]
    merged, whole = half[0].merge(half[1]), LossStream().update(arm, loss, 0.2)
    assert merged.rows == whole.rows
    assert merged.difference == pytest.approx(whole.difference, abs=1e-3)


def test_a_changing_share_and_season_do_not_bias():
    """The canary gets most of its rows in a bad season: the plain means differ by 0.13, the truth is 0."""
    rng, estimates, naive = RNG(2), [], []
    for _ in range(200):
        season = np.repeat([0.1, 0.4], 2_000)
        loss, share = season * rng.uniform(0, 2, 4_000), np.repeat([0.1, 0.5], 2_000)
        arm = rng.uniform(size=4_000) < share
        state = LossStream().update(arm, loss, share)
        estimates.append(state.difference)
        naive.append(state.canary_loss / state.canary_rows - state.champion_loss / state.champion_rows)
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / math.sqrt(200)
    assert np.mean(naive) > 0.1


def test_reach_is_the_papers_formula():
    """Waudby-Smith et al.: sqrt(2 (tρ² + 1) / (t² ρ²) · log(1 + sqrt(tρ² + 1) / (2α))), with t the information."""
    alpha, t, sigma = 0.04, 700.0, 0.2
    rho2 = (-2 * math.log(2 * alpha) + math.log(1 - 2 * math.log(2 * alpha))) / TUNED_AT
    paper = sigma * math.sqrt(2 * (t * rho2 + 1) / (t * t * rho2) * math.log(1 + math.sqrt(t * rho2 + 1) / (2 * alpha)))
    assert reach(t, sigma**2, alpha) == pytest.approx(paper, rel=1e-12)


@given(st.floats(1e-3, 0.5), st.floats(1e-3, 1), st.floats(1e-4, 0.2))
@settings(max_examples=50, deadline=None)
def test_reach_falls_and_is_inverted(distance, variance, alpha):
    need = information_for(distance, variance, alpha)
    assert reach(need, variance, alpha) == pytest.approx(distance, rel=1e-6)
    assert reach(2 * need, variance, alpha) < distance
    assert reach(need / 2, variance, alpha) > distance


def test_error_over_all_looks_is_held_where_a_z_test_fails():
    """1,000 A/A rollouts, 120 looks each: each bound is wrong in at most 5 % (Monte Carlo error 0.7 %)."""
    rng, runs, wrong = RNG(3), 1_000, {"lower": 0, "upper": 0, "z": 0}
    for _ in range(runs):
        loss = aa_losses(rng).ravel()
        share = np.where(np.arange(loss.size) < 3_000, 0.1, 0.5)  # a step on the way
        arm = rng.uniform(size=loss.size) < share
        state, hit = LossStream(), {"lower": False, "upper": False, "z": False}
        for cut in np.split(np.arange(loss.size), 120):
            state = state.update(arm[cut], loss[cut], share[cut])
            if state.canary_rows >= 200:
                lower, upper = state.bounds(0.05)
                hit["lower"] |= lower > 0
                hit["upper"] |= upper < 0
                hit["z"] |= state.score > 1.645 * math.sqrt(state.square)
        for name, value in hit.items():
            wrong[name] += value
    assert wrong["lower"] / runs <= 0.065
    assert wrong["upper"] / runs <= 0.065
    assert wrong["z"] / runs > 0.15


def test_losses_far_from_zero_cost_nothing():
    """A regression's loss of a million or so gives the same bounds, but for the scale, as one near zero."""
    rng = RNG(4)
    arm, noise = rng.uniform(size=5_000) < 0.3, rng.normal(size=5_000)
    near, far = (LossStream().update(arm, base + noise, 0.3) for base in (0.0, 1e6))
    assert far.difference == pytest.approx(near.difference, abs=1e-3)
    assert far.reach(0.05) == pytest.approx(near.reach(0.05), rel=1e-3)


def test_certain_shares_tell_nothing_and_bad_rows_are_refused():
    state = LossStream().update(np.ones(50, dtype=bool), np.full(50, 0.2), 1.0)
    assert state.information == 0
    assert state.bounds(0.05) == (-math.inf, math.inf)
    assert LossStream().update(np.array([], dtype=bool), np.array([]), 0.1) == LossStream()
    with pytest.raises(DataError, match="do not line up"):
        LossStream().update(np.array([True]), np.array([0.1, 0.2]), 0.1)
    with pytest.raises(DataError, match="not finite"):
        LossStream().update(np.array([True]), np.array([np.nan]), 0.1)
    with pytest.raises(DataError, match="outside"):
        LossStream().update(np.array([True]), np.array([0.1]), 1.1)
