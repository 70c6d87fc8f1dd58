"""What the planner has to know of a model's traffic: how many labelled rows a day, and how much their losses vary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trellis.contract import ModelSpec
from trellis.errors import DataError
from trellis.settings import Settings

_FEWEST_ROWS = 50


@dataclass(frozen=True)
class Traffic:
    """Numbers for the planner, and in words where they come from."""

    per_day: float
    variance: float
    source: str


def loss_of_traffic(spec: ModelSpec, settings: Settings, *, variance_needed: bool, traffic_needed: bool) -> Traffic:
    """Take both numbers from the champion's labelled predictions.

    Where there are too few, the variance is bounded by what the last gate saw: a loss in [0, 1] of the mean ``m`` has a
    variance of ``m (1 - m)`` at most (Bhatia & Davis 2000, American Mathematical Monthly 107).

    Raises:
        DataError: A number that is needed cannot be had from either.
    """
    loss, labelled, days = _labelled_losses(spec, settings)
    if len(loss) >= _FEWEST_ROWS and days > 0:
        source = f"{labelled:,} labelled predictions of {days:.1f} days"
        return Traffic(labelled / days, float(loss.var(ddof=1)), source)
    if traffic_needed:
        raise DataError(
            f"{spec.name!r} has {len(loss)} labelled predictions, too few to tell its traffic.",
            where=settings.directory("predictions") / spec.name,
            remedy="Say how many labelled rows a day will come: --per-day.",
        )
    if not variance_needed:
        return Traffic(0.0, 0.0, "as given")
    mean = _loss_at_the_gate(spec, settings)
    if mean is None:
        raise DataError(
            f"{spec.name!r} has neither labelled predictions nor a gate's decision to take a loss variance from.",
            remedy="Give one with --variance.",
        )
    return Traffic(0.0, mean * (1 - mean), f"the most that a mean loss of {mean:.4f} at the gate allows")


def _labelled_losses(spec: ModelSpec, settings: Settings) -> tuple[NDArray[np.float64], int, float]:
    """Return the champion's losses, the labelled predictions of all versions, and the days they span."""
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.prediction_log import read_labels, read_predictions
    from trellis.ledger import labelled

    home, plan = settings.directory(), PlanStore(settings.database_url).current(spec.name)
    rows, labels = read_predictions(home, spec.name), read_labels(home, spec.name)
    if plan is None or not len(rows) or not len(labels):
        return np.empty(0), 0, 0.0
    found = labelled(spec, rows, labels)
    champions = (found.rows["version"] == plan.champion.version).to_numpy()
    days = float((found.times.max() - found.times.min()) / np.timedelta64(1, "D"))
    return found.loss[found.told & champions], int(found.told.sum()), days


def _loss_at_the_gate(spec: ModelSpec, settings: Settings) -> float | None:
    if spec.task == "regression":
        return None  # its loss has no upper end
    from trellis.adapters.database import engine
    from trellis.adapters.decision_store import DecisionStore

    gates = DecisionStore(engine(settings.database_url)).list(spec.name, "gate")
    if not gates:
        return None
    blocks = gates[-1].inputs["inputs"]["blocks"]
    return float(sum(blocks["candidate"]) / sum(blocks["rows"]))
