"""What training hands from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.data import TrainingSet
from trellis.gates import GateInputs


@dataclass(frozen=True)
class Recipe:
    """How to train: everything beside data and code that may change the outcome."""

    name: str
    seed: int = 2013
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A trained and sealed artifact that no version names yet.

    Attributes:
        model, recipe: What it is.
        path: Directory of the artifact.
        digest: Its digest.
        training_set: What it was trained on.
        start: Version that learned these rows; empty where it was trained from nothing.
    """

    model: str
    recipe: Recipe
    path: str
    digest: str
    training_set: TrainingSet
    start: str = ""


@dataclass(frozen=True)
class Rival:
    """The champion a candidate is compared with."""

    version: str
    path: str
    digest: str


@dataclass(frozen=True)
class Evaluation:
    """What a candidate did on rows it has not seen.

    Attributes:
        metrics: Name to lower bound, value and upper bound, at 95 %.
        evidence: The gate's inputs.
        rival: Version of the champion on the same rows; empty without one.
    """

    metrics: Mapping[str, tuple[float, float, float]]
    evidence: GateInputs
    rival: str


@dataclass(frozen=True)
class Outcome:
    """What a training flow ends with.

    Attributes:
        version: The registered version.
        decision: Id of the gate's decision.
        verdict: Its outcome.
        reason: Its sentence.
        metrics: As in the evaluation.
        revision: Revision of the rollout plan that names the version; 0 where none does.
    """

    version: str
    decision: str
    verdict: str
    reason: str
    metrics: Mapping[str, tuple[float, float, float]]
    revision: int
