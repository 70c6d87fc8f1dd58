"""Rollout: the plan that the router executes, and the verdicts that change it."""

from trellis.rollout.guards import Exposure, exposures_of
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
from trellis.rollout.stream import LossStream
from trellis.rollout.verdict import CanaryInputs, next_share, ready_to_step

__all__ = [
    "CanaryInputs",
    "Exposure",
    "LossStream",
    "RolloutPlan",
    "Shadow",
    "Variant",
    "exposures_of",
    "first_plan",
    "next_share",
    "previous_champion",
    "promoted",
    "ready_to_step",
    "unit_position",
    "with_canary",
    "without_canary",
]
