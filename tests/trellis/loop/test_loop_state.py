"""The loop's transition function: every way out leads back, no event moves twice, the breaker opens and closes."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trellis.contract import RetrainPolicy
from trellis.decision import dumps
from trellis.errors import ClockError, LoopError
from trellis.loop import (
    FRUITLESS,
    Begun,
    Failed,
    Followed,
    Gated,
    Loop,
    Request,
    Returned,
    Trained,
    Verified,
    Weighed,
    asked,
    cancelled,
    next_state,
    paused,
    reset,
)

POLICY = RetrainPolicy(max_attempts=3, max_failures=2)
WORD = Request("r1", "anna", "new product", "2013-07-01T00:00:00Z")
RETRAIN = Weighed("retrain-1", "RETRAIN", "drift", "drift", "1")
PROMOTE = Gated("2", "PROMOTE", "better", {"version": "2"}, True)
BACK = Followed("rolled_back", "worse live")


def at(day):
    return f"2013-07-{day:02d}T00:00:00+00:00"


def go(state, *events, day=1):
    for event in events:
        state = next_state(state, event, POLICY, at(day)).state
    return state


BEGUN = go(Loop("m"), RETRAIN)
ON_TRIAL = go(BEGUN, Begun(), Trained({"digest": "d"}), Begun(), PROMOTE)


def test_the_straight_way():
    stages, state = [], Loop("m")
    way = [RETRAIN, Begun(), Trained({"digest": "d"}), Begun(), PROMOTE, Followed("open", "…")]
    way += [Followed("champion", "took over"), Verified("HOLD", "wait", "v-0"), Verified("CONFIRMED", "ok", "v-1")]
    for event in way:
        state = go(state, event)
        stages.append(state.stage)
    assert stages == [
        "training", "training", "gating", "gating", "rollout", "rollout", "verifying", "verifying", "watching"
    ]  # fmt: skip
    assert (state.cycle.outcome, state.cycle.version, state.failures, state.starts) == ("promoted", "2", 0, (at(1),))
    assert state.open is None
    assert state.number == 7  # looks that found nothing new are no transitions


@pytest.mark.parametrize(
    ("state", "events", "outcome"),
    [
        (BEGUN, [Begun(), Failed("disk full")] * 3, "failed"),
        (BEGUN, [Begun()] * 4, "failed"),  # killed three times in the same work
        (BEGUN, [Begun(), Trained({}), *[Begun()] * 4], "failed"),
        (BEGUN, [Begun(), Trained({}), Gated("2", "HOLD", "few rows", {}, False)], "held"),
        (BEGUN, [Begun(), Trained({}), Gated("2", "REJECT", "worse", {}, False)], "rejected"),
        (ON_TRIAL, [BACK], "rolled_back"),
        (ON_TRIAL, [Followed("aborted", "by hand")], "superseded"),
        (ON_TRIAL, [Followed("champion", ""), Followed("rolled_back", "by hand")], "rolled_back"),
        (ON_TRIAL, [Followed("champion", ""), Verified("REGRESSED", "worse", "v"), Returned("back")], "regressed"),
        (ON_TRIAL, [Followed("champion", ""), Verified("INCONCLUSIVE", "no labels", "v")], "promoted"),
        (ON_TRIAL, [replace(RETRAIN, decision="retrain-2")], ""),
    ],
)
def test_every_way_out(state, events, outcome):
    end = go(state, *events)
    assert end.cycle.outcome == outcome
    assert (end.stage == "watching") == bool(outcome)
    assert end.failures == (outcome in FRUITLESS)
    if not outcome:
        assert (end.cycle.id, end.cycles) == ("m-cycle-2", 2)


def test_the_breaker_opens_after_failures_in_a_row_and_a_success_closes_it():
    def cycle(state, number, *events, day):
        return go(state, replace(RETRAIN, decision=f"retrain-{number}"), *events, day=day)

    rejected = (Begun(), Trained({}), Gated("2", "REJECT", "worse", {}, False))
    promoted = (Begun(), Trained({}), PROMOTE, Followed("champion", ""), Verified("CONFIRMED", "", ""))
    one = cycle(Loop("m"), 1, *rejected, day=1)
    assert (one.failures, one.broken_since) == (1, "")
    two = cycle(one, 2, *rejected, day=2)
    assert (two.failures, two.broken_since) == (2, at(2))
    assert cycle(two, 3, *promoted, day=20).broken_since == ""
    half = cycle(two, 3, *rejected, day=20)
    assert (half.failures, half.broken_since) == (3, at(20))
    assert (reset(half, "mended").state.failures, reset(half, "mended").state.broken_since) == (0, "")


def test_operators_need_reasons_and_cannot_do_twice_what_is_done():
    waiting = asked(Loop("m"), WORD).state
    with pytest.raises(LoopError, match="'anna' is waiting"):
        asked(waiting, replace(WORD, id="r2"))
    served = go(waiting, replace(RETRAIN, request="r1"))
    assert (served.request, served.stage) == (None, "training")
    other = go(waiting, replace(RETRAIN, request=""))
    assert other.request == WORD  # drift was faster; the word still waits
    assert cancelled(served, "not now", POLICY).state.cycle.outcome == "cancelled"
    assert cancelled(waiting, "not now", POLICY).state.request is None
    with pytest.raises(LoopError, match="Nothing is going on"):
        cancelled(Loop("m"), "why not", POLICY)
    still = paused(Loop("m"), "holiday").state
    assert (still.paused, paused(still, "back", on=False).state.paused) == (True, False)
    with pytest.raises(LoopError, match="already"):
        paused(still, "again")
    with pytest.raises(LoopError, match="nothing has failed"):
        reset(still, "why")
    for verb in (paused, reset):
        with pytest.raises(LoopError, match="needs a reason"):
            verb(still, " ")


def test_time_does_not_go_back():
    with pytest.raises(ClockError, match="before the last move"):
        go(go(Loop("m"), RETRAIN, day=5), Begun(), day=4)


EVENTS = st.one_of(
    st.integers(1, 9).map(lambda n: Weighed(f"retrain-{n}", "RETRAIN", "", "drift", "1")),
    st.sampled_from([
        Begun(), Trained({"d": 1}), PROMOTE, Gated("2", "HOLD", "", {}, False), Gated("2", "REJECT", "", {}, False),
        BACK, Followed("open", ""), Followed("champion", ""), Followed("superseded", ""), Verified("HOLD", "", ""),
        Verified("CONFIRMED", "", ""), Verified("REGRESSED", "", ""), Returned(""), Failed("x"),
        Weighed("w", "WAIT", "", "", "1"),
    ]),
)  # fmt: skip
NEXT = {
    "watching": {"training"},
    "training": {"gating", "watching", "training"},
    "gating": {"rollout", "watching", "training"},
    "rollout": {"verifying", "watching", "training"},
    "verifying": {"returning", "watching", "training"},
    "returning": {"watching", "training"},
}


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_the_loop_is_whole(events):
    state, begun = Loop("m"), set()
    for day, event in enumerate(events):
        now = f"2013-{1 + day // 28:02d}-{1 + day % 28:02d}T00:00:00+00:00"
        after = next_state(state, event, POLICY, now).state
        assert after is state or after.number == state.number + 1
        assert after.stage == state.stage or after.stage in NEXT[state.stage]
        if after.cycles > state.cycles:
            assert isinstance(event, Weighed)
            begun.add(after.cycle.id)
        assert len(begun) == after.cycles
        assert (after.stage == "watching") == (after.open is None)
        # A process that was killed after its write says it again: a decision begins nothing twice, and work that was
        # handed over is not handed over to the next stage.
        if isinstance(event, Weighed | Trained | Gated | Returned):
            assert next_state(after, event, POLICY, now).state is after
        assert TypeAdapter(Loop).validate_json(dumps(after)) == after
        state = after
    # And it is never stuck: from wherever it is, some event leads back.
    for event in (Begun(), Begun(), Begun(), Begun(), BACK, Followed("superseded", ""), Returned("")):
        state = next_state(state, event, POLICY, "2014-01-01T00:00:00+00:00").state
    assert state.stage == "watching"
