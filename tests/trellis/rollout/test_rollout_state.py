"""The state machine: no rollout is stuck, none moves twice, time only goes on, and every state has a sound plan."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.errors import ClockError, ContractError, ExpiredRolloutError, InvalidPlanError, RolloutError
from trellis.rollout.asked import follows, plan_for
from trellis.rollout.document import FINAL
from trellis.rollout.plan import Shadow, Variant, first_plan, with_canary
from trellis.rollout.state import adopt, begin, ended_by_hand, next_state, paused, promoted_by_hand, resumed

START = datetime(2013, 7, 1, tzinfo=UTC)
STRATEGIES = ("canary", "blue_green", "ab", "bandit")


def at(days):
    return (START + timedelta(days=days)).isoformat()


def variant(version):
    return Variant(version, "canary", 0.0, f"/a/{version}", f"d{version}")


PLAN = replace(first_plan("toy", variant("1"), salt="s", unit="user"), revision=7)


def verdict(outcome, *checks):
    return Verdict(outcome, f"{outcome} because", tuple(checks))


READY = Check("ready_to_step", True, "ready")
OUTCOMES = st.sampled_from(["PROMOTE", "ROLL_BACK", "HOLD", "INCONCLUSIVE", "TIMEOUT", None])
POLICIES = st.builds(
    RolloutPolicy,
    steps=st.sampled_from([(0.1,), (0.1, 0.5), (0.05, 0.25, 0.5, 1.0)]),
    strategy=st.sampled_from(STRATEGIES),
    shadow_rate=st.sampled_from([0.0, 0.2]),
    on_timeout=st.sampled_from(["roll_back", "pause"]),
    max_days=st.sampled_from([5.0, 30.0]),
)


def said(outcome, ready, weight, candidates):
    if outcome is None:
        return None
    checks = [Check(f"weight/{c.version}", None, "", weight) for c in candidates]
    checks += [Check("ready_to_step", ready, "")]
    if outcome == "TIMEOUT":
        return Verdict("INCONCLUSIVE", "late", (Check("time", False, "late"), *checks))
    return Verdict(outcome, "because", tuple(checks))


@given(POLICIES, st.lists(st.tuples(OUTCOMES, st.booleans(), st.floats(0, 0.4), st.floats(0, 3)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_whatever_is_said_the_rollout_stays_sound(policy, looks):
    """One move per look at most, a valid plan after each, the same look again does nothing, no stage comes back."""
    arms = 2 if policy.strategy in ("ab", "bandit") else 1
    assume(policy.strategy != "ab" or policy.steps[-1] < 1)
    state = begin(PLAN, [variant(str(i + 2)) for i in range(arms)], policy)
    order = ["shadow", "warm", "trial", "window", *sorted(FINAL)]
    day = 0.0
    for outcome, ready, weight, later in looks:
        day += later
        now, told = at(day), said(outcome, ready, weight, state.candidates)
        move = next_state(state, told, policy, now)
        assert next_state(move.state, told, policy, now).state.stage == move.state.stage or move.state == state
        if move.state.moved_at and move.state.moved_at != state.moved_at:
            assert next_state(move.state, told, policy, now).state is move.state
        assert move.state.number - state.number == (move.state != state)
        assert move.state.step - state.step in (0, 1)
        assert order.index(move.state.stage) >= order.index(state.stage)
        plan = plan_for(move.state, PLAN, policy)  # refuses weights that do not sum
        assert plan.unit == "user"
        assert follows(move.state, plan, policy) == (not move.state.final)
        if state.final:
            assert move.state is state
        state = move.state
    if state.final:
        champion = plan_for(state, PLAN, policy)
        assert [v.weight for v in champion.variants] == [1.0]
        assert champion.champion.version == (state.winner if state.stage == "champion" else "1")


@given(POLICIES, st.lists(st.sampled_from(["HOLD", None]), min_size=1, max_size=1), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_no_rollout_is_stuck(policy, silent, steps):
    """Held for ever, every rollout comes to its end or to a person, in the time that the policy declares."""
    assume(policy.strategy != "ab" or policy.steps[-1] < 1)
    state = begin(PLAN, [variant("2")], policy)
    for day in range(100):
        told = None if silent[0] is None else verdict("HOLD", *([READY] if day < steps else []))
        state = next_state(state, told, policy, at(day)).state
        if state.final or state.paused:
            break
    assert state.final or (state.paused and policy.on_timeout == "pause")
    assert day <= policy.max_days + policy.rollback_days + 1


def test_a_canary_climbs_its_steps_and_takes_over():
    policy = RolloutPolicy(steps=(0.1, 0.5), shadow_rate=0.2, shadow_days=2)
    state = begin(PLAN, [variant("2")], policy, gate="gate-1")
    plan = plan_for(state, PLAN, policy)
    assert plan.shadows == (Shadow("2", 0.2, "/a/2", "d2"),)
    assert plan.canary is None
    state = next_state(state, verdict("PROMOTE"), policy, at(0)).state
    assert state.stage == "shadow"  # two days in the shadow were declared
    state = next_state(state, verdict("PROMOTE"), policy, at(2)).state
    plan = plan_for(state, PLAN, policy)
    assert (plan.canary.weight, plan.shadows) == (0.1, (Shadow("2", 0.2, "/a/2", "d2"),)), "pairs go on coming in"
    assert follows(state, plan, policy)
    assert follows(state, replace(plan, shadows=()), policy), "a plan by hand need not have them"
    assert next_state(state, verdict("HOLD"), policy, at(3)).state is state
    state = next_state(state, verdict("HOLD", READY), policy, at(3)).state
    assert plan_for(state, PLAN, policy).canary.weight == 0.5
    assert next_state(state, verdict("HOLD", READY), policy, at(4)).state is state  # the last step
    move = next_state(state, verdict("PROMOTE"), policy, at(5))
    assert (move.state.stage, move.state.winner, move.why) == ("champion", "2", "PROMOTE because")
    assert plan_for(move.state, PLAN, policy).champion.version == "2"


def test_blue_green_keeps_the_old_version_warm_and_goes_back_at_once():
    policy = RolloutPolicy(strategy="blue_green", rollback_days=3)
    state = begin(PLAN, [variant("2")], policy)
    plan = plan_for(state, PLAN, policy)
    assert [(v.version, v.role, v.weight) for v in plan.variants] == [("1", "champion", 1.0), ("2", "standby", 0.0)]
    assert {plan.assign(str(i)).version for i in range(200)} == {"1"}
    state = next_state(state, None, policy, at(0)).state
    plan = plan_for(state, PLAN, policy)
    assert [(v.version, v.role, v.weight) for v in plan.variants] == [("2", "champion", 1.0), ("1", "standby", 0.0)]
    assert {plan.assign(str(i)).version for i in range(200)} == {"2"}
    assert next_state(state, None, policy, at(2.9)).state.stage == "window"
    assert next_state(state, None, policy, at(3)).state.stage == "champion"
    back = next_state(state, verdict("ROLL_BACK"), policy, at(1)).state
    assert (back.stage, plan_for(back, PLAN, policy).champion.version) == ("rolled_back", "1")


def test_ab_splits_evenly_and_a_bandit_follows_its_weights():
    policy = RolloutPolicy(strategy="ab", steps=(0.1, 0.6))
    state = begin(PLAN, [variant("2"), variant("3")], policy)
    assert [v.weight for v in plan_for(state, PLAN, policy).canaries] == [0.3, 0.3]
    won = next_state(state, verdict("PROMOTE", Check("winner/3", True, "")), policy, at(1)).state
    assert plan_for(won, PLAN, policy).champion.version == "3"
    policy = RolloutPolicy(strategy="bandit")
    state = begin(PLAN, [variant("2"), variant("3")], policy)
    assert [v.weight for v in plan_for(state, PLAN, policy).variants] == pytest.approx([1 / 3] * 3)
    told = verdict("HOLD", Check("weight/2", None, "", 0.7), Check("weight/3", None, "", 0.1))
    state = next_state(state, told, policy, at(1)).state
    assert [v.weight for v in plan_for(state, PLAN, policy).variants] == pytest.approx([0.2, 0.7, 0.1])
    assert next_state(state, told, policy, at(2)).state is state  # nothing new


def test_a_timeout_is_declared_never_silent():
    late = Verdict("INCONCLUSIVE", "30 of 30 days", (Check("time", False, "30 of 30 days"),))
    split = Verdict("INCONCLUSIVE", "the split is wrong", (Check("sample_ratio", False, "wrong"),))
    for on_timeout in ("roll_back", "pause"):
        policy = RolloutPolicy(on_timeout=on_timeout)
        state = begin(PLAN, [variant("2")], policy)
        move = next_state(state, late, policy, at(0))
        assert "as the policy says" in move.why
        assert (move.state.paused, move.state.final) == (on_timeout == "pause", on_timeout == "roll_back")
        assert next_state(state, split, policy, at(0)).state.stage == "rolled_back"  # void, whatever the policy
    held = next_state(state, verdict("HOLD"), policy, at(0)).state
    assert next_state(held, verdict("HOLD"), policy, at(30)).state.paused


def test_operators_pause_resume_promote_and_end():
    policy = RolloutPolicy(strategy="ab")
    state = begin(PLAN, [variant("2"), variant("3")], policy)
    waiting = paused(state)
    assert next_state(waiting, verdict("PROMOTE"), policy, at(0)).state.stage == "trial"
    assert plan_for(waiting, PLAN, policy) == plan_for(state, PLAN, policy)
    assert resumed(waiting, policy, at(1)).paused is False
    with pytest.raises(RolloutError, match="paused already"):
        paused(waiting)
    with pytest.raises(RolloutError, match="not paused"):
        resumed(state, policy, at(1))
    with pytest.raises(InvalidPlanError, match="not on trial"):
        promoted_by_hand(state, "9", at(1))
    with pytest.raises(InvalidPlanError, match="Name one of"):
        promoted_by_hand(state, "", at(1))
    assert promoted_by_hand(state, "3", at(1)).winner == "3"
    for stage in ("rolled_back", "aborted", "superseded"):
        over = ended_by_hand(state, stage, at(1))
        assert plan_for(over, PLAN, policy).champion.version == "1"
        for verb in (paused, lambda s: resumed(s, policy, at(2)), lambda s: promoted_by_hand(s, "2", at(2))):
            with pytest.raises(ExpiredRolloutError, match="is over"):
                verb(over)
    late = paused(next_state(state, verdict("HOLD"), policy, at(0)).state)
    with pytest.raises(ExpiredRolloutError, match="had until 2013-07-31"):
        resumed(late, policy, at(30))


def test_a_clock_that_jumps_is_refused():
    policy = RolloutPolicy()
    state = next_state(begin(PLAN, [variant("2")], policy), verdict("HOLD", READY), policy, at(5)).state
    with pytest.raises(ClockError, match="before the rollout's last move"):
        next_state(state, verdict("PROMOTE"), policy, at(4.9))
    with pytest.raises(ClockError, match="days after the rollout's last move"):
        next_state(state, verdict("HOLD"), policy, at(5 + 61))
    with pytest.raises(ClockError, match="is no moment"):
        next_state(state, verdict("HOLD"), policy, "yesterday")
    assert next_state(state, verdict("HOLD"), policy, at(5 + 59)).state.stage == "rolled_back"
    assert next_state(state, verdict("HOLD"), policy, "2013-07-06T00:00:00Z").state is state  # the same moment
    assert next_state(state, verdict("HOLD"), policy, "2013-07-07T00:00:00").state is state  # no zone is UTC


def test_candidates_that_make_no_sense_are_refused():
    for candidates, policy in (
        ([], RolloutPolicy()),
        (["1"], RolloutPolicy()),
        (["2", "2"], RolloutPolicy(strategy="ab")),
        (["2", "3"], RolloutPolicy()),
        (["2", "3"], RolloutPolicy(strategy="bandit", floor=0.4)),
    ):
        with pytest.raises(InvalidPlanError):
            begin(PLAN, [variant(v) for v in candidates], policy)
    whole = RolloutPolicy(strategy="ab", steps=(0.5, 1.0))
    with pytest.raises(InvalidPlanError, match="leaves the champion nothing"):
        begin(PLAN, [variant("2")], whole)
    assert begin(PLAN, [variant("2")], replace(whole, strategy="canary")).stage == "trial"
    with pytest.raises(InvalidPlanError, match="no canary to adopt"):
        adopt(PLAN, RolloutPolicy())
    for wrong in (
        {"strategy": "hope"}, {"on_timeout": "shrug"}, {"shadow_rate": 1.1}, {"floor": 0.0}, {"max_days": 0},
        {"max_slowdown": 0.0}, {"shadow_days": 40},
    ):  # fmt: skip
        with pytest.raises(ContractError):
            RolloutPolicy(**wrong)


def test_a_plan_made_by_hand_is_adopted_at_its_share():
    policy = RolloutPolicy(steps=(0.1, 0.25, 0.5))
    plan = with_canary(PLAN, variant("2"), 0.25)
    state = adopt(plan, policy, gate="gate-x")
    assert (state.step, state.stage, state.gate, state.salt) == (1, "trial", "gate-x", "s")
    assert plan_for(state, plan, policy) == plan
    assert follows(state, with_canary(PLAN, variant("2"), 0.3), policy)
    assert not follows(state, with_canary(PLAN, variant("3"), 0.25), policy)
    assert not follows(state, PLAN, policy)
