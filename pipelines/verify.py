"""The evidence of the check after a promotion, read from the logs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from pipelines.arms import labelled
from pipelines.moments import moment
from trellis.adapters.plan_store import Change
from trellis.adapters.prediction_log import read_labels, read_predictions
from trellis.contract import ModelSpec
from trellis.loop import Cycle, VerifyInputs
from trellis.settings import settings
from trellis.sums import LossSums, loss_sums

# The replaced version is judged from so long before the decision to retrain.
_BEFORE = timedelta(days=7)


def verify_inputs(spec: ModelSpec, cycle: Cycle, now: str, taken_over: str, history: Sequence[Change]) -> VerifyInputs:
    """Return the losses of a cycle's version since it took over, and of the one it replaced.

    Args:
        spec: The model's declaration.
        cycle: The retraining.
        now: Event time up to which predictions and labels count; labels only of rows past the declared delay.
        taken_over: Event time at which its version became the champion.
        history: Every change of the model's plan.
    """
    home, until = settings().directory(), moment(now)
    taken = moment(taken_over)
    started = moment(cycle.at) - _BEFORE
    rows = read_predictions(home, spec.name, since=started, until=until)
    # As champion only: what a canary saw has been weighed already.
    reigns = {c.plan.revision: c.plan.champion.version for c in history}
    sums = {cycle.version: LossSums(), cycle.champion: LossSums()}
    if len(rows):
        # The replaced version's labels have all come; the new one's count once they can have, quick ones or not.
        found = labelled(spec, rows, read_labels(home, spec.name), until).due(spec, until)
        version = found.rows["version"].to_numpy(str)
        champion = found.rows["revision"].map(reigns).to_numpy(str)
        day = found.times.astype("datetime64[D]")
        since = np.datetime64(taken.astimezone(UTC).replace(tzinfo=None), "us")
        for name in sums:
            mine = (version == name) & ~np.isnan(found.loss)
            if name == cycle.version:
                mine &= (champion == name) & (found.times >= since)
            sums[name] = loss_sums(found.loss[mine], day[mine])
    return VerifyInputs(
        model=spec.name,
        version=cycle.version,
        replaced=cycle.champion,
        now=now,
        days=max(0.0, _days(until, taken + timedelta(hours=spec.target.delay_hours))),
        margin=spec.rollout.margin,
        new=sums[cycle.version],
        old=sums[cycle.champion],
    )


def _days(later: datetime, earlier: datetime) -> float:
    return round((later - earlier) / timedelta(days=1), 6)
