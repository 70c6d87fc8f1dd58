"""Guards of a rollout that splits by caller: what a caller's first failure, or first answer, does not tell."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from trellis.contract import RolloutPolicy
from trellis.decision import decision_of, dumps
from trellis.explain import replay, same
from trellis.rollout import CanaryInputs, Exposure, LossStream
from trellis.rollout.compare import AbInputs, Arm, decide_ab
from trellis.rollout.draws import unit_exposures
from trellis.rollout.latency import Latencies
from trellis.rollout.pairs import Pairs
from trellis.rollout.units import UnitCounts, count_units
from trellis.rollout.verdict import decide

RNG = np.random.default_rng
POLICY = RolloutPolicy()
CLEAR = Pairs(5_000, 0.0, 2.0)  # the same rows tell no difference: only a guard can keep it from being promoted


def log_of(rng, *, callers, rows, zipf=0.0, steps=((1.0, 0.5),)):
    """Return who asked, the canary's share and the variant drawn; ``steps`` are parts of the rows and their shares."""
    volume = 1 / np.arange(1, callers + 1) ** zipf
    who = rng.choice(callers, size=rows, p=volume / volume.sum())
    share = np.concatenate([np.full(round(part * rows), at) for part, at in steps])
    return who.astype(str), share, rng.uniform(size=callers)[who] < share


def evidence(who, share, arm, failed=None, slow=None, **more):
    failed = np.zeros(len(arm), dtype=bool) if failed is None else failed
    loss = RNG(7).beta(0.56, 1.69, size=len(arm))
    stream, exposures = LossStream().update(arm, loss, share, unit=who), unit_exposures(who, share, arm, failed, slow)
    units = count_units(who, share, arm, failed, slow)
    return CanaryInputs(stream, exposures, float(share[-1]), 10.0, pairs=CLEAR, units=units, **more)


def check(verdict, name):
    return next(c for c in verdict.checks if c.name == name)


def test_a_canary_that_fails_on_everything_is_found_after_a_blip_that_all_callers_shared():
    rng = RNG(0)
    who, share, arm = log_of(rng, callers=1_000, rows=60_000, steps=((2 / 3, 0.1), (1 / 3, 0.5)))
    failed = np.arange(60_000) < 8_000
    failed[40_000:] = arm[40_000:]
    found = decide(evidence(who, share, arm, failed), POLICY)
    assert found.outcome == "ROLL_BACK"
    assert "errors_by_request" in [c.name for c in found.checks if c.passed is False]
    # Callers alone say nothing: with as many first failures on either side as the split has callers.
    assert decide(replace(evidence(who, share, arm, failed), units=None), POLICY).outcome == "PROMOTE"


def test_failures_ten_times_as_frequent_are_never_promoted_and_mostly_rolled_back():
    """300 callers of Zipf volumes, all of whom have failed before long whichever version they are on."""
    ends = []
    for seed in range(20):
        rng = RNG(seed)
        who, share, arm = log_of(rng, callers=300, rows=60_000, zipf=0.5)
        failed = rng.uniform(size=60_000) < np.where(arm, 0.1, 0.01)
        ends.append(decide(evidence(who, share, arm, failed), POLICY).outcome)
    assert "PROMOTE" not in ends
    assert ends.count("ROLL_BACK") >= 18


@pytest.mark.parametrize("kind", ["failed", "slow"])
def test_equal_canaries_are_not_rolled_back_and_seldom_in_doubt(kind):
    """Each caller has a rate of its own, a few have a high one; one look in twenty may doubt, of 100 (3 errors)."""
    doubts = 0
    for seed in range(100):
        rng = RNG(seed)
        who, share, arm = log_of(rng, callers=300, rows=9_000, zipf=1.0, steps=((0.1, 0.1), (0.9, 0.5)))
        rate = rng.beta(0.1, 9.9, size=300) if kind == "failed" else rng.beta(1.0, 19.0, size=300)
        event = rng.uniform(size=9_000) < rate[who.astype(int)]
        name = {"failed": "errors", "slow": "slow"}[kind]
        told = check(decide(evidence(who, share, arm, **{kind: event}), POLICY), f"{name}_by_request")
        assert told.passed is not False
        doubts += told.passed is None
    assert doubts <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


def test_one_busy_caller_on_whom_the_canary_fails_is_doubt_enough():
    """It makes nine of ten requests, so nothing is certain; after a blip, its first failure was long ago."""
    who = np.where(np.arange(4_000) % 10 > 0, "busy", np.char.add("c", (np.arange(4_000) % 390).astype(str)))
    arm = (who == "busy") | (RNG(1).uniform(size=390)[np.arange(4_000) % 390] < 0.1)
    share, failed = np.full(4_000, 0.1), (np.arange(4_000) < 1_000) | arm
    told = check(decide(evidence(who, share, arm, failed), POLICY), "errors_by_request")
    assert told.passed is None
    assert "in doubt" in told.text


def test_a_canary_whose_every_answer_is_slow_is_found_with_fewer_callers_than_labels_are_asked_for():
    who, share, arm = log_of(RNG(0), callers=300, rows=10_000, steps=((0.2, 0.1), (0.8, 0.5)))
    found = decide(evidence(who, share, arm, slow=arm), POLICY)
    assert found.outcome == "ROLL_BACK"
    assert check(found, "slow").passed is None  # certain, but of fewer than 200 callers
    assert "canary callers' first answers were slow" in check(found, "slow").text
    assert check(found, "slow_by_request").passed is False
    fair = decide(evidence(who, share, arm, slow=RNG(1).uniform(size=10_000) < 0.03), POLICY)
    assert fair.outcome == "PROMOTE"


def test_a_few_slow_requests_are_no_proof_and_no_pass():
    who, share, arm = log_of(RNG(0), callers=300, rows=300)
    found = evidence(who, share, arm, slow=arm)
    assert min(found.stream.canary_rows, found.stream.champion_rows) < POLICY.min_labels
    for name in ("slow", "slow_by_request"):
        assert check(decide(found, POLICY), name).passed is None
    rows = CanaryInputs(LossStream(), (Exposure(0.1, 60, 540, canary_slow=60),), 0.1, 1.0)
    assert check(decide(rows, POLICY), "slow").passed is None


def test_what_is_told_counts_callers_once_and_calls_them_callers():
    """Caller a is the champion's, is drawn again as the share grows, and stays: two draws, one caller."""
    who, share = np.array(["a", "b", "a", "c"]), np.array([0.1, 0.1, 0.5, 0.5])
    arm, failed = np.array([False, True, False, True]), np.array([True, False, True, True])
    found = evidence(who, share, arm, failed, latencies=Latencies((0,), (2,), (2,)))
    assert (found.units.canary, found.units.champion) == (2, 1)
    verdict = decide(found, RolloutPolicy(max_slowdown=0.1))
    assert check(verdict, "errors").text.startswith(
        "1 of 2 canary callers failed (50.00%) and 1 of 1 of the champion's"
    )
    assert check(verdict, "errors_by_request").text.startswith(
        "By request, 1 of 2 of the canary failed and 2 of 2 of the champion"
    )
    assert "2 of 4 draws of callers went to the canary" in check(verdict, "sample_ratio").text
    latency = check(verdict, "latency")
    assert latency.passed is None
    assert "First answers to 2 callers of the canary" in latency.text
    assert "200 of each latencies are not compared, and nothing is promoted" in latency.text


def test_slow_answers_that_are_not_counted_are_said_not_to_be():
    who, share, arm = log_of(RNG(0), callers=300, rows=3_000)
    found = evidence(who, share, arm)
    assert found.units.slowness is None
    told = check(decide(found, POLICY), "slow")
    assert told.passed
    assert told.text == "Slow answers were not counted: some came from the cache, or without a latency."
    assert "slow_by_request" not in [c.name for c in decide(found, POLICY).checks]


def test_the_two_counts_share_the_part_of_alpha():
    """By callers alone the bar of the evidence is -log10(0.05 * 0.05); with both it is twice as high."""
    who, share, arm = log_of(RNG(0), callers=300, rows=3_000)
    found = evidence(who, share, arm, slow=np.zeros(3_000, dtype=bool))
    for name in ("errors", "slow"):
        alone = check(decide(replace(found, units=None), POLICY), name).bound
        assert check(decide(found, POLICY), name).bound == pytest.approx(alone + np.log10(2))


def test_an_experiments_arm_in_doubt_does_not_win():
    rng = RNG(3)
    who, share, arm = log_of(rng, callers=2_000, rows=40_000)
    better = LossStream().update(arm, 0.5 - 0.2 * arm + 0.1 * rng.uniform(size=40_000), share, unit=who)
    policy = RolloutPolicy(strategy="ab", steps=(0.5,))
    blip = np.arange(40_000) < 20_000
    outcomes = []
    for harm in (0.0, 0.3):
        found = evidence(who, share, arm, blip | (arm & (rng.uniform(size=40_000) < harm)))
        outcomes.append(decide_ab(AbInputs((Arm("2", replace(found, stream=better)),)), policy).outcome)
    assert outcomes[0] == "PROMOTE"
    assert outcomes[1] in ("HOLD", "ROLL_BACK")


def test_evidence_by_unit_replays_and_so_does_evidence_older_than_it():
    who, share, arm = log_of(RNG(0), callers=300, rows=3_000)
    found = evidence(who, share, arm, slow=arm)
    assert TypeAdapter(CanaryInputs).validate_json(dumps(found)) == found
    old = {name: value for name, value in vars(replace(found, units=None)).items() if name != "units"}
    for kept, inputs in ((found, found), (old, replace(found, units=None))):
        verdict = decide(inputs, POLICY)
        decision = decision_of("canary", model="m", subject="s", at="t", inputs=kept, policy=POLICY, verdict=verdict)
        assert same(replay(decision), verdict)


def test_clusters_are_sums_over_callers():
    """The naive sum: of every caller's ``(A - π)(failed - mean so far)``, squared."""
    who, share, arm = log_of(RNG(2), callers=20, rows=200)
    failed = RNG(3).uniform(size=200) < 0.3
    y, before = np.zeros(200), 0
    for i in range(200):
        y[i] = (arm[i] - share[i]) * (failed[i] - before / i) if i else 0.0
        before += failed[i]
    found = count_units(who, share, arm, failed, None)
    assert found.failures.square == pytest.approx(sum(y[who == u].sum() ** 2 for u in np.unique(who)))
    assert found.failures.score == pytest.approx(y.sum())
    assert (found.failures.canary_loss, found.failures.rows) == ((arm & failed).sum(), 200)
    assert isinstance(found, UnitCounts)
