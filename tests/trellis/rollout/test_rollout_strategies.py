"""A/B verdicts, the bandit, latency quantiles and CUPED by simulation with known truth, and against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from trellis.contract import RolloutPolicy
from trellis.decision import dumps
from trellis.errors import DataError
from trellis.rollout import CanaryInputs, Exposure, LossStream, exposures_of
from trellis.rollout.bandit import BanditInputs, RewardBatch, decide_bandit, posterior, weights_of
from trellis.rollout.compare import AbInputs, Arm, decide_ab
from trellis.rollout.latency import (
    BINS_PER_OCTAVE,
    CONCENTRATION,
    Latencies,
    _log_evidence,
    latencies_of,
    lower_bound,
    quantile,
    upper_bound,
)
from trellis.rollout.shadowing import ShadowInputs, decide_shadow
from trellis.rollout.verdict import decide

RNG = np.random.default_rng
AB = RolloutPolicy(strategy="ab", steps=(0.5,), max_days=30)
BANDIT = RolloutPolicy(strategy="bandit", floor=0.1, min_labels=100)


# --- A/B


def experiment(rng, harms, days=30, per_day=900, policy=AB):
    """Look once a day at arms whose loss is higher than the champion's by ``harms``."""
    arms = len(harms)
    weight = policy.steps[-1] / arms
    pair = weight / (weight + 1 - policy.steps[-1])
    streams, exposures = [LossStream()] * arms, [()] * arms
    for day in range(days):
        who = rng.choice(arms + 1, size=per_day, p=[1 - policy.steps[-1], *[weight] * arms])
        loss = rng.beta(0.6, 3, size=per_day) + np.array([0, *harms])[who]
        for i in range(arms):
            rows = (who == 0) | (who == i + 1)
            arm = who[rows] == i + 1
            streams[i] = streams[i].update(arm, loss[rows], pair)
            exposures[i] = (*exposures[i], *exposures_of(pair, arm))
        inputs = AbInputs(
            tuple(Arm(str(i + 2), CanaryInputs(streams[i], exposures[i], pair, day + 1.0)) for i in range(arms))
        )
        verdict = decide_ab(inputs, policy)
        if verdict.outcome != "HOLD":
            break
    return verdict, inputs, day + 1


def test_an_experiment_finds_the_better_arm_and_seldom_one_that_is_not():
    rng = RNG(0)
    same = [experiment(rng, (0.0, 0.0))[0].outcome for _ in range(200)]
    assert same.count("PROMOTE") + same.count("ROLL_BACK") <= 0.05 * 200 + 3 * math.sqrt(0.05 * 0.95 * 200)
    assert same.count("INCONCLUSIVE") > 150  # the planned size is reached, and it says so
    better = [experiment(rng, (0.0, -0.03)) for _ in range(50)]
    won = [v for v, _, _ in better if v.outcome == "PROMOTE"]
    assert len(won) >= 45
    assert all([c.name for c in v.checks if c.name.startswith("winner/") and c.passed] == ["winner/3"] for v in won)
    worse = [experiment(rng, (0.0, 0.05))[0] for _ in range(30)]
    assert sum(v.outcome == "ROLL_BACK" for v in worse) >= 28


def test_an_experiments_planned_size_has_the_planned_power():
    """A true improvement by the margin is found in 80 % at least, less three Monte Carlo errors."""
    rng = RNG(1)
    found = [experiment(rng, (-AB.margin,))[0].outcome for _ in range(200)]
    assert found.count("PROMOTE") / 200 >= 0.8 - 3 * math.sqrt(0.16 / 200)


def test_a_wrong_split_voids_an_experiment_and_time_ends_it():
    verdict, inputs, _ = experiment(RNG(2), (0.0,), days=2)
    assert verdict.outcome == "HOLD"
    assert verdict.needs["labels"] > 0
    assert TypeAdapter(AbInputs).validate_json(dumps(inputs)) == inputs
    arm = inputs.arms[0].inputs
    crooked = CanaryInputs(arm.stream, (Exposure(0.5, 1_500, 500),), 0.5, 2.0)
    assert decide_ab(AbInputs((Arm("2", crooked),)), AB).outcome == "INCONCLUSIVE"
    late = decide_ab(AbInputs((Arm("2", CanaryInputs(LossStream(), (), 0.5, 30.0)),)), AB)
    assert (late.outcome, late.checks[0].name) == ("INCONCLUSIVE", "time")
    assert decide_ab(AbInputs((Arm("2", CanaryInputs(LossStream(), (), 0.5, 1.0)),)), AB).outcome == "HOLD"
    alike = LossStream().update(np.arange(1_000) % 2 == 0, np.full(1_000, 0.25), 0.5)  # a variance of zero
    held = decide_ab(AbInputs((Arm("2", CanaryInputs(alike, (), 0.5, 1.0)),)), AB)
    assert held.outcome == "HOLD"
    assert dumps(held)  # JSON has no infinite size


# --- bandit


def batches(rng, means, weights, rows, season=0.0):
    who = rng.choice(len(means), size=rows, p=weights)
    hit = rng.uniform(size=rows) < np.asarray(means)[who] + season
    return RewardBatch(
        tuple(int((who == i).sum()) for i in range(len(means))),
        tuple(float(hit[who == i].sum()) for i in range(len(means))),
    )


def run_bandit(rng, means, looks=30, rows=600, seasons=None, policy=BANDIT):
    weights, kept = tuple([1 / len(means)] * len(means)), []
    for look in range(looks):
        season = 0.0 if seasons is None else seasons[look]
        kept.append(batches(rng, means, weights, rows, season))
        inputs = BanditInputs(tuple(map(str, range(1, len(means) + 1))), tuple(kept), float(look), look)
        verdict = decide_bandit(inputs, policy)
        if verdict.outcome != "HOLD":
            break
        weights = tuple(c.value for c in sorted(verdict.checks, key=lambda c: c.name) if c.name.startswith("weight/"))
    return verdict, inputs, kept


def test_a_bandit_finds_the_best_arm_and_loses_less_than_an_even_split():
    rng = RNG(3)
    means, regret, even, right = (0.80, 0.84, 0.76), 0.0, 0.0, 0
    for _ in range(40):
        verdict, _, kept = run_bandit(rng, means)
        right += verdict.outcome == "PROMOTE" and any(c.name == "winner/2" and c.passed for c in verdict.checks)
        for batch in kept:
            regret += sum(n * (max(means) - m) for n, m in zip(batch.rows, means, strict=True))
            even += sum(batch.rows) * (max(means) - np.mean(means))
    assert right >= 36
    assert regret < 0.75 * even


def test_a_bandit_goes_back_to_a_better_champion_and_replays_bit_for_bit():
    verdict, inputs, _ = run_bandit(RNG(4), (0.85, 0.78))
    assert verdict.outcome == "ROLL_BACK"
    again = TypeAdapter(BanditInputs).validate_json(dumps(inputs))
    assert again == inputs
    assert dumps(decide_bandit(again, BANDIT)) == dumps(verdict)
    held = BanditInputs(("1", "2"), (RewardBatch((50, 50), (40.0, 40.0)),), 1.0, 7)
    early = decide_bandit(held, BANDIT)
    assert "Equal weights until" in early.reason
    assert [c.value for c in early.checks if c.name.startswith("weight/")] == [0.5, 0.5]
    late = decide_bandit(BanditInputs(("1", "2"), held.batches, 30.0, 7), BANDIT)
    assert (late.outcome, late.checks[0].name) == ("INCONCLUSIVE", "time")
    assert decide_bandit(BanditInputs(("1", "2"), (), 0.0, 1), BANDIT).outcome == "HOLD"


def test_a_season_does_not_mislead_the_bandit():
    """Good days while arm 2 had little traffic, bad ones while it had much: pooled, the better arm looks worse."""
    rng = RNG(5)
    kept = (batches(rng, (0.60, 0.63), (0.9, 0.1), 40_000, 0.3), batches(rng, (0.60, 0.63), (0.1, 0.9), 40_000, -0.3))
    pooled = [sum(b.rewards[i] for b in kept) / sum(b.rows[i] for b in kept) for i in (0, 1)]
    assert pooled[0] > pooled[1] + 0.3
    a, b = posterior(BanditInputs(("1", "2"), kept, 2.0, 1))
    assert (a / (a + b))[1] - (a / (a + b))[0] == pytest.approx(0.03, abs=0.02)


def test_the_posterior_of_one_batch_is_the_textbooks():
    a, b = posterior(BanditInputs(("1", "2"), (RewardBatch((10, 20), (7.0, 5.0)),), 1.0, 1))
    assert a == pytest.approx([8, 6])
    assert b == pytest.approx([4, 16])
    merged = posterior(
        BanditInputs(("1", "2"), (RewardBatch((10, 0), (7.0, 0.0)), RewardBatch((0, 20), (0.0, 5.0))), 1.0, 1)
    )
    assert merged[0] == pytest.approx([8, 6])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0.001, 0.16))
@settings(max_examples=80, deadline=None)
def test_weights_keep_the_floor_and_sum_to_one(raw, floor):
    best = np.array(raw) + 1e-9
    weights = weights_of(best / best.sum(), floor)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) >= floor - 1e-9


# --- latency


def test_quantile_bounds_cover_at_every_look():
    """300 services looked at all along: either bound is wrong in at most 10 % (Monte Carlo error 1.7 %)."""
    rng, truth, wrong = RNG(6), float(np.exp(1.6448536 * 0.5)), {"low": 0, "high": 0}
    for _ in range(300):
        values = np.exp(0.5 * rng.normal(size=4_000))
        arm, bad = np.ones(4_000, bool), {"low": False, "high": False}
        for n in range(100, 4_001, 130):
            found = latencies_of(values[:n], arm[:n])
            bad["low"] |= lower_bound(found.bins, found.canary, 0.1) > truth
            bad["high"] |= upper_bound(found.bins, found.canary, 0.1) < truth
        for name, value in bad.items():
            wrong[name] += value
    assert all(count / 300 <= 0.1 + 3 * math.sqrt(0.09 / 300) for count in wrong.values())


def test_bounds_close_in_and_agree_with_the_sample_quantile():
    values = np.exp(0.5 * RNG(7).normal(size=50_000))
    found = latencies_of(values, np.ones(50_000, bool))
    exact = float(np.quantile(values, 0.95))
    assert quantile(found.bins, found.canary) == pytest.approx(exact, rel=2 ** (1 / BINS_PER_OCTAVE) - 1)
    low, high = (f(found.bins, found.canary, 0.01) for f in (lower_bound, upper_bound))
    assert 0.9 * exact < low <= exact <= high < 1.1 * exact
    assert (lower_bound((), (), 0.1), upper_bound((), (), 0.1)) == (0.0, math.inf)
    assert math.isnan(quantile((), ()))
    a, b = CONCENTRATION * 0.95, CONCENTRATION * 0.05
    ratio = stats.betabinom.logpmf(440, 500, a, b) - stats.binom.logpmf(440, 500, 0.95)
    assert _log_evidence(440, 500, 0.95) == pytest.approx(ratio)


def canary_with(latencies, slow=0):
    exposures = (Exposure(0.5, sum(latencies.canary), sum(latencies.champion), canary_slow=slow),)
    return CanaryInputs(LossStream(), exposures, 0.5, 1.0, latencies=latencies)


def test_a_slower_canary_is_rolled_back_only_if_the_policy_asks():
    rng = RNG(8)
    arm = rng.uniform(size=20_000) < 0.5
    slower = latencies_of(np.exp(0.5 * rng.normal(size=20_000)) * np.where(arm, 1.2, 1.0), arm)
    same = latencies_of(np.exp(0.5 * rng.normal(size=20_000)), arm)
    policy = RolloutPolicy(max_slowdown=0.1)
    verdict = decide(canary_with(slower), policy)
    assert verdict.outcome == "ROLL_BACK"
    assert "95th percentile of latency" in verdict.reason
    assert decide(canary_with(same), policy).outcome == "HOLD"
    assert decide(canary_with(slower), RolloutPolicy()).outcome == "HOLD"
    assert decide(canary_with(slower), RolloutPolicy(max_slowdown=0.3)).outcome == "HOLD"  # slower, but not by so much
    few = Latencies((0, 40), (50, 50), (100, 0))
    assert decide(canary_with(few), policy).outcome == "HOLD"
    assert TypeAdapter(CanaryInputs).validate_json(dumps(canary_with(slower))) == canary_with(slower)
    for bad in (np.array([0.0]), np.array([np.nan]), np.array([1.0, 2.0])):
        with pytest.raises(DataError):
            latencies_of(bad, np.array([True]))


# --- CUPED


def test_a_covariate_narrows_the_bounds_by_what_it_explains_and_biases_nothing():
    rng, plain, cuped, reach = RNG(9), [], [], []
    for _ in range(150):
        x = rng.normal(size=6_000)
        loss = 0.5 + 0.3 * x + 0.2 * rng.normal(size=6_000)  # x explains 9 of 13 parts of the variance
        arm = rng.uniform(size=6_000) < 0.5
        loss = loss + 0.05 * arm
        one, two = LossStream().update(arm, loss, 0.5), LossStream().update(arm, loss, 0.5, x)
        plain.append(one.difference)
        cuped.append(two.difference)
        reach.append(two.reach(0.05) / one.reach(0.05))
    assert np.mean(cuped) == pytest.approx(0.05, abs=4 * np.std(cuped) / math.sqrt(150))
    assert np.std(cuped) / np.std(plain) == pytest.approx(math.sqrt(4 / 13), rel=0.2)
    assert np.mean(reach) == pytest.approx(math.sqrt(4 / 13), rel=0.1)


def test_a_covariate_keeps_the_error_over_all_looks():
    rng, wrong = RNG(10), 0
    for _ in range(400):
        x = rng.normal(size=4_000)
        loss = 0.5 + 0.3 * x * np.linspace(1, -1, 4_000) + 0.2 * rng.normal(size=4_000)  # its meaning drifts
        arm = rng.uniform(size=4_000) < 0.3
        state, hit = LossStream(), False
        for cut in np.split(np.arange(4_000), 40):
            state = state.update(arm[cut], loss[cut], 0.3, x[cut])
            hit |= state.canary_rows >= 100 and state.bounds(0.05)[0] > 0
        wrong += hit
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_covariates_by_batch_constant_ones_and_bad_ones():
    rng = RNG(11)
    arm, loss, x = rng.uniform(size=600) < 0.5, rng.uniform(size=600), rng.normal(size=600)
    whole = LossStream().update(arm, loss, 0.5, x)
    parts = LossStream()
    for cut in np.split(np.arange(600), [7, 90, 91, 400]):
        parts = parts.update(arm[cut], loss[cut], 0.5, x[cut])
    assert parts.score == pytest.approx(whole.score)
    assert parts.square == pytest.approx(whole.square)
    flat = LossStream().update(arm, loss, 0.5, np.full(600, 3.1))
    assert flat.score == pytest.approx(LossStream().update(arm, loss, 0.5).score)
    for bad in (x[:5], np.full(600, np.nan)):
        with pytest.raises(DataError, match="covariate"):
            LossStream().update(arm, loss, 0.5, bad)


# --- shadow


def shadow_after(rng, harm, rows, failed=0):
    gap = harm + 0.1 * rng.normal(size=rows)
    return ShadowInputs(rows + failed, failed, rows, float(gap.sum()), float((gap * gap).sum()), 1.0)


def test_a_shadow_goes_on_unless_it_does_harm_or_fails():
    rng, policy = RNG(12), RolloutPolicy(shadow_rate=0.5)
    good = [decide_shadow(shadow_after(rng, 0.0, 2_000), policy).outcome for _ in range(200)]
    assert good.count("PROMOTE") == 200
    assert all(decide_shadow(shadow_after(rng, 0.04, 2_000), policy).outcome == "ROLL_BACK" for _ in range(50))
    assert decide_shadow(shadow_after(rng, 0.0, 100), policy).needs == {"labels": 100}
    assert "could not score 150 of 2150" in decide_shadow(shadow_after(rng, 0.0, 2_000, 150), policy).reason
    assert decide_shadow(shadow_after(rng, 0.0, 2_000, 3), policy).outcome == "PROMOTE"
    assert decide_shadow(ShadowInputs(0, 0, 0, 0.0, 0.0, 0.0), policy).outcome == "HOLD"
    assert decide_shadow(ShadowInputs(300, 0, 300, 0.0, 0.0, 1.0), policy).outcome == "PROMOTE"  # the same answers
    found = shadow_after(rng, 0.01, 500)
    assert TypeAdapter(ShadowInputs).validate_json(dumps(found)) == found


def test_a_bandit_of_a_regression_is_refused():
    from trellis.contract import Field, Metric, ModelSpec, Target
    from trellis.errors import ContractError

    given = {
        "name": "m", "version": "1", "owner": "o", "description": "d", "request": (Field("x", "float"),),
        "inputs": ("x",), "outputs": (Field("value", "float"),), "target": Target("y", "t"),
        "metric": Metric("mae", floor=1.0), "task": "regression",
    }  # fmt: skip
    ModelSpec(**given)
    with pytest.raises(ContractError, match="bandit"):
        ModelSpec(**given, rollout=BANDIT)


def test_a_bandit_whose_requests_are_split_otherwise_is_void():
    """Fair draws under weights that move: void in fewer than the alpha of 300 runs; off by a tenth: void soon."""
    rng, shares = RNG(4), ((0.4, 0.3, 0.3), (0.6, 0.3, 0.1), (0.2, 0.7, 0.1))

    def batches(off):
        drawn = [rng.multinomial(3_000, np.array(w) * [1, 1 - off, 1] + [off * w[1], 0, 0]) for w in shares]
        return tuple(
            RewardBatch((0, 0, 0), (0.0, 0.0, 0.0), w, tuple(map(int, d))) for w, d in zip(shares, drawn, strict=True)
        )

    def void(off):
        return decide_bandit(BanditInputs(("1", "2", "3"), batches(off), 1.0, 1), BANDIT).outcome == "INCONCLUSIVE"

    assert sum(void(0.0) for _ in range(100)) <= 2
    assert sum(void(0.25) for _ in range(50)) >= 48


def test_an_experiment_waits_for_a_guard_in_doubt_and_says_how_long():
    """Twice the failures of the champion, not yet beyond doubt: a better arm is not promoted, as a canary is not."""
    rng = RNG(2)
    arm = rng.uniform(size=4_000) < 0.5
    stream = LossStream().update(arm, rng.uniform(size=4_000) * 0.4 + 0.3 - 0.1 * arm, 0.5)
    fine, doubt = (Exposure(0.5, 2_000, 2_000, bad, 12) for bad in (12, 30))
    verdicts = [decide_ab(AbInputs((Arm("2", CanaryInputs(stream, (e,), 0.5, 4.0)),)), AB) for e in (fine, doubt)]
    assert [v.outcome for v in verdicts] == ["PROMOTE", "HOLD"]
    assert "in doubt" in verdicts[1].reason
    early = LossStream().update(arm[:600], rng.uniform(size=600), 0.5)
    held = decide_ab(AbInputs((Arm("2", CanaryInputs(early, (), 0.5, 2.0)),)), AB)
    assert held.outcome == "HOLD"
    assert held.needs["days"] == pytest.approx(held.needs["labels"] / 300, abs=0.1)
