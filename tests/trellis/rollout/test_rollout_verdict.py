"""The canary's verdict by simulation with known truth, its guards against closed forms, and replay."""

import itertools
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
from trellis.rollout import CanaryInputs, Exposure, LossStream, exposures_of, next_share, ready_to_step
from trellis.rollout.guards import CONCENTRATION, ODDS, log_evidence_split, log_evidence_worse
from trellis.rollout.verdict import decide

RNG = np.random.default_rng
POLICY = RolloutPolicy()
FAIR = (Exposure(0.1, 100, 900),)


def flights(rng, days, harm, per_day):
    """Brier losses, ``(2, days, flights)``: the champion's, and the canary's, worse by ``harm`` on average."""
    logit = -1.9 + 0.6 * rng.normal(size=(days, 1)) + 0.9 * rng.normal(size=(days, per_day))
    p = 1 / (1 + np.exp(-logit))
    loss = (p - (rng.uniform(size=p.shape) < p)) ** 2
    return loss, loss + 2 * harm * rng.uniform(size=p.shape)


def rollout(rng, harm, *, days=30, per_day=900, expected=None, policy=POLICY):
    """Look once a day until a verdict; the share grows as soon as it may."""
    champion, canary = flights(rng, days, harm, per_day)
    stream, exposures, share = LossStream(), (), policy.steps[0]
    for day in range(days):
        arm = rng.uniform(size=per_day) < share
        stream = stream.update(arm, np.where(arm, canary[day], champion[day]), share)
        exposures = (*exposures, *exposures_of(share, arm))
        inputs = CanaryInputs(stream, exposures, share, day + 1.0, expected)
        verdict = decide(inputs, policy)
        if verdict.outcome != "HOLD":
            return verdict, day + 1
        if ready_to_step(inputs, policy).passed:
            share = next_share(policy, share) or share
    return verdict, days


def test_an_equal_canary_is_promoted_within_three_weeks_and_seldom_rolled_back():
    rng = RNG(0)
    found = [rollout(rng, 0.0) for _ in range(300)]
    assert sum(v.outcome == "PROMOTE" for v, _ in found) > 285
    assert sum(v.outcome != "PROMOTE" for v, _ in found) <= 15
    assert np.quantile([day for _, day in found], 0.9) <= 21


def test_a_broken_canary_is_rolled_back_within_days():
    rng = RNG(1)
    for harm, days in ((0.03, 14), (0.08, 7)):
        found = [rollout(rng, harm) for _ in range(100)]
        assert all(v.outcome == "ROLL_BACK" for v, _ in found)
        assert np.quantile([day for _, day in found], 0.9) <= days


def test_a_canary_at_the_margin_is_seldom_promoted():
    """Worse by exactly the margin: a promotion is wrong; at most 5 % of 300 (Monte Carlo error 1.3 %)."""
    rng = RNG(2)
    found = [rollout(rng, POLICY.margin)[0].outcome for _ in range(300)]
    assert found.count("PROMOTE") <= 0.08 * 300


def test_a_leak_is_caught_that_only_the_gate_was_pleased_with():
    """Offline better by 0.06, live as good as the champion: promoted if the promise is not looked at."""
    rng = RNG(3)
    found = [rollout(rng, 0.0, expected=-0.06)[0] for _ in range(50)]
    assert sum(v.outcome == "ROLL_BACK" for v in found) >= 47
    assert not [v for v in found if v.outcome == "PROMOTE"]
    told = next(v for v in found if v.outcome == "ROLL_BACK")
    assert "Offline the difference was -0.0600" in told.reason
    kept = [rollout(rng, 0.0, expected=0.0)[0] for _ in range(50)]
    assert sum(v.outcome == "PROMOTE" for v in kept) > 45
    doubt = decide(
        inputs(stream(mean=-0.03, canary=10_000, champion=90_000, sd=0.5), expected_difference=-0.06), POLICY
    )
    assert doubt.outcome == "HOLD"
    assert "the promise is in doubt" in doubt.reason


def stream(canary=2_000, champion=18_000, mean=0.0, sd=0.2):
    """The state after so many rows at 10 %, as its expectation would have it."""
    rows, weight = canary + champion, 0.09
    information = rows * weight
    return LossStream(
        rows, canary, 0.15 * canary, 0.15 * champion, mean * information, sd * sd * information, information
    )


def inputs(state=None, exposures=FAIR, days=10.0, **more):
    return CanaryInputs(stream() if state is None else state, exposures, 0.1, days, **more)


@pytest.mark.parametrize(
    ("state", "days", "outcome"),
    [
        (stream(), 10.0, "PROMOTE"),
        (stream(mean=0.05), 10.0, "ROLL_BACK"),
        (stream(mean=0.018), 10.0, "HOLD"),
        (stream(mean=0.018), 30.0, "INCONCLUSIVE"),
        (stream(canary=199), 10.0, "HOLD"),
        (stream(canary=199, mean=0.9), 10.0, "HOLD"),
        (stream(canary=199), 30.0, "INCONCLUSIVE"),
        (LossStream(), 0.0, "HOLD"),
        (LossStream(), 30.0, "INCONCLUSIVE"),
    ],
)
def test_each_outcome_has_its_numbers(state, days, outcome):
    verdict = decide(inputs(state, days=days), POLICY)
    assert verdict.outcome == outcome
    assert any(character.isdigit() for character in verdict.reason)
    assert bool(verdict.needs) == (outcome == "HOLD")


def test_hold_names_the_labels_that_then_suffice():
    state = stream(canary=300, champion=2_700)
    needs = decide(inputs(state, days=3.0), POLICY).needs
    assert needs["days"] == pytest.approx(needs["labels"] / 100, abs=0.06)  # 1,000 labelled rows a day, a tenth of it
    later = stream(canary=300 + int(needs["labels"]) + 1, champion=9 * (300 + int(needs["labels"]) + 1))
    assert decide(inputs(later), POLICY).outcome == "PROMOTE"
    sooner = stream(canary=300 + int(0.95 * needs["labels"]), champion=9 * (300 + int(0.95 * needs["labels"])))
    assert decide(inputs(sooner), POLICY).outcome == "HOLD"


def test_failing_requests_roll_back_without_a_label():
    bad = (Exposure(0.1, 60, 540, canary_errors=8),)
    verdict = decide(inputs(LossStream(), bad, days=0.1), POLICY)
    assert verdict.outcome == "ROLL_BACK"
    assert "8 of 60 canary requests failed" in verdict.reason
    slow = (Exposure(0.1, 600, 5_400, canary_slow=60, champion_slow=30),)
    assert "were slow" in decide(inputs(LossStream(), slow, days=0.1), POLICY).reason
    cold = (Exposure(0.1, 60, 540, canary_slow=20),)
    assert decide(inputs(LossStream(), cold, days=0.1), POLICY).outcome == "HOLD"
    both = (Exposure(0.1, 600, 5_400, canary_errors=3, champion_errors=27),)
    assert decide(inputs(exposures=both), POLICY).outcome == "PROMOTE"
    doubt = decide(inputs(exposures=(Exposure(0.1, 600, 5_400, canary_errors=8, champion_errors=27),)), POLICY)
    assert doubt.outcome == "HOLD"  # as good as it may be, but failing more often, if not beyond doubt
    assert "in doubt" in doubt.reason
    trifle = (Exposure(0.5, 1_000_000, 1_000_000, canary_errors=400, champion_errors=100),)
    assert "yet a trifle" in " ".join(c.text for c in decide(inputs(exposures=trifle), POLICY).checks)


def test_labels_that_go_missing_by_variant_void_the_comparison():
    """A third of the canary's labels is lost, the worst ones: it looks better than it is."""
    rng = RNG(9)
    arm, loss = rng.uniform(size=20_000) < 0.1, rng.uniform(size=20_000)
    kept = ~arm | (loss < 2 / 3)
    state = LossStream().update(arm[kept], loss[kept], 0.1)
    verdict = decide(inputs(state), POLICY)
    assert verdict.outcome == "INCONCLUSIVE"
    assert "labels go missing by variant" in verdict.reason
    whole = decide(inputs(LossStream().update(arm, loss, 0.1)), POLICY)
    assert next(c for c in whole.checks if c.name == "label_split").passed


def test_a_wrong_split_voids_the_comparison():
    verdict = decide(inputs(stream(mean=0.05), (Exposure(0.1, 1_500, 8_500),)), POLICY)
    assert verdict.outcome == "INCONCLUSIVE"
    assert "1500 of 10000 requests went to the canary, 1000 were planned" in verdict.reason


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_e_values_are_martingales(share):
    """Their expectation under the null is exactly 1: sum over every outcome of 30 trials."""
    for evidence in (log_evidence_worse, log_evidence_split):
        mean = sum(stats.binom.pmf(c, 30, share) * math.exp(evidence([(share, c, 30 - c)])) for c in range(31))
        assert mean == pytest.approx(1, rel=1e-9)


def test_the_e_values_agree_with_scipy():
    worse = np.mean(
        [np.exp(stats.binom.logpmf(7, 20, o * 0.1 / (0.9 + o * 0.1)) - stats.binom.logpmf(7, 20, 0.1)) for o in ODDS]
    )
    assert log_evidence_worse([(0.1, 7, 13)]) == pytest.approx(math.log(worse))
    split = stats.betabinom.logpmf(70, 500, CONCENTRATION * 0.1, CONCENTRATION * 0.9) - stats.binom.logpmf(70, 500, 0.1)
    assert log_evidence_split([(0.1, 70, 430)]) == pytest.approx(split)


def test_the_guards_hold_their_level_at_every_look():
    """400 sound rollouts of 5,000 requests and 100 errors, looked at all along: Ville's bound for alpha 10 %."""
    rng, wrong = RNG(4), {"split": 0, "worse": 0}
    for _ in range(400):
        arm = np.cumsum(rng.uniform(size=5_000) < 0.1)
        split = max(log_evidence_split([(0.1, int(arm[t]), t + 1 - int(arm[t]))]) for t in range(9, 5_000, 50))
        errors = np.cumsum(rng.uniform(size=100) < 0.1)
        worse = max(log_evidence_worse([(0.1, int(errors[t]), t + 1 - int(errors[t]))]) for t in range(100))
        wrong["split"] += split >= math.log(10)
        wrong["worse"] += worse >= math.log(10)
    assert all(count / 400 <= 0.1 + 3 * math.sqrt(0.09 / 400) for count in wrong.values())


@given(
    st.floats(-0.4, 0.4), st.floats(0.01, 0.5), st.integers(1, 5_000), st.integers(1, 50_000), st.floats(0, 40),
    st.none() | st.floats(-0.5, 0.5), st.integers(0, 20),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_evidence_of_any_kind_replays_bit_for_bit_and_order_holds(mean, sd, canary, champion, days, expected, errors):
    given_ = inputs(
        stream(canary, champion, mean, sd), (Exposure(0.1, 100, 900, errors),), days, expected_difference=expected
    )
    text = dumps(given_)
    again = TypeAdapter(CanaryInputs).validate_json(text)
    assert again == given_
    assert len(text) < 1_000
    verdict = decide(given_, POLICY)
    assert dumps(decide(again, POLICY)) == dumps(verdict)
    # A better canary, all else equal, never fares worse.
    rank = {"ROLL_BACK": 0, "INCONCLUSIVE": 1, "HOLD": 1, "PROMOTE": 2}
    better = decide(
        inputs(stream(canary, champion, mean - 0.1, sd), given_.exposures, days, expected_difference=expected), POLICY
    )
    assert rank[better.outcome] >= rank[verdict.outcome]


def test_shares_rise_by_the_steps():
    policy = RolloutPolicy(steps=(0.05, 0.25, 0.5))
    assert [next_share(policy, share) for share in (0.0, 0.05, 0.1, 0.25, 0.5)] == [0.05, 0.25, 0.25, 0.5, None]
    assert ready_to_step(inputs(), POLICY).passed
    assert ready_to_step(inputs(stream(canary=100)), POLICY).passed is False
    assert ready_to_step(inputs(stream(mean=0.021)), POLICY).passed is False
    assert ready_to_step(inputs(stream(mean=0.9)), POLICY).passed is False


def test_exposures_are_counted_by_share():
    share = np.array([0.1, 0.1, 0.5, 0.5, 0.5, 1.0])
    arm = np.array([True, False, True, True, False, True])
    failed = np.array([True, False, False, True, False, True])
    found = exposures_of(share, arm, failed, failed & arm)
    assert found == (Exposure(0.1, 1, 1, 1, 0, 1, 0), Exposure(0.5, 2, 1, 1, 0, 1, 0))
    assert {e.canary_slow for e in exposures_of(share, arm, failed)} == {None}  # not counted is not zero
    merged = list(itertools.chain(*(exposures_of(0.1, arm[[i]]) for i in range(6))))
    assert sum(e.canary for e in merged) == 4
    assert exposures_of(0.1, np.array([], dtype=bool)) == ()
    with pytest.raises(DataError, match="differ in number"):
        exposures_of(0.1, arm, failed[:2])
