"""A world whose drift comes and goes, and a year of the loop in it on a real store; for a test and a benchmark."""

from datetime import UTC, datetime, timedelta

from trellis.loop import (
    Followed,
    Gated,
    RetrainInputs,
    Returned,
    Signal,
    Trained,
    Verified,
    Weighed,
    decide_retrain,
    turn,
)


def at(day):
    return (datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=day)).isoformat()


class Oscillating:
    """A world whose drift comes and goes every ``half`` days; every candidate takes over after ``trial`` days."""

    def __init__(self, policy, half, trial=3):
        self.policy, self.half, self.trial, self.asked = policy, half, trial, 0

    def weigh(self, state, now):
        loud = (datetime.fromisoformat(now) - datetime(2013, 1, 1, tzinfo=UTC)).days // self.half % 2
        self.asked += loud
        inputs = RetrainInputs(
            "m", now, (Signal("drift", bool(loud), 0.5 * loud, 0.25, ""),), "", state.starts, 9_999, state.request,
            state.open.id if state.open else "", state.stage, state.failures, state.broken_since, state.paused,
        )  # fmt: skip
        verdict = decide_retrain(inputs, self.policy)
        return Weighed(f"retrain-{now}", verdict.outcome, verdict.reason, "drift", "1")

    def train(self, cycle):
        return Trained({"candidate": cycle.id})

    def gate(self, cycle):
        return Gated(cycle.id, "PROMOTE", "better", {}, True)

    def follow(self, cycle, now):
        days = (datetime.fromisoformat(now) - datetime.fromisoformat(cycle.at)).days
        return Followed("champion" if days >= self.trial else "open", "")

    def verify(self, cycle, now):
        return Verified("CONFIRMED", "", "")

    def give_back(self, cycle):
        return Returned("")


def year(store, policy, half):
    """Turn the loop once a day for a year; return the days on which drift spoke, and those of retrainings."""
    world, starts = Oscillating(policy, half), []
    for day in range(365):
        state = turn(store, world, policy, "m", at(day))
        if state.cycles > len(starts):
            starts.append(day)
    return world.asked, starts


def most_in_a_month(starts):
    """Return the most retrainings within any thirty days in a row."""
    return max(sum(first <= s < first + 30 for s in starts) for first in range(365))
