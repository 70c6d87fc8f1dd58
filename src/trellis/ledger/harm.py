"""What a change costs: the expected change of the mean loss against the reference, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from trellis.ledger.loss_model import LossModel
from trellis.ledger.series import LEVEL, Point


@dataclass(frozen=True)
class ExpectedHarm:
    """Change of a version's mean loss in a window against its labelled reference rows.

    Attributes:
        stage: ``estimated``, ``corrected`` or ``realised``: what the change rests on.
        change: Mean loss of the window minus the reference's; above 0 is worse.
        low, high: Ends of the two-sided 95 % interval of the change.
        p_value: One-sided: that the loss has not risen.
        rows: Predictions that it speaks of.
        labels: Labels that it rests on; 0 where estimated.
        reliable: Whether none of the assumptions behind it is known to fail. An estimate that labels contradict, or
            that extrapolates, is not; a corrected or realised value does not need the estimate's concept to hold.
    """

    stage: str
    change: float
    low: float
    high: float
    p_value: float
    rows: int
    labels: int
    reliable: bool


def expected_harm(point: Point, model: LossModel) -> ExpectedHarm | None:
    """Return what a window cost as far as is known; None where nothing is.

    The reference's mean is known from so many days only; its error is that of resampling them. Between an estimate and
    the reference that it was fitted on errors are taken as independent, which is cautious.
    """
    best = point.best
    if best is None:
        return None
    mean = sum(model.mean_draws) / len(model.mean_draws)
    own = sum((draw - mean) ** 2 for draw in model.mean_draws) / (len(model.mean_draws) - 1)
    error = math.sqrt(best.error**2 + own)
    change = best.value - model.mean
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    p_value = NormalDist().cdf(-change / error) if error > 0 else float(change <= 0)
    wrong = {"estimated": {"concept_drift", "extrapolates"}, "corrected": {"selected_labels", "labels_cover_part"}}.get(
        point.stage, set()
    )
    return ExpectedHarm(
        point.stage,
        change,
        change - half,
        change + half,
        p_value,
        point.predictions,
        0 if point.stage == "estimated" else point.labels,
        not wrong & set(point.flags),
    )
