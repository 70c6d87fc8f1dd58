"""The stores of the settings, opened once per process."""

from __future__ import annotations

from functools import cache

from trellis.adapters.database import engine
from trellis.adapters.decision_store import DecisionStore
from trellis.adapters.loop_store import LoopStore
from trellis.adapters.plan_store import PlanStore
from trellis.adapters.registry import ModelRegistry
from trellis.settings import settings


@cache
def registry() -> ModelRegistry:
    """Return the model registry."""
    return ModelRegistry(settings().tracking_uri, settings().directory("mlflow", "artifacts"))


@cache
def plans() -> PlanStore:
    """Return the store of rollout plans."""
    return PlanStore(settings().database_url)


@cache
def decisions() -> DecisionStore:
    """Return the journal of decisions."""
    return DecisionStore(engine(settings().database_url))


@cache
def loops() -> LoopStore:
    """Return the store of loops."""
    return LoopStore(settings().database_url)
