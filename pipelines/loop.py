"""The loop: look → explain → retrain when it is worth it. One turn leaves two decisions and at most one training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from pipelines.data import Tables
from pipelines.moments import moment
from pipelines.plugins import plugin_named
from pipelines.rollout import mirror
from pipelines.steps import flow, step
from pipelines.stores import decisions, plans, registry
from pipelines.training import Outcome, Recipe, train_model
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.decision import Decision, decision_of
from trellis.drift import RetrainInputs, decide_retrain
from trellis.errors import DataError
from trellis.settings import settings

# The watch job tells its verdict by its exit code; anything else is a failure of the job itself.
_VERDICTS = {0, 3, 4, 5}


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        decision: The drift decision.
        action: What it recommends: ``retrain``, ``watch``, ``fix upstream``, ``wait`` or ``none``.
        report: The Evidently workspace, if a report was written.
        alert: File of the open alert, if there is one.
    """

    decision: Decision
    action: str
    report: str | None
    alert: str | None


@dataclass(frozen=True)
class Turn:
    """What one turn of the loop did."""

    look: Look
    retrain: Decision
    outcome: Outcome | None


@step(keep=False)
def look(model: str, until: str, report: bool = True) -> Look:
    """Run the watch job in its own process and keep its decision.

    Raises:
        DataError: The job failed.
    """
    command = [sys.executable, "-m", "monitoring", "watch", model, "--until", until, "--json"]
    done = subprocess.run(command + ([] if report else ["--no-report"]), capture_output=True, text=True)
    if done.returncode not in _VERDICTS:
        raise DataError(
            f"The watch job of {model!r} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}",
            where=" ".join(command[1:]),
            remedy="Run it by hand to see more.",
        )
    result: dict[str, Any] = json.loads(done.stdout)
    decision = TypeAdapter(Decision).validate_python(result["decision"])
    decisions().record(decision)
    return Look(decision, result["diagnosis"]["action"], result["report"], result["alert"])


@step(keep=False)
def weigh_retraining(model: str, now: str, found: Look) -> Decision:
    """Decide whether to train again, from what the look found, the trainings so far and the labels since."""
    policy = plugin_named(model).spec.retrain
    earlier = decisions().list(model, "retrain")
    taken = next((d for d in earlier if d.at == now and d.verdict.outcome == "RETRAIN"), None)
    if taken is not None:  # this turn was killed, or is run again: what was decided is finished, not weighed anew
        return taken
    trained = _trained(model, earlier)
    inputs = RetrainInputs(
        model=model,
        now=now,
        drift_outcome=found.decision.verdict.outcome,
        drift_action=found.action,
        drift_reason=found.decision.verdict.reason,
        trained_at=trained,
        new_labels=_new_labels(model, trained[0] if trained else "", now),
    )
    decision = decision_of(
        "retrain",
        model=model,
        subject=f"after {found.decision.id}",
        at=now,
        inputs=inputs,
        policy=policy,
        verdict=decide_retrain(inputs, policy),
    )
    decisions().record(decision)
    return decision


@flow
def turn_loop(
    model: str,
    now: str,
    recipe: Recipe | None = None,
    since: str = "",
    tables: Tables | None = None,
    report: bool = True,
) -> Turn:
    """Look once; train again if the decision says so.

    Args:
        model: Whose loop.
        now: Event time of the look, RFC 3339.
        recipe: How to train; the spec's first recipe if not given.
        since: Start of the training period, RFC 3339; empty for everything.
        tables: Raw tables to use instead of a fresh ingest.
        report: Whether the look writes a report, which takes some seconds.
    """
    mirror(model)
    found = look(model, now, report)
    decision = weigh_retraining(model, now, found)
    if decision.verdict.outcome != "RETRAIN":
        return Turn(found, decision, None)
    # The seed follows from the decision, so that starting the same turn again trains the same model.
    chosen = recipe or Recipe(plugin_named(model).spec.recipes[0])
    seeded = replace(chosen, seed=int(decision.id.rpartition("-")[2][:6], 16))
    return Turn(found, decision, train_model(model, seeded, since=since, until=now, tables=tables))


def _trained(model: str, earlier: Sequence[Decision]) -> tuple[str, ...]:
    """Return until when the champion's data reach, and when the loop has trained since, oldest first.

    What people train by hand counts for neither cooldown nor budget: both bound what the loop does by itself.
    """
    plan = plans().current(model)
    until = registry().version(model, plan.champion.version).tags.get("until", "") if plan else ""
    loops = [d.at for d in earlier if d.verdict.outcome == "RETRAIN"]
    return tuple(sorted({*loops, *([until] if until else [])}))


def _new_labels(model: str, since: str, now: str) -> int:
    """Count predictions made since the last training whose label is known."""
    home, until = settings().directory(), moment(now)
    start = moment(since) if since else until - timedelta(days=3650)
    made = read_predictions(home, model, since=start, until=until)["id"].to_numpy(str)
    labels = read_labels(home, model)
    known = labels.loc[pd.to_datetime(labels["observed_at"], utc=True) <= pd.Timestamp(until), "id"].to_numpy(str)
    return int(np.isin(made, known).sum())
