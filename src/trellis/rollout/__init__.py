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
from trellis.rollout.release import Release, bound, release_of, require_served
from trellis.rollout.stream import LossStream
from trellis.rollout.verdict import CanaryInputs, next_share, ready_to_step

__all__ = [
    "CanaryInputs",
    "Exposure",
    "LossStream",
    "Release",
    "RolloutPlan",
    "Shadow",
    "Variant",
    "bound",
    "exposures_of",
    "first_plan",
    "next_share",
    "previous_champion",
    "promoted",
    "ready_to_step",
    "release_of",
    "require_served",
    "unit_position",
    "with_canary",
    "without_canary",
]
