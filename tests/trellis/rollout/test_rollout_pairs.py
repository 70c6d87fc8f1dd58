"""Pairs: their bounds by simulation with known truth, and what they decide beside the split."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats

from trellis.contract import RolloutPolicy
from trellis.decision import dumps
from trellis.rollout import CanaryInputs, Exposure, LossStream
from trellis.rollout.pairs import Pairs
from trellis.rollout.stream import TUNED_AT
from trellis.rollout.verdict import QUALITY, SHADOW_FAILS, decide, pairs_alpha, quality_alpha

POLICY = RolloutPolicy(shadow_rate=0.5)
EVEN = (Exposure(0.1, 100, 900),)


def pairs_of(gap):
    return Pairs(len(gap), float(gap.sum()), float((gap * gap).sum()))


def split(canary=500, mean=0.0):
    """A split's state at 10 % after so many canary rows of a Brier loss, as its expectation would have it."""
    rows = 10 * canary
    information = 0.09 * rows
    return LossStream(
        rows, canary, 0.15 * canary, 0.15 * 9 * canary, mean * information, 0.04 * information, information
    )


@pytest.mark.parametrize(
    ("name", "draw", "truth"),
    [
        ("the usual", lambda rng, n: 0.002 + 0.03 * rng.normal(size=n), 0.002),
        ("one row in two hundred, all one way", lambda rng, n: (rng.uniform(size=n) < 0.005).astype(float), 0.005),
        ("one row in fifty, either way", lambda rng, n: (rng.uniform(size=n) < 0.02) * rng.choice([-1.0, 1.0], n), 0.0),
    ],
)
def test_a_bound_is_ever_wrong_as_seldom_as_it_says(name, draw, truth):
    """Looked at every 25 rows from 200 to 4,000; 600 runs. The binomial allows for the Monte Carlo error."""
    rng, alpha, runs = np.random.default_rng(3), 0.05, 600
    wrong = {"lower": 0, "upper": 0}
    looks = np.arange(200, 4_001, 25)
    for _ in range(runs):
        gap = draw(rng, looks[-1])
        sums, squares = np.cumsum(gap)[looks - 1], np.cumsum(gap * gap)[looks - 1]
        found = [Pairs(*now).bounds(alpha) for now in zip(looks.tolist(), sums.tolist(), squares.tolist(), strict=True)]
        wrong["lower"] += max(lower for lower, _ in found) > truth
        wrong["upper"] += min(upper for _, upper in found) < truth
    most = stats.binom.ppf(0.999, runs, alpha)
    assert max(wrong.values()) <= most, (name, wrong)


def test_the_bound_is_robbins_mixture_of_the_mean():
    """Against the formula of the paper (one-sided, its tuning by the first-order approximation), written down anew."""
    gap = 0.01 + 0.05 * np.random.default_rng(4).normal(size=700)
    pairs, alpha = pairs_of(gap), 0.02
    spread = np.var(np.concatenate([gap, [1.0, -1.0]]))
    tuned = -2 * np.log(2 * alpha)
    rho2 = (tuned + np.log(1 + tuned)) / TUNED_AT
    wide = np.sqrt(spread * 2 * (700 * rho2 + 1) / (700**2 * rho2) * np.log1p(np.sqrt(700 * rho2 + 1) / (2 * alpha)))
    assert pairs.bounds(alpha) == pytest.approx((gap.mean() - wide, gap.mean() + wide))
    assert Pairs(1, 0.0, 0.0).bounds(alpha) == (-np.inf, np.inf)


def test_pairs_find_what_a_split_cannot():
    """A tenth of a point of Brier, margin half of it: 4,000 pairs roll it back, or let an equal canary take over."""
    rng, policy = np.random.default_rng(5), replace(POLICY, margin=0.0005)
    for harm, outcome in ((0.004, "ROLL_BACK"), (-0.002, "PROMOTE")):
        inputs = CanaryInputs(split(mean=harm), EVEN, 0.1, 5.0, pairs=pairs_of(harm + 0.02 * rng.normal(size=4_000)))
        verdict = decide(inputs, policy)
        assert verdict.outcome == outcome
        assert "on the same 4000 rows" in verdict.reason
        assert decide(replace(inputs, pairs=None), policy).outcome == "HOLD"
        assert TypeAdapter(CanaryInputs).validate_json(dumps(inputs)) == inputs


def test_pairs_that_do_harm_need_no_labels_of_the_split_but_a_promotion_does():
    rng = np.random.default_rng(6)
    gap = 0.05 + 0.1 * rng.normal(size=600)
    assert decide(CanaryInputs(LossStream(), (), 0.1, 1.0, pairs=pairs_of(gap)), POLICY).outcome == "ROLL_BACK"
    assert decide(CanaryInputs(LossStream(), (), 0.1, 1.0, pairs=pairs_of(gap[:199])), POLICY).outcome == "HOLD"
    assert decide(CanaryInputs(LossStream(), (), 0.1, 1.0, pairs=pairs_of(gap - 0.05)), POLICY).outcome == "HOLD"


def test_a_failing_canary_is_not_saved_by_good_pairs():
    inputs = CanaryInputs(split(), (Exposure(0.1, 500, 4_500, 60, 45),), 0.1, 5.0, pairs=pairs_of(np.zeros(4_000)))
    assert decide(inputs, POLICY).outcome == "ROLL_BACK"
    live = CanaryInputs(split(5_000, mean=0.08), EVEN, 0.1, 5.0, pairs=pairs_of(np.zeros(4_000)))
    assert decide(live, POLICY).outcome == "ROLL_BACK", "what is served is worse than what the shadow scores"


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("strategy", ["canary", "ab", "blue_green", "bandit"])
def test_what_is_spent_is_quality_s_part_of_alpha(rate, strategy):
    policy = RolloutPolicy(shadow_rate=rate, strategy=strategy)
    shadow = policy.alpha * SHADOW_FAILS + pairs_alpha(policy) if rate else 0.0
    assert quality_alpha(policy) + shadow == pytest.approx(policy.alpha * QUALITY)
    assert quality_alpha(policy) > 0
