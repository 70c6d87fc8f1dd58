"""Driving the loop: one turn does what the stages ask for until the world has to go on first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from trellis.contract import RetrainPolicy
from trellis.errors import TrellisError
from trellis.loop.decide import read_moment
from trellis.loop.state import (
    Begun,
    Cycle,
    Event,
    Failed,
    Followed,
    Gated,
    Loop,
    Returned,
    Trained,
    Verified,
    Weighed,
    next_state,
)

# Stages whose work takes long and costs; each attempt is written down before it begins.
LONG = ("training", "gating")
# Stages that look at the model's rollout, whoever began it.
FOLLOWING = ("rollout", "verifying")


class LoopWork(Protocol):
    """What the stages ask for; each verb is idempotent under the cycle's id."""

    def weigh(self, state: Loop, now: str) -> Weighed:
        """Decide whether to train again; the same answer for the same moment."""

    def train(self, cycle: Cycle) -> Trained:
        """Make the candidate."""

    def gate(self, cycle: Cycle) -> Gated:
        """Judge the candidate, register it and plan its rollout."""

    def follow(self, cycle: Cycle, now: str) -> Followed:
        """Say where the version stands, in its rollout and after."""

    def verify(self, cycle: Cycle, now: str) -> Verified:
        """Hold the new champion against the one it replaced."""

    def give_back(self, cycle: Cycle) -> Returned:
        """Let the version before answer again, with all that belongs to it."""


class LoopStates(Protocol):
    """Where the states are kept."""

    def current(self, model: str) -> Loop:
        """Return where a model's loop stands."""

    def commit(self, before: Loop, after: Loop, *, who: str, why: str, decision: str = "", lease: Any = None) -> None:
        """Write one transition, all or nothing of it, where the stored state still is ``before``."""

    def lease(self, model: str) -> AbstractContextManager[Any]:
        """Hold the right to act."""


def turn(states: LoopStates, work: LoopWork, policy: RetrainPolicy, model: str, now: str) -> Loop:
    """Weigh once, then move as far as the world allows.

    Every transition is one transaction, written before the next stage's work begins. Killed anywhere, the next turn
    does the work of the stored stage again, under the same cycle's id, and goes on.

    Args:
        states: The store.
        work: What the stages ask for.
        policy: The model's retraining policy.
        model: Whose loop.
        now: Event time, RFC 3339.

    Returns:
        Where the loop stands afterwards.

    Raises:
        LeaseHeldError: Another turn is under way.
        StaleRevisionError: A person changed the loop meanwhile; the next turn goes on from there.
        ClockError: ``now`` lies before the last move.
    """
    with states.lease(model) as lease:
        take = _taker(states, policy, now, lease)
        state = take(states.current(model), work.weigh(states.current(model), now))
        return _go_on(state, take, work, now)


def begin(states: LoopStates, work: LoopWork, policy: RetrainPolicy, model: str, now: str) -> Loop:
    """Do what ``turn`` does but the long work: weigh once, and follow a rollout; training and gating are left.

    For a stack, where the retraining is a run of its own that ``go_on`` does.

    Args:
        states: The store.
        work: What the stages ask for.
        policy: The model's retraining policy.
        model: Whose loop.
        now: Event time, RFC 3339.

    Returns:
        Where the loop stands afterwards; ``training`` or ``gating`` where ``go_on`` has work.

    Raises:
        LeaseHeldError, StaleRevisionError, ClockError: As in ``turn``.
    """
    with states.lease(model) as lease:
        take = _taker(states, policy, now, lease)
        state = take(states.current(model), work.weigh(states.current(model), now))
        return state if state.stage in LONG else _go_on(state, take, work, now)


def go_on(states: LoopStates, work: LoopWork, policy: RetrainPolicy, model: str, now: str, decision: str) -> Loop:
    """Go on with the retraining that a decision began, and with no other: saying it twice does it once.

    Args:
        states: The store.
        work: What the stages ask for.
        policy: The model's retraining policy.
        model: Whose loop.
        now: Event time, RFC 3339; where the loop has moved since, the time of its last move.
        decision: Id of the decision to retrain.

    Returns:
        Where the loop stands; as it was found where the decision's retraining is over or superseded.

    Raises:
        LeaseHeldError, StaleRevisionError: As in ``turn``.
    """
    with states.lease(model) as lease:
        state = states.current(model)
        if state.open is None or state.open.decision != decision:
            return state
        at = now
        if state.moved_at and read_moment(now) < read_moment(state.moved_at):
            at = state.moved_at
        return _go_on(state, _taker(states, policy, at, lease), work, at)


def _taker(states: LoopStates, policy: RetrainPolicy, now: str, lease: Any) -> Callable[[Loop, Event], Loop]:
    def take(state: Loop, event: Event) -> Loop:
        move = next_state(state, event, policy, now)
        if move.state is state:
            return state
        states.commit(state, move.state, who="platform", why=move.why, decision=move.decision, lease=lease)
        return move.state

    return take


def _go_on(state: Loop, take: Callable[[Loop, Event], Loop], work: LoopWork, now: str) -> Loop:
    while (cycle := state.open) is not None:
        if state.stage in LONG:
            state = take(state, Begun())
            if state.open is None:
                break
            cycle = state.open
        before = state
        try:
            event = _do(state, cycle, work, now)
        except TrellisError as error:
            event = Failed(str(error))
        state = take(state, event)
        if state is before or isinstance(event, Failed):
            break  # the next turn goes on
    return state


def _do(state: Loop, cycle: Cycle, work: LoopWork, now: str) -> Event:
    if state.stage == "training":
        return work.train(cycle)
    if state.stage == "gating":
        return work.gate(cycle)
    if state.stage == "rollout":
        return work.follow(cycle, now)
    if state.stage == "verifying":
        seen = work.follow(cycle, now)
        return work.verify(cycle, now) if seen.place == "champion" else seen
    return work.give_back(cycle)


def without_work(state: Loop) -> Loop:
    """Return a state without what only the next stage needs, for people."""
    return state if state.cycle is None else replace(state, cycle=replace(state.cycle, work={}))
