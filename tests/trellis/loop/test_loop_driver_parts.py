"""The two halves of a turn that a stack runs apart: weighing, and the long work of one decision."""

from contextlib import contextmanager

import pytest

from trellis.contract import RetrainPolicy
from trellis.loop import Followed, Gated, Loop, Trained, Weighed, begin, go_on, turn

POLICY = RetrainPolicy()


class States:
    """One loop's state, with compare-and-set."""

    def __init__(self):
        self.state, self.written, self.held = Loop("m"), 0, 0

    def current(self, model):
        return self.state

    def commit(self, before, after, *, who, why, decision="", lease=None):
        assert before == self.state
        assert self.held == 1
        self.state, self.written = after, self.written + 1

    @contextmanager
    def lease(self, model):
        self.held += 1
        yield "lease"
        self.held -= 1


class Work:
    """Asks for a retraining at every moment that is not known yet; counts what it does."""

    def __init__(self):
        self.done = []

    def weigh(self, state, now):
        outcome = "RETRAIN" if state.open is None else "WAIT"
        return Weighed(f"retrain-{now}", outcome, "why", "drift", "1")

    def train(self, cycle):
        self.done.append(("train", cycle.decision))
        return Trained({"candidate": cycle.id})

    def gate(self, cycle):
        self.done.append(("gate", cycle.decision))
        return Gated("2", "PROMOTE", "good", {}, True)

    def follow(self, cycle, now):
        self.done.append(("follow", cycle.decision))
        return Followed("open", "on trial")


def test_weighing_leaves_the_long_work_and_the_two_halves_make_a_turn():
    halves, whole, work, other = States(), States(), Work(), Work()
    begun = begin(halves, work, POLICY, "m", "2024-01-01T00:00:00Z")
    assert (begun.stage, work.done) == ("training", [])
    decision = begun.open.decision
    after = go_on(halves, work, POLICY, "m", "2024-01-01T00:00:00Z", decision)
    assert after.stage == "rollout"
    assert after == turn(whole, other, POLICY, "m", "2024-01-01T00:00:00Z")
    assert work.done == other.done == [("train", decision), ("gate", decision), ("follow", decision)]


def test_a_decision_is_worked_on_once_and_no_other_is_touched():
    states, work = States(), Work()
    decision = begin(states, work, POLICY, "m", "2024-01-01T00:00:00Z").open.decision
    assert go_on(states, work, POLICY, "m", "2024-01-01T00:00:00Z", "retrain-other").stage == "training"
    assert work.done == []
    go_on(states, work, POLICY, "m", "2024-01-01T00:00:00Z", decision)
    before, written = list(work.done), states.written
    again = go_on(states, work, POLICY, "m", "2024-01-01T00:00:00Z", decision)
    # The rollout is looked at once more, which moves nothing; training and gating are not repeated.
    assert again == states.state
    assert [what for what, _ in work.done] == [what for what, _ in before] + ["follow"]
    assert states.written == written


@pytest.mark.parametrize("asked", ["2024-01-01T00:00:00Z", "2024-01-05T00:00:00Z"])
def test_an_event_that_comes_late_goes_on_from_the_last_move(asked):
    states, work = States(), Work()
    decision = begin(states, work, POLICY, "m", "2024-01-03T00:00:00Z").open.decision
    after = go_on(states, work, POLICY, "m", asked, decision)
    assert after.stage == "rollout"
    assert after.moved_at == max(asked, "2024-01-03T00:00:00Z")
