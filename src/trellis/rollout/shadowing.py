"""The verdict of the shadow stage: may a version that has only scored in the shadow begin to answer?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trellis.contract import RolloutPolicy
from trellis.decision import Check, Verdict
from trellis.rollout.pairs import Pairs
from trellis.rollout.stream import reach
from trellis.rollout.verdict import SHADOW_FAILS, pairs_alpha

# A shadow that fails on more requests than this, beyond doubt, would be replaced by the champion on these.
WORST_FAILURES = 0.01


@dataclass(frozen=True)
class ShadowInputs:
    """All that a shadow's verdict depends on, beside the policy.

    Attributes:
        sampled: Predictions that the shadow was given.
        failed: Of these, how many it could not score.
        rows: Labelled predictions that both have scored.
        difference: Sum over these of the shadow's loss less the primary's.
        square: Sum of the squares of these differences.
        days: Event time since the stage began, in days.
        bound: How large a difference can be, see ``Pairs``.
    """

    sampled: int
    failed: int
    rows: int
    difference: float
    square: float
    days: float
    bound: float = 1.0


def decide_shadow(inputs: ShadowInputs, policy: RolloutPolicy) -> Verdict:
    """Say whether a shadow goes on.

    Both have scored the same rows, so the mean of the paired differences tells far more than a split of as many rows.
    Its bounds (``Pairs.bounds``) hold at every look, of this stage and of a canary's trial together: what is spent here
    is taken from the trial's alpha, see ``verdict.pairs_alpha``.

    ROLL_BACK if the shadow fails on too many requests, or its loss is higher, beyond doubt and by more than the margin.
    HOLD below ``min_labels``. PROMOTE, to the next stage and not to champion, if the estimate is within the margin;
    that is prudence and no test, for the canary's verdict follows. Else HOLD.
    """
    alpha = policy.alpha * SHADOW_FAILS
    share = inputs.failed / inputs.sampled if inputs.sampled else 0.0
    smoothed = (inputs.failed + 1) / (inputs.sampled + 2)
    fails = share - reach(inputs.sampled, smoothed * (1 - smoothed), alpha) if inputs.sampled else -math.inf
    broken = fails > WORST_FAILURES
    text = f"The shadow could not score {inputs.failed} of {inputs.sampled} predictions ({share:.2%})"
    scored = Check(
        "failures", not broken, f"{text}{', too many beyond doubt' if broken else ''}.", share, WORST_FAILURES
    )
    if not inputs.sampled:
        scored = Check("failures", None, "No prediction has been shadowed yet.")
    if broken:
        return Verdict("ROLL_BACK", scored.text, (scored,))
    if inputs.rows < policy.min_labels or inputs.rows < 2:
        few = f"{inputs.rows} labelled pairs; {policy.min_labels} are needed."
        labels = Check("labels", None, few, float(inputs.rows), float(policy.min_labels))
        return Verdict("HOLD", few, (labels, scored), {"labels": float(max(policy.min_labels, 2) - inputs.rows)})
    pairs = Pairs(inputs.rows, inputs.difference, inputs.square, inputs.bound)
    mean, (lower, _) = pairs.mean, pairs.bounds(pairs_alpha(policy))
    harmful = lower > 0 and mean > policy.margin
    text = (
        f"Mean loss of the shadow less the primary's {mean:+.4f} on the same {inputs.rows} rows (lower bound "
        f"{lower:+.4f}), margin {policy.margin:g}."
    )
    passed = False if harmful else (True if mean <= policy.margin else None)
    loss = Check("paired_loss", passed, text, mean, policy.margin)
    outcome = "ROLL_BACK" if harmful else ("PROMOTE" if passed else "HOLD")
    return Verdict(outcome, loss.text, (loss, scored))
