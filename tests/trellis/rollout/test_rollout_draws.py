"""What counts as one draw of the split: a request however many rows it has, a unit however many requests it makes."""

import numpy as np
import pytest

from trellis.contract import RolloutPolicy
from trellis.errors import ContractError, DataError
from trellis.rollout import CanaryInputs, Exposure, LossStream, exposures_of, next_share, ready_to_step
from trellis.rollout.draws import new_draws, one_per_request, unit_exposures
from trellis.rollout.guards import log_evidence_split, log_evidence_worse
from trellis.rollout.verdict import decide

RNG = np.random.default_rng
POLICY = RolloutPolicy()


def callers(rng, *, units=300, zipf=1.0, harm=0.0, by_unit=True, per_day=900, every=3):
    """Look every third day at a rollout by caller; busy ones make most rows, and each has its own losses."""
    volume = 1 / np.arange(1, units + 1) ** zipf
    position, effect = rng.uniform(size=units), 0.1 * rng.normal(size=units)
    share, log = POLICY.steps[0], []
    for day in range(every, 31, every):
        who = rng.choice(units, size=per_day * every, p=volume / volume.sum())
        arm = position[who] < share
        p = 1 / (1 + np.exp(-(-1.9 + 0.9 * rng.normal(size=len(who)) + 3 * effect[who])))
        loss = np.clip((p - (rng.uniform(size=len(who)) < p)) ** 2 + effect[who], 0, 1)
        log.append((who.astype(str), arm, loss + 2 * harm * rng.uniform(size=len(who)) * arm, np.full(len(who), share)))
        unit, arms, losses, shares = (np.concatenate(part) for part in zip(*log, strict=True))
        if by_unit:
            stream = LossStream().update(arms, losses, shares, unit=unit)
            exposures = unit_exposures(unit, shares, arms, np.zeros(len(arms), bool), None)
        else:
            stream, exposures = LossStream().update(arms, losses, shares), exposures_of(shares, arms)
        inputs = CanaryInputs(stream, exposures, share, float(day))
        verdict = decide(inputs, POLICY)
        if verdict.outcome != "HOLD":
            return verdict
        if ready_to_step(inputs, POLICY).passed:
            share = next_share(POLICY, share) or share
    return verdict


def wrong(verdict):
    return verdict.outcome == "ROLL_BACK" or verdict.checks[0].name in ("sample_ratio", "label_split")


def test_callers_counted_as_rows_void_an_equal_canary_and_counted_as_callers_do_not():
    """Alpha is 5 %; six of 60 would come by chance once in a hundred times (binomial)."""
    rows = [callers(RNG(i), by_unit=False) for i in range(20)]
    assert sum(wrong(v) for v in rows) >= 12
    assert sum(wrong(callers(RNG(i))) for i in range(60)) <= 6


def test_with_many_callers_there_still_is_a_verdict():
    good = [callers(RNG(i), units=5_000, zipf=0.5) for i in range(20)]
    bad = [callers(RNG(i), units=5_000, zipf=0.5, harm=0.05) for i in range(20)]
    assert sum(v.outcome == "PROMOTE" for v in good) >= 16
    assert sum(v.outcome == "ROLL_BACK" for v in bad) >= 18


def test_a_stream_by_unit_is_the_sum_over_units_and_by_row_where_each_has_its_own():
    rng = RNG(3)
    unit, share = rng.integers(40, size=500).astype(str), 0.3
    arm, loss = rng.uniform(size=500) < share, rng.uniform(size=500)
    found, plain = LossStream().update(arm, loss, share, unit=unit), LossStream().update(arm, loss, share)
    y, before = np.zeros(500), 0.0
    for i in range(500):
        y[i] = (arm[i] - share) * (loss[i] - before / i) if i else 0.0
        before += loss[i]
    assert found.square == pytest.approx(sum(y[unit == u].sum() ** 2 for u in np.unique(unit)))
    assert found.score == pytest.approx(plain.score)
    chance = np.full(500, share * (1 - share)) * (np.arange(500) > 0)
    each = [np.sqrt(chance[unit == u]).sum() ** 2 for u in np.unique(unit)]
    assert found.surplus_variance == pytest.approx(sum(each))
    assert LossStream().update(arm, loss, share, unit=np.arange(500).astype(str)).square == pytest.approx(plain.square)
    assert plain.surplus_variance == pytest.approx(plain.information)


def test_units_come_in_one_go_and_one_per_row():
    arm, loss = np.array([True, False]), np.array([0.1, 0.2])
    with pytest.raises(DataError, match="do not line up"):
        LossStream().update(arm, loss, 0.5, unit=np.array(["a"]))
    with pytest.raises(DataError, match="in one go"):
        LossStream().update(arm, loss, 0.5).update(arm, loss, 0.5, unit=np.array(["a", "b"]))


def test_a_champions_unit_is_drawn_again_when_the_share_grows_and_a_canarys_stays():
    unit = ["a", "b", "a", "a", "b", "c", "b"]
    share = np.array([0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5])
    canary = np.array([False, True, False, True, True, False, True])
    rows, chance = new_draws(unit, share, canary)
    assert rows.tolist() == [0, 1, 3, 5]  # b stays what it was
    assert chance.tolist() == pytest.approx([0.1, 0.1, 0.4 / 0.9, 0.5])


def test_draws_of_a_growing_share_have_the_shares_they_are_said_to_have():
    """The split's evidence over nested draws is a test martingale: its mean stays 1 (Ville's bound on its maximum)."""
    hits = 0
    for seed in range(300):
        rng = RNG(seed)
        position = rng.uniform(size=400)
        who = rng.integers(400, size=3_000)
        share = np.repeat([0.1, 0.3, 0.5], 1_000)
        found = unit_exposures(who.astype(str), share, position[who] < share, np.zeros(3_000, bool), None)
        hits += log_evidence_split([(e.share, e.canary, e.champion) for e in found]) > -np.log(0.05)
    assert hits <= 0.05 * 300


def test_a_unit_fails_once_however_often_it_fails():
    unit = np.array(["a", "a", "a", "b", "c"])
    share = np.array([0.1, 0.1, 0.5, 0.5, 0.5])
    arm, failed = np.array([False, False, True, True, False]), np.array([False, True, True, True, False])
    found = unit_exposures(unit, share, arm, failed, np.array([True, False, True, False, False]))
    assert sum(e.canary_errors for e in found) == 1  # b; a's first was the champion's
    assert sum(e.champion_errors for e in found) == 1
    assert (sum(e.canary_slow for e in found), sum(e.champion_slow for e in found)) == (1, 1)  # a at both its draws
    assert sum(e.canary + e.champion for e in found) == 4  # a twice


def test_one_row_stands_for_a_request():
    request = ["r1", "r1", "r1", "r2", "r3", "r3"]
    failed = np.array([False, False, True, False, True, True])
    assert one_per_request(request, failed, np.ones(6, bool)).tolist() == [2, 3, 4]
    assert one_per_request(request, failed, np.zeros(6, bool)).tolist() == [0, 3, 4]


@pytest.mark.parametrize("answered", [True, False])
def test_odd_requests_that_both_versions_fail_on_say_nothing_about_the_canary(answered):
    """Large requests with one bad row each, versions alike: of 300 rollouts the guard speaks in hardly any.

    Answered: a version before stood in, and each of both failed on its rows with a bad one. Not answered: the version
    that was asked first and had a bad row broke, and all others are lost.
    """
    by_row = by_request = 0
    for seed in range(300):
        rng = RNG(seed)
        arm = rng.uniform(size=(10, 200)) < 0.1
        bad = rng.integers(200, size=(10, 1 if answered else 2))
        failed = np.zeros_like(arm)
        for i in range(10):
            broken = set(arm[i, bad[i]].tolist())
            if not answered and len(broken) == 2:
                broken = {bool(arm[i, 0])}
            failed[i] = np.isin(arm[i], list(broken))
        request = np.repeat(np.arange(10), 200).astype(str)
        flat, fell = arm.ravel(), failed.ravel()
        kept = one_per_request(request, fell, np.full(2_000, answered))

        def spoke(rows, fell, flat=flat):
            counts = [exposures_of(0.1, flat[r], failed=fell[r]) for r in (rows[rows < 200 * n] for n in range(1, 11))]
            logs = [log_evidence_worse([(0.1, e.canary_errors, e.champion_errors)]) for (e,) in counts]
            return max(logs) > -np.log(0.01)

        by_row += spoke(np.arange(2_000), fell)
        by_request += spoke(kept, fell if answered else np.ones_like(fell))
    assert by_request <= 0.02 * 300  # the bound is one in a hundred
    # Whoever has the first bad rows of all is blamed for hundreds of rows.
    assert by_row > (0.04 if answered else 0.01) * 300


def test_a_version_that_breaks_large_requests_is_still_found():
    """The canary fails on all its rows, the champion stands in: each request speaks once."""
    rng = RNG(0)
    arm = rng.uniform(size=(12, 100)) < 0.1
    request = np.repeat(np.arange(12), 100).astype(str)
    kept = one_per_request(request, arm.ravel(), np.ones(1_200, bool))
    (found,) = exposures_of(0.1, arm.ravel()[kept], failed=arm.ravel()[kept])
    assert found == Exposure(0.1, 12, 0, 12, 0, None, None)
    assert decide(CanaryInputs(LossStream(), (found,), 0.1, 0.1), POLICY).outcome == "ROLL_BACK"


def test_a_bandit_splits_by_no_unit_and_a_margin_is_above_zero():
    for wrong_policy, told in (
        ({"strategy": "bandit", "unit": "carrier"}, "which a bandit cannot"),
        ({"margin": 0.0}, "margin above zero"),
        ({"margin": float("inf")}, "margin above zero"),
        ({"min_labels": 0}, "min_labels"),
    ):
        with pytest.raises(ContractError, match=told):
            RolloutPolicy(**wrong_policy)
