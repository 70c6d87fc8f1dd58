"""Rollout: the plan that the router executes, and the verdicts that change it."""

from trellis.rollout.plan import (
    RolloutPlan,
    Shadow,
    Variant,
    first_plan,
    previous_champion,
    promoted,
    unit_position,
    with_canary,
    without_canary,
)

__all__ = [
    "RolloutPlan",
    "Shadow",
    "Variant",
    "first_plan",
    "previous_champion",
    "promoted",
    "unit_position",
    "with_canary",
    "without_canary",
]
