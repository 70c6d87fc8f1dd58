"""The rollout as a state machine: what may follow what, as pure functions.

A rollout is a small document beside the plan. ``next_state`` says what follows from a verdict at a moment, the verbs
(``ended_by_hand``, ``paused``, …) what follows from an operator's word, and ``asked.plan_for`` which plan a state asks
for. The controller writes state and plan in one transaction, so after a kill at any point both are there, or neither.

::

    shadow ──▶ trial ──▶ champion          canary, ab, bandit
    shadow ──▶ warm ──▶ window ──▶ champion    blue_green
    any of these ──▶ rolled_back | aborted | superseded
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from trellis.contract import RolloutPolicy, Strategy
from trellis.decision import Verdict
from trellis.errors import ClockError, ExpiredRolloutError, InvalidPlanError, RolloutError
from trellis.rollout.asked import shares
from trellis.rollout.document import Move, Rollout, Stage
from trellis.rollout.plan import RolloutPlan, Variant

# Moves of a bandit's weights below this are not worth a revision of the plan.
_LEAST_MOVE = 0.005


def begin(plan: RolloutPlan, candidates: Sequence[Variant], policy: RolloutPolicy, *, gate: str = "") -> Rollout:
    """Return a rollout of ``candidates`` on top of ``plan``; nothing is decided yet.

    Raises:
        InvalidPlanError: There is no candidate, one is the champion or named twice, the strategy takes only one, or an
            experiment would leave the champion nothing.
    """
    versions = [c.version for c in candidates]
    if not versions or len({*versions, plan.champion.version}) != len(versions) + 1:
        raise InvalidPlanError(
            f"A rollout of {plan.model!r} cannot try {versions} against version {plan.champion.version}.",
            remedy="Name one or more versions, each once, none of them the champion.",
        )
    if len(versions) > 1 and policy.strategy in ("canary", "blue_green"):
        raise InvalidPlanError(
            f"A {policy.strategy} rollout takes one candidate, not {len(versions)}.",
            remedy="Choose the strategy ab or bandit.",
        )
    if policy.strategy == "bandit" and policy.floor * (len(versions) + 1) > 1:
        raise InvalidPlanError(
            f"A floor of {policy.floor:g} for each of {len(versions) + 1} arms is more than all traffic.",
            remedy="Lower the policy's floor or try fewer versions.",
        )
    if policy.strategy == "ab" and policy.steps[-1] >= 1:
        raise InvalidPlanError(
            f"An experiment on {plan.model!r} with a last step of {policy.steps[-1]:.0%} leaves the champion nothing "
            "to be compared with.",
            remedy="Give the policy a last step below 1, or choose the strategy canary.",
        )
    name = "-".join((plan.model, *versions))
    stage: Stage = "shadow" if policy.shadow_rate > 0 else _first_stage(policy.strategy)
    # A fresh salt for every rollout: its units are drawn independently of the last one's.
    return Rollout(
        f"{name}-{plan.revision}", plan.model, policy.strategy, plan.champion, tuple(candidates), name, stage, gate=gate
    )


def adopt(plan: RolloutPlan, policy: RolloutPolicy, *, gate: str = "") -> Rollout:
    """Return the rollout that a plan made without the controller amounts to: a canary at the plan's share.

    Raises:
        InvalidPlanError: The plan has no canary.
    """
    if plan.canary is None:
        raise InvalidPlanError(f"The plan of {plan.model!r} has no canary to adopt.", remedy="Start a rollout first.")
    share = plan.canary.weight
    step = max((i for i, s in enumerate(policy.steps) if s <= share + 1e-12), default=0)
    name = "-".join((plan.model, *(c.version for c in plan.canaries)))
    strategy: Strategy = "canary" if len(plan.canaries) == 1 else "ab"
    return Rollout(
        f"{name}-{plan.revision}", plan.model, strategy, plan.champion, plan.canaries, plan.salt, "trial", step,
        tuple(c.weight for c in plan.canaries), gate=gate,
    )  # fmt: skip


def next_state(state: Rollout, verdict: Verdict | None, policy: RolloutPolicy, now: str) -> Move:
    """Say what follows from one look.

    Each look moves a rollout by one transition at most, and a look at the moment of the last move by none: a controller
    that was killed after its write and looks again does not move twice on the same evidence.

    Args:
        state: Where the rollout stands.
        verdict: What was found out; None where the stage asks for no evidence. Beside its outcome these checks count:
            ``ready_to_step`` (canary), ``winner/<version>`` (ab, bandit), ``weight/<version>`` (bandit), and a leading
            ``time``, which marks INCONCLUSIVE as a timeout.
        policy: The model's rollout policy.
        now: Event time of the look, RFC 3339.

    Raises:
        ClockError: ``now`` lies before the last move, or later than a rollout looked at in time could see.
    """
    move = _next(state, verdict, policy, now)
    return Move(state, move.why) if move.state == state else Move(_counted(state, move.state), move.why)


def _next(state: Rollout, verdict: Verdict | None, policy: RolloutPolicy, now: str) -> Move:
    if state.final:
        return Move(state, f"The rollout is over: {state.stage}.")
    moment = _moment(now)
    _check_clock(state, policy, moment)
    seen = state if state.started_at else replace(state, started_at=now, entered_at=now)
    if state.moved_at and moment == _moment(state.moved_at):
        return Move(state, "Moved at this very moment already.")
    late = moment >= _moment(seen.started_at) + timedelta(days=policy.max_days)
    if late and seen.stage != "window" and (verdict is None or verdict.outcome == "HOLD" or seen.paused):
        return _timed_out(seen, policy, now, f"{policy.max_days:g} days have passed without a verdict.")
    if seen.paused:
        return Move(seen, "Paused.")
    outcome = verdict.outcome if verdict is not None else ""
    reason = verdict.reason if verdict is not None else ""
    if outcome == "ROLL_BACK":
        return Move(_ended(seen, "rolled_back", now), reason)
    if outcome == "INCONCLUSIVE":
        assert verdict is not None
        if verdict.checks and verdict.checks[0].name == "time":
            return _timed_out(seen, policy, now, reason)
        return Move(_ended(seen, "rolled_back", now), reason)
    if seen.stage == "trial":
        return _trial(seen, verdict, policy, now)
    waited = moment - _moment(seen.entered_at)
    if seen.stage == "shadow":
        if outcome == "HOLD" or waited < timedelta(days=policy.shadow_days):
            return Move(seen, reason or f"In the shadow for {_days(waited)} of {policy.shadow_days:g} days.")
        return Move(_entered(seen, _first_stage(seen.strategy), now), reason or "The shadow's time is over.")
    if seen.stage == "warm":
        switched = replace(_entered(seen, "window", now), winner=seen.newcomer.version)
        return Move(switched, "Warm; switched all traffic at once.")
    if waited < timedelta(days=policy.rollback_days):
        return Move(seen, f"{_days(waited)} of {policy.rollback_days:g} days of the rollback window have passed.")
    return Move(_ended(seen, "champion", now), f"{policy.rollback_days:g} days without a rollback.")


def promoted_by_hand(state: Rollout, version: str, now: str) -> Rollout:
    """Return the state after an operator's word that ``version`` takes over; empty means the only candidate.

    Raises:
        ExpiredRolloutError: The rollout is over.
        InvalidPlanError: The version is not on trial, or there are several and none is named.
    """
    _open(state, "promote")
    versions = [c.version for c in state.candidates]
    chosen = version or (versions[0] if len(versions) == 1 else "")
    if chosen not in versions:
        raise InvalidPlanError(
            f"Version {version or '(none)'} is not on trial for {state.model!r}.", remedy=f"Name one of {versions}."
        )
    return _counted(state, replace(_ended(state, "champion", now), winner=chosen))


def ended_by_hand(state: Rollout, stage: Literal["rolled_back", "aborted", "superseded"], now: str) -> Rollout:
    """Return the state after an operator's word, or a newer candidate, ended the rollout.

    Raises:
        ExpiredRolloutError: It is over already.
    """
    _open(state, "end")
    return _counted(state, _ended(state, stage, now))


def paused(state: Rollout) -> Rollout:
    """Return the state in which nothing moves by itself; the split stays.

    Raises:
        ExpiredRolloutError: The rollout is over.
        RolloutError: It is paused.
    """
    _open(state, "pause")
    if state.paused:
        raise RolloutError(f"The rollout of {state.model!r} is paused already.", where=state.id)
    return _counted(state, replace(state, paused=True))


def resumed(state: Rollout, policy: RolloutPolicy, now: str) -> Rollout:
    """Return the state that goes on; paused time counts against ``max_days``.

    Raises:
        ExpiredRolloutError: The rollout is over, or past its deadline.
        RolloutError: It is not paused.
    """
    _open(state, "resume")
    if not state.paused:
        raise RolloutError(f"The rollout of {state.model!r} is not paused.", where=state.id)
    if now and state.started_at:
        deadline = _moment(state.started_at) + timedelta(days=policy.max_days)
        if _moment(now) >= deadline:
            raise ExpiredRolloutError(
                f"The rollout of {state.model!r} had until {deadline.isoformat()}.",
                where=state.id,
                remedy="Abort it, or promote it with a reason, and start another.",
            )
    return _counted(state, replace(state, paused=False))


def _trial(state: Rollout, verdict: Verdict | None, policy: RolloutPolicy, now: str) -> Move:
    if verdict is None:
        return Move(state, "No verdict yet.")
    checks = {c.name: c for c in verdict.checks}
    if verdict.outcome == "PROMOTE":
        won = next((n.partition("/")[2] for n, c in checks.items() if n.startswith("winner/") and c.passed), "")
        winner = won or state.candidates[0].version
        return Move(replace(_ended(state, "champion", now), winner=winner), verdict.reason)
    if state.strategy == "canary":
        ready = checks.get("ready_to_step")
        if ready is not None and ready.passed and state.step + 1 < len(policy.steps):
            return Move(replace(_entered(state, "trial", now), step=state.step + 1), ready.text)
    if state.strategy == "bandit":
        found = [checks.get(f"weight/{c.version}") for c in state.candidates]
        weights = tuple(float(c.value) for c in found if c is not None and c.value is not None)
        moved = max((abs(a - b) for a, b in zip(weights, shares(state, policy), strict=False)), default=0.0)
        if len(weights) == len(state.candidates) and moved >= _LEAST_MOVE:
            return Move(replace(_entered(state, "trial", now), weights=weights), verdict.reason)
    return Move(state, verdict.reason)


def _timed_out(state: Rollout, policy: RolloutPolicy, now: str, reason: str) -> Move:
    if policy.on_timeout == "pause":
        if state.paused:
            return Move(state, f"{reason} Paused until somebody decides.")
        return Move(replace(state, paused=True, moved_at=now), f"{reason} Paused, as the policy says.")
    return Move(_ended(state, "rolled_back", now), f"{reason} Rolled back, as the policy says.")


def _check_clock(state: Rollout, policy: RolloutPolicy, moment: datetime) -> None:
    known = [_moment(t) for t in (state.started_at, state.entered_at, state.moved_at) if t]
    if known and moment < max(known):
        raise ClockError(
            f"It is {moment.isoformat()}, before the rollout's last move at {max(known).isoformat()}.",
            where=state.id,
            remedy="Mend the clock, or give a later moment.",
        )
    # Whoever looks in time ends a rollout at its deadline. A look so much later comes from a clock that jumped, and
    # must not end what is going on.
    latest = policy.max_days + max(policy.max_days, policy.rollback_days)
    if known and not state.paused and moment > max(known) + timedelta(days=latest):
        raise ClockError(
            f"It is {moment.isoformat()}, {_days(moment - max(known))} days after the rollout's last move.",
            where=state.id,
            remedy="Mend the clock; if it is right, end the rollout with: trellis rollout abort MODEL --why …",
        )


def _first_stage(strategy: Strategy) -> Stage:
    return "warm" if strategy == "blue_green" else "trial"


def _counted(before: Rollout, after: Rollout) -> Rollout:
    return replace(after, number=before.number + 1)


def _entered(state: Rollout, stage: Stage, now: str) -> Rollout:
    return replace(state, stage=stage, entered_at=now, moved_at=now)


def _ended(state: Rollout, stage: Stage, now: str) -> Rollout:
    won = state.newcomer.version if stage == "champion" else ""
    return replace(state, stage=stage, paused=False, winner=won, moved_at=now or state.moved_at)


def _open(state: Rollout, verb: str) -> None:
    if state.final:
        raise ExpiredRolloutError(
            f"The rollout of {state.model!r} is over ({state.stage}); there is nothing to {verb}.",
            where=state.id,
            remedy="Start another one.",
        )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ClockError(f"{text!r} is no moment.", remedy="Give it as RFC 3339, 2013-07-01T00:00:00Z.") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):.1f}"
