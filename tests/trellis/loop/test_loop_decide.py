"""Whether to train again: each bound holds by itself, the loudest signal leads, a word weighs what it should."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trellis.contract import RetrainPolicy
from trellis.decision import dumps
from trellis.errors import ClockError
from trellis.loop import (
    Request,
    RetrainInputs,
    Signal,
    VerifyInputs,
    decide_retrain,
    decide_verify,
    dominant,
    label_signal,
    schedule_signal,
)
from trellis.sums import loss_sums

POLICY = RetrainPolicy(cooldown_days=14, budget_per_month=2, min_new_labels=2000)
DRIFT = Signal("drift", True, 0.5, 0.25, "temp moved")
QUIET = Signal("drift", False, 0.1, 0.25, "calm")
WORD = Request("r1", "anna", "new product", "2013-08-01T00:00:00Z")


def ask(**changes) -> RetrainInputs:
    known = {
        "model": "m",
        "now": "2013-08-01T00:00:00Z",
        "signals": (DRIFT,),
        "trained_at": ("2013-07-01T00:00:00Z",),
        "new_labels": 5000,
    }
    return RetrainInputs(**{**known, **changes})


@pytest.mark.parametrize(
    ("changes", "outcome", "needs"),
    [
        ({}, "RETRAIN", {}),
        ({"signals": (QUIET,)}, "WAIT", {}),
        ({"signals": ()}, "WAIT", {}),
        ({"fault": "Celsius"}, "REFUSE", {}),
        ({"fault": "Celsius", "request": WORD}, "REFUSE", {}),
        ({"trained_at": ()}, "RETRAIN", {}),
        ({"trained_at": ("2013-07-25T00:00:00Z",)}, "WAIT", {"days": 7.0}),
        ({"new_labels": 300}, "WAIT", {"labels": 1700.0}),
        ({"trained_at": ("2013-07-08T00:00:00Z", "2013-07-12T00:00:00Z", "2013-02-01T00:00:00Z")}, "WAIT", {"days": 6}),
        ({"failures": 3, "broken_since": "2013-07-20T00:00:00Z"}, "WAIT", {"days": 18.0}),
        ({"failures": 3, "broken_since": "2013-07-02T00:00:00Z"}, "RETRAIN", {}),  # half open: one try
        ({"paused": True}, "WAIT", {}),
        ({"cycle": "m-cycle-1", "stage": "rollout"}, "WAIT", {}),
        ({"cycle": "m-cycle-1", "stage": "rollout", "request": WORD}, "RETRAIN", {}),
        ({"cycle": "m-cycle-1", "stage": "training", "request": WORD}, "WAIT", {}),
        ({"signals": (), "request": WORD}, "RETRAIN", {}),
        ({"signals": (), "request": WORD, "new_labels": 0}, "WAIT", {"labels": 2000.0}),
    ],
)
def test_every_bound_holds_by_itself(changes, outcome, needs):
    found = decide_retrain(ask(**changes), POLICY)
    assert (found.outcome, dict(found.needs)) == (outcome, needs), found.reason
    if outcome == "WAIT" and dominant(ask(**changes)):
        assert sum(c.passed is False for c in found.checks if not c.name.startswith("signal")) == 1


def test_a_forced_word_is_held_back_by_a_pause_alone_and_says_what_it_overrode():
    word = Request("r2", "anna", "court order", "2013-08-01T00:00:00Z", force=True)
    everything = {
        "request": word, "fault": "Celsius", "new_labels": 0, "failures": 5, "broken_since": "2013-07-31T00:00:00Z",
        "trained_at": ("2013-07-30T00:00:00Z", "2013-07-31T00:00:00Z"), "cycle": "m-cycle-3", "stage": "training",
    }  # fmt: skip
    found = decide_retrain(ask(**everything), POLICY)
    assert found.outcome == "RETRAIN"
    assert found.reason.count("overridden by anna") == 4
    assert decide_retrain(ask(**everything, paused=True), POLICY).outcome == "WAIT"


def test_the_signal_furthest_above_its_threshold_leads_and_the_others_are_kept():
    harm = Signal("performance", True, 0.09, 0.02, "loss rose")
    found = decide_retrain(ask(signals=(DRIFT, harm)), POLICY)
    assert found.reason.startswith("Performance asks for it")
    assert (found.checks[0].name, found.checks[0].value, found.checks[0].bound) == ("trigger.performance", 0.09, 0.02)
    assert "signal.drift" in [c.name for c in found.checks]
    assert dominant(ask(signals=(DRIFT, harm), request=WORD)).trigger == "manual"


def test_schedule_and_label_volume_ask_when_they_are_due():
    assert schedule_signal(POLICY, "2013-08-01T00:00:00Z", ()) is None
    assert label_signal(POLICY, 10**6) is None
    policy = RetrainPolicy(schedule_days=30, label_volume=1_000)
    due = [schedule_signal(policy, f"2013-08-{d:02d}T00:00:00Z", ["2013-07-02T00:00:00Z"]).asks for d in (1, 2)]
    assert due == [True, True]
    assert not schedule_signal(policy, "2013-07-31T23:00:00Z", ["2013-07-02T00:00:00Z"]).asks
    assert [label_signal(policy, n).asks for n in (999, 1_000)] == [False, True]


def test_a_moment_that_is_none_is_named():
    with pytest.raises(ClockError, match="'soon' is no moment"):
        decide_retrain(ask(now="soon"), POLICY)


moments = st.integers(0, 400).map(lambda d: (datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=d)).isoformat())


@given(
    st.lists(moments, max_size=6),
    moments,
    st.integers(0, 4),
    st.integers(0, 4_000),
    st.booleans(),
    st.sampled_from(["", "rollout"]),
)
def test_what_is_trained_was_allowed_by_a_naive_count(trained, now, budget, labels, asks, stage):
    policy = RetrainPolicy(cooldown_days=10, budget_per_month=budget, min_new_labels=2_000)
    inputs = ask(
        signals=(Signal("drift", asks, 0.5, 0.25, ""),), now=now, trained_at=tuple(trained), new_labels=labels,
        cycle="c" if stage else "", stage=stage,
    )  # fmt: skip
    found = decide_retrain(inputs, policy)
    ages = [(datetime.fromisoformat(now) - datetime.fromisoformat(t)).days for t in trained]
    ages = [a for a in ages if a >= 0]
    allowed = asks and not stage and labels >= 2_000 and sum(a < 30 for a in ages) < budget
    allowed = allowed and (not ages or min(ages) >= 10)
    assert (found.outcome == "RETRAIN") == allowed
    assert TypeAdapter(RetrainInputs).validate_json(dumps(inputs)) == inputs
    if found.needs.get("days"):  # what it says it waits for is what it takes, and no less
        later = datetime.fromisoformat(now) + timedelta(days=found.needs["days"])
        if all(datetime.fromisoformat(t) <= datetime.fromisoformat(now) for t in trained):
            again = ask(signals=inputs.signals, now=later.isoformat(), trained_at=tuple(trained), new_labels=9_000)
            assert decide_retrain(again, policy).outcome == "RETRAIN" or not asks or budget == 0


def losses(mean, rows, days=20):
    day = [i * days // rows for i in range(rows)]
    return loss_sums([mean + (0.02 if d % 2 else -0.02) for d in day], day)


@pytest.mark.parametrize(
    ("new", "rows", "days", "outcome"),
    [
        (0.20, 1_000, 3, "CONFIRMED"),
        (0.10, 1_000, 3, "CONFIRMED"),
        (0.40, 1_000, 3, "REGRESSED"),
        (0.40, 100, 3, "HOLD"),
        (0.40, 100, 14, "INCONCLUSIVE"),
        (0.221, 1_000, 3, "CONFIRMED"),  # above the margin, and not surely
    ],
)
def test_a_new_champion_is_held_against_the_old_one_once(new, rows, days, outcome):
    inputs = VerifyInputs("m", "2", "1", "2013-08-01T00:00:00Z", days, 0.02, losses(new, rows), losses(0.2, 1_000))
    found = decide_verify(inputs, RetrainPolicy())
    assert found.outcome == outcome, found.reason
    if outcome == "HOLD":
        assert found.needs == {"labels": 400, "days": 11}
