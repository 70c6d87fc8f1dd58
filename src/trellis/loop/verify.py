"""Whether a new champion does what it was trained for: CONFIRMED, REGRESSED, HOLD or INCONCLUSIVE."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

from trellis.contract import RetrainPolicy
from trellis.decision import Check, Verdict
from trellis.sums import LossSums

# The new version has passed a concurrent comparison already; only a clear sign takes it back.
CONFIDENCE = 0.99


@dataclass(frozen=True)
class VerifyInputs:
    """All that the check after a promotion is made of.

    Attributes:
        model: The model's name.
        version: The new champion.
        replaced: The version it replaced.
        now: Event time, RFC 3339.
        days: Days of event time since the first of its labels can be due, the declared delay after it took over.
        margin: Largest acceptable increase of the mean per-row loss.
        new: Losses of the new champion since it took over, by day; here and below of rows past the declared delay.
        old: Losses of the replaced version from a week before the decision to retrain, by day.
    """

    model: str
    version: str
    replaced: str
    now: str
    days: float
    margin: float
    new: LossSums = field(default_factory=LossSums)
    old: LossSums = field(default_factory=LossSums)


def decide_verify(inputs: VerifyInputs, policy: RetrainPolicy) -> Verdict:
    """Hold a new champion against the version it replaced; pure.

    It is decided once, when ``verify_labels`` are known or ``verify_days`` have passed: nobody looks twice.
    The difference of the two mean losses is taken as normal with a standard error over days (see ``trellis.sums``). The
    two were not served at the same time, so a change of season can pass for harm; hence the level of 99 %.
    """
    enough = inputs.new.rows >= policy.verify_labels
    labels = Check(
        "labels",
        enough,
        f"{inputs.new.rows:,} labelled predictions of version {inputs.version}, {policy.verify_labels:,} needed",
        inputs.new.rows,
        policy.verify_labels,
    )
    if not enough and inputs.days < policy.verify_days:
        needs = {"labels": policy.verify_labels - inputs.new.rows, "days": policy.verify_days - inputs.days}
        return Verdict("HOLD", f"Too early: {labels.text}.", (labels,), needs)
    error = math.hypot(inputs.new.standard_error, inputs.old.standard_error)
    if not enough or math.isnan(error):
        why = f"{inputs.days:.1f} days have passed and the labels do not tell: {labels.text}."
        return Verdict("INCONCLUSIVE", why, (labels,))
    difference = inputs.new.mean - inputs.old.mean
    low = difference - NormalDist().inv_cdf(CONFIDENCE) * error
    harm = Check(
        "harm",
        low <= inputs.margin,
        f"mean loss {inputs.new.mean:.4f} after {inputs.old.mean:.4f} of version {inputs.replaced}: {difference:+.4f}, "
        f"surely above {low:+.4f} (99 %), at most {inputs.margin:+.4f} is accepted",
        low,
        inputs.margin,
    )
    outcome = "CONFIRMED" if harm.passed else "REGRESSED"
    return Verdict(outcome, f"{harm.text.capitalize()}.", (harm, labels))
