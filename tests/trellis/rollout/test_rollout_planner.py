"""The planner against closed form and against simulated trials of the size that it plans."""

import math

import numpy as np
import pytest
from scipy import stats

from trellis.contract import RolloutPolicy
from trellis.errors import InvalidPlanError
from trellis.rollout import CanaryInputs, LossStream, exposures_of, next_share, ready_to_step
from trellis.rollout.compare import AbInputs, Arm, decide_ab, planned_information
from trellis.rollout.pairs import Pairs
from trellis.rollout.planner import plan_experiment, plan_pairs, plan_trial
from trellis.rollout.stream import reach
from trellis.rollout.verdict import QUALITY, decide, pairs_alpha

POLICY = RolloutPolicy(max_days=60)
VARIANCE, PER_DAY = 0.03, 900


def trial(rng, difference, days, policy=POLICY):
    """Look once a day for so many days; return what was decided and the labels of the canary."""
    stream, exposures, share = LossStream(), (), policy.steps[0]
    for day in range(days):
        arm = rng.uniform(size=PER_DAY) < share
        # Losses of variance 0.03 whatever the difference: a beta law and a shift of the canary's
        loss = rng.beta(0.5625, 1.6875, size=PER_DAY) / math.sqrt(0.0576923 / VARIANCE) + difference * arm
        stream = stream.update(arm, loss, share)
        exposures = (*exposures, *exposures_of(share, arm))
        inputs = CanaryInputs(stream, exposures, share, day + 1.0)
        verdict = decide(inputs, policy)
        if verdict.outcome != "HOLD":
            break
        if ready_to_step(inputs, policy).passed:
            share = next_share(policy, share) or share
    return verdict.outcome, stream.rows


@pytest.mark.parametrize("power", [0.8, 0.95])
def test_the_planned_time_decides_with_the_planned_power(power):
    """400 trials: at least the power, less three Monte Carlo errors; and half the time does not, so it is no excess."""
    assert stats.beta(0.5625, 1.6875).var() == pytest.approx(0.0576923, rel=1e-4)
    made = plan_trial(POLICY, variance=VARIANCE, per_day=PER_DAY, power=power, harm=0.03)
    slack = 3 * math.sqrt(power * (1 - power) / 400)
    for need, outcome in ((made.promote, "PROMOTE"), (made.roll_back, "ROLL_BACK")):
        rng = np.random.default_rng(1)
        found = [trial(rng, need.difference, math.ceil(need.days))[0] for _ in range(400)]
        assert found.count(outcome) / 400 >= power - slack
        rng = np.random.default_rng(2)
        half = [trial(rng, need.difference, math.ceil(need.days / 2))[0] for _ in range(100)]
        assert half.count(outcome) / 100 < power


def test_the_numbers_are_those_of_the_formulas():
    policy = RolloutPolicy(steps=(0.5,), min_labels=1)
    need = plan_trial(policy, variance=VARIANCE, per_day=PER_DAY, power=0.9).promote
    alpha, z = policy.alpha * QUALITY, stats.norm.ppf(0.9)
    left = policy.margin - reach(need.information, VARIANCE, alpha)
    assert left == pytest.approx(z * math.sqrt(VARIANCE / need.information), rel=1e-6)
    assert need.rows == math.ceil(need.information / 0.25)
    assert need.days == pytest.approx(need.rows / PER_DAY, abs=0.01)
    assert need.canary_rows == pytest.approx(need.rows / 2, abs=1)
    # One look, two groups of n/2: the textbook's n = 4 v ((z_a + z_b) / margin)^2.
    assert need.single_look_rows == math.ceil(4 * VARIANCE * ((stats.norm.ppf(1 - alpha) + z) / policy.margin) ** 2)
    late = plan_trial(policy, variance=VARIANCE, per_day=PER_DAY, power=0.9, delay_days=2.0).promote
    assert late.days == pytest.approx(need.days + 2)


def test_more_traffic_and_a_wider_margin_need_less_time():
    def days(policy=POLICY, **more):
        return plan_trial(policy, **{"variance": VARIANCE, "per_day": PER_DAY} | more).promote.days

    assert days(per_day=9_000) < days() < days(per_day=300)
    assert days(variance=0.01) < days() < days(variance=0.1)
    assert days(power=0.95) > days() > days(difference=-0.01)
    assert days(RolloutPolicy(margin=0.04)) < days() < days(RolloutPolicy(steps=(0.1,)))
    assert not plan_trial(POLICY, variance=VARIANCE, per_day=50).in_time
    never = plan_trial(RolloutPolicy(steps=(1.0,)), variance=VARIANCE, per_day=PER_DAY).promote
    assert (never.days, never.rows) == (math.inf, -1)


def test_questions_without_an_answer_are_refused():
    good = {"variance": VARIANCE, "per_day": PER_DAY}
    for wrong in ({"variance": 0.0}, {"per_day": 0.0}, {"power": 0.4}, {"power": 1.0}, {"delay_days": -1.0}):
        with pytest.raises(InvalidPlanError, match="Cannot plan"):
            plan_trial(POLICY, **good | wrong)
    for wrong in ({"difference": 0.02}, {"harm": 0.02}):
        with pytest.raises(InvalidPlanError, match="told for certain"):
            plan_trial(POLICY, **good | wrong)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300])
def test_a_number_beyond_all_measure_is_refused_by_its_options_name(value):
    """All of these once ran for ever, or planned -1 rows."""
    good = {"variance": VARIANCE, "per_day": PER_DAY}
    paired = RolloutPolicy(shadow_rate=0.5)
    for plan, policy, options in (
        (plan_trial, POLICY, {"variance": "variance", "per_day": "per-day", "harm": "harm"}),
        (plan_pairs, paired, {"variance": "paired-variance", "per_day": "per-day", "harm": "harm"}),
        (plan_experiment, POLICY, {"variance": "variance", "per_day": "per-day"}),
    ):
        for name, option in options.items():
            with pytest.raises(InvalidPlanError, match="Cannot plan") as refused:
                plan(policy, **good | {name: value})
            assert refused.value.where == f"--{option}"


def test_what_no_number_of_rows_can_tell_is_said_and_not_looked_for_for_ever():
    """A margin that asks for more than a trillion units of information: 0.06 / (1e-8)² is 6e14."""
    tight = RolloutPolicy(margin=1e-8, shadow_rate=0.5)
    assert planned_information(VARIANCE, 0.04, 1e-8) == math.inf
    trial = plan_trial(tight, variance=VARIANCE, per_day=PER_DAY)
    assert (trial.promote.rows, trial.promote.days) == (-1, math.inf)
    assert plan_experiment(tight, variance=VARIANCE, per_day=PER_DAY).rows == -1
    pairs = plan_pairs(tight, variance=VARIANCE, per_day=PER_DAY)
    assert (pairs.promote_rows, pairs.promote_days) == (-1, math.inf)


def test_the_planned_pairs_decide_with_the_planned_power():
    """Normal differences with known truth, looked at every day; a plan is conservative, so at least the power."""
    rng, sd, per_day = np.random.default_rng(8), 0.03, 1_000
    policy = RolloutPolicy(margin=0.002, shadow_rate=0.5, steps=(0.1, 0.5))
    need = plan_pairs(policy, variance=sd**2, per_day=per_day, power=0.8, harm=0.004)
    assert need.promote_rows == pytest.approx(250 * need.promote_days, abs=1.0)  # half of the champion's half
    for truth, rows, decided in (
        (0.0, need.promote_rows, lambda low, up, mean: up < policy.margin),
        (0.004, need.roll_back_rows, lambda low, up, mean: low > 0 and mean > policy.margin),
    ):
        came = 0
        for _ in range(200):
            gap = truth + sd * rng.normal(size=rows)
            pairs = Pairs(rows, float(gap.sum()), float(gap @ gap), bound=sd)
            came += decided(*pairs.bounds(pairs_alpha(policy)), pairs.mean)
        assert came >= 0.7 * 200


def test_pairs_that_are_not_compared_or_make_no_sense_are_not_planned():
    with pytest.raises(InvalidPlanError, match="nothing on the same rows"):
        plan_pairs(RolloutPolicy(), variance=0.01, per_day=100)
    for given in ({"variance": 0.0}, {"per_day": 0.0}, {"power": 0.4}, {"harm": 0.001}):
        with pytest.raises(InvalidPlanError, match="Cannot plan pairs"):
            plan_pairs(RolloutPolicy(shadow_rate=0.5), **{"variance": 0.01, "per_day": 100.0, **given})


def test_an_experiment_of_the_planned_size_finds_the_planned_improvement():
    """200 experiments with an arm better by the margin: found by the planned day in the planned share, or earlier."""
    policy = RolloutPolicy(strategy="ab", steps=(0.5,), margin=0.02, max_days=60)
    need = plan_experiment(policy, variance=VARIANCE, per_day=PER_DAY)
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        stream = LossStream()
        for day in range(math.ceil(need.days)):
            arm = rng.uniform(size=PER_DAY) < 0.5
            loss = rng.beta(0.5625, 1.6875, size=PER_DAY) / math.sqrt(0.0576923 / VARIANCE) - 0.02 * arm
            stream = stream.update(arm, loss, 0.5)
            verdict = decide_ab(AbInputs((Arm("2", CanaryInputs(stream, (), 0.5, day + 1.0)),)), policy)
            if verdict.outcome != "HOLD":
                break
        found += verdict.outcome == "PROMOTE"
    assert found / 200 >= 0.8 - 3 * math.sqrt(0.16 / 200)
    assert need.rows == pytest.approx(need.days * PER_DAY, rel=1e-3)
    with pytest.raises(InvalidPlanError, match="left to the champion"):
        plan_experiment(RolloutPolicy(strategy="ab", steps=(1.0,)), variance=VARIANCE, per_day=PER_DAY)
