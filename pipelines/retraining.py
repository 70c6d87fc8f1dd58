"""How the loop trains: which rows, from which start, and the candidate that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter

from pipelines.data import Tables, TrainingSet, model_code, prepare_data
from pipelines.moments import moment, utc
from pipelines.plugins import plugin_named
from pipelines.training import Candidate, Outcome, Recipe, conformance, train, train_model
from trellis.loop import Cycle

_CANDIDATE = TypeAdapter(Candidate)


@dataclass(frozen=True)
class Retraining:
    """Makes and judges the candidate of a cycle.

    Attributes:
        model: Whose.
        recipe: How to train; the spec's first recipe if None.
        since: Start of the rows' period; empty for what the policy's method says.
        tables: Raw tables to use instead of a fresh ingest.
    """

    model: str
    recipe: Recipe | None = None
    since: str = ""
    tables: Tables | None = None

    def train(self, cycle: Cycle) -> Mapping[str, Any]:
        """Train a candidate on what was known when the cycle was decided on; return it as JSON.

        Its seed follows from the decision: the same cycle makes the same candidate, however often it is begun.
        """
        recipe = self.recipe or Recipe(plugin_named(self.model).spec.recipes[0])
        seeded = replace(recipe, seed=int(cycle.decision.rpartition("-")[2][:6], 16))
        code = model_code(self.model)
        candidate = train(self.model, code, self._rows(cycle), seeded)
        conformance(candidate, code)
        work: Mapping[str, Any] = _CANDIDATE.dump_python(candidate, mode="json")
        return work

    def gate(self, cycle: Cycle) -> Outcome:
        """Judge the cycle's candidate, register it and plan its rollout; the training's step is not done again."""
        made = _CANDIDATE.validate_python(cycle.work)
        return train_model(self.model, made.recipe, training_set=made.training_set, at=cycle.at)

    def _rows(self, cycle: Cycle) -> TrainingSet:
        policy, since = plugin_named(self.model).spec.retrain, self.since
        if not since and policy.method == "window":
            since = utc((moment(cycle.at) - timedelta(days=policy.window_days)).isoformat())
        return prepare_data(self.model, since, cycle.at, self.tables)
