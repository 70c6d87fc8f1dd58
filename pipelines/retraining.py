"""How the loop trains: which rows, from which start, and the candidate that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter

from pipelines.data import Tables, TrainingSet, model_code, prepare_data
from pipelines.fitting import Start
from pipelines.moments import moment, utc
from pipelines.plugins import plugin_named
from pipelines.stores import registry
from pipelines.training import Candidate, Outcome, Recipe, admit, conformance, train
from trellis.adapters.registry import Version
from trellis.adapters.releases import registered_release
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
        policy, champion = plugin_named(self.model).spec.retrain, registry().version(self.model, cycle.champion)
        since, start = self.since, None
        if policy.method in ("window", "ensemble"):
            since = since or utc((moment(cycle.at) - timedelta(days=policy.window_days)).isoformat())
        elif policy.method in ("incremental", "online"):
            since = since or champion.tags.get("until", "")
            rows = policy.online_rows if policy.method == "online" else 0
            start = Start(champion.version, str(champion.location), champion.digest, rows)
        training_set = prepare_data(self.model, since, cycle.at, self.tables)
        if policy.method == "ensemble" and self._same_features(champion, training_set):
            start = Start(
                champion.version, str(champion.location), champion.digest, members=policy.members,
                decay_days=policy.decay_days, until=champion.tags.get("until", ""), joined=cycle.at,
            )  # fmt: skip
        candidate = train(self.model, code, training_set, seeded, start)
        conformance(candidate, code)
        work: Mapping[str, Any] = _CANDIDATE.dump_python(candidate, mode="json")
        return work

    def _same_features(self, champion: Version, rows: TrainingSet) -> bool:
        """Tell whether the champion learned the features that the rows have; else the ensemble begins anew."""
        known = registered_release(registry(), self.model, champion.version)
        return known is None or known.features == rows.definition

    def gate(self, cycle: Cycle) -> Outcome:
        """Judge the cycle's candidate, register it and plan its rollout; the training's step is not done again."""
        return admit(_CANDIDATE.validate_python(cycle.work), cycle.at)
