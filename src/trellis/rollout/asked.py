"""Which plan a rollout's state asks for, and whether a plan is one of them."""

from __future__ import annotations

from dataclasses import replace

from trellis.contract import RolloutPolicy
from trellis.rollout.document import Rollout
from trellis.rollout.plan import RolloutPlan, Shadow, with_canaries, with_standby

# Of a rollout that went into the shadow under a policy which has no shadow any more.
_SHADOW_RATE = 0.1


def plan_for(state: Rollout, plan: RolloutPlan, policy: RolloutPolicy) -> RolloutPlan:
    """Return the plan that a state asks for, on top of what else ``plan`` says.

    Raises:
        InvalidPlanError: The shares make no sense.
    """
    ours = {c.version for c in state.candidates}
    others = tuple(s for s in plan.shadows if s.version not in ours)
    old = replace(state.champion, role="champion", weight=1.0)
    base = replace(plan, salt=state.salt, variants=(old,), shadows=others)
    rate = policy.shadow_rate or _SHADOW_RATE
    watched = tuple(Shadow(c.version, rate, c.location, c.digest) for c in state.candidates)
    if state.stage == "shadow":
        return replace(base, shadows=(*others, *watched))
    if state.stage == "warm":
        return with_standby(base, state.newcomer)
    if state.stage == "trial":
        if state.strategy == "canary" and policy.shadow_rate > 0:
            # It goes on scoring what the champion answers: the same rows tell more than a split.
            base = replace(base, shadows=(*others, *watched))
        return with_canaries(base, list(zip(state.candidates, shares(state, policy), strict=True)))
    if state.stage in ("window", "champion"):
        taken = replace(base, variants=(replace(state.newcomer, role="champion", weight=1.0),))
        return with_standby(taken, old) if state.stage == "window" else taken
    return base


def follows(state: Rollout, plan: RolloutPlan, policy: RolloutPolicy) -> bool:
    """Return whether ``plan`` still is of this rollout: the same versions in the same roles, whatever their shares."""
    if state.final:
        return False
    asked = plan_for(state, plan, policy)
    ours = {c.version for c in state.candidates}

    def told(p: RolloutPlan) -> set[tuple[str, str]]:
        roles = {(v.version, v.role) for v in p.variants}
        answering = {v.version for v in p.variants}
        return roles | {(s.version, "shadow") for s in p.shadows if s.version in ours - answering}

    return told(asked) == told(plan)


def shares(state: Rollout, policy: RolloutPolicy) -> tuple[float, ...]:
    """Return the candidates' shares of traffic in a trial."""
    arms = len(state.candidates)
    if state.strategy == "canary":
        return (policy.steps[min(state.step, len(policy.steps) - 1)],)
    if state.strategy == "bandit":
        return state.weights or (1 / (arms + 1),) * arms
    return (policy.steps[-1] / arms,) * arms
