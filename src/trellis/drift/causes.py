"""The name of the cause: data drift, concept drift, label drift or an upstream fault, with what drives it and how bad.

Labels tell three of them apart by what each must leave alone (see ``trellis.drift.outcomes``): label drift leaves the
score given the label, data drift leaves the label given the score, and a concept that has changed leaves neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trellis.contract import DriftPolicy
from trellis.drift.budget import DISCOVERY_RATE
from trellis.drift.outcomes import OutcomeShift
from trellis.drift.statistics import benjamini_yekutieli, normal_sf
from trellis.sums import LossSums

DATA, CONCEPT, LABEL, UPSTREAM, NONE = "data drift", "concept drift", "label drift", "upstream fault", "none"
# Effects (Cohen's w) below it are not worth a name; half way between small and medium.
LEAST_EFFECT = 0.15
_LEAST_ROWS = 100


@dataclass(frozen=True)
class HarmEstimate:
    """What the change costs, as the performance ledger estimates it.

    Attributes:
        increase: Of the mean loss over the reference's.
        low: Lower end of its 95 % interval.
        high: Upper end.
        source: How it is known: ``estimated``, ``corrected`` or ``realised``.
    """

    increase: float
    low: float
    high: float
    source: str = "realised"


@dataclass(frozen=True)
class SegmentLoss:
    """Losses of one segment, before and now.

    Attributes:
        column: The segment's column.
        value: Its value.
        before: Sums over the windows before.
        now: Sums over the newest labelled window.
    """

    column: str
    value: str
    before: LossSums
    now: LossSums


def cause_of_links(shift: OutcomeShift, adjusted: Sequence[float], alpha: float) -> str:
    """Name what labels and scores together say.

    Args:
        shift: The window's outcomes against the reference's.
        adjusted: Adjusted p-values of its label, score-given-label and label-given-score questions, in this order.
        alpha: The look's level.

    Returns:
        ``concept drift``, ``label drift``, ``data drift`` or ``none``.
    """
    questions = (shift.label, shift.score_given_label, shift.label_given_score)
    label, score, link = (
        p <= alpha and effect >= LEAST_EFFECT for (effect, _), p in zip(questions, adjusted, strict=True)
    )
    if link:
        # Both links broken is no single margin's doing; where one breaks far less than the other, it is the margin's.
        if shift.score_given_label[0] >= max(LEAST_EFFECT, shift.label_given_score[0] / 3):
            if shift.label_given_score[0] < shift.score_given_label[0] / 3:
                return DATA
            return CONCEPT
        return LABEL if label else CONCEPT
    return DATA if score else LABEL if label else NONE


def driving_segments(segments: Sequence[SegmentLoss], policy: DriftPolicy) -> tuple[str, ...]:
    """Return the segments whose loss has risen by more than the policy allows, worst first.

    Their false discovery rate is held at one in ten under any dependence (Benjamini & Yekutieli 2001).
    """
    found: list[tuple[float, float, str]] = []
    for part in segments:
        if part.now.rows < _LEAST_ROWS or part.before.rows < _LEAST_ROWS:
            continue
        error = math.hypot(part.now.standard_error, part.before.standard_error)
        increase = part.now.mean - part.before.mean
        if error > 0:
            found.append((increase, normal_sf(increase / error), f"{part.column}={part.value}"))
    adjusted = benjamini_yekutieli([p for _, p, _ in found])
    kept = [
        (increase, name)
        for (increase, _, name), p in zip(found, adjusted, strict=True)
        if p <= DISCOVERY_RATE and increase >= policy.max_loss_increase
    ]
    return tuple(name for _, name in sorted(kept, reverse=True))


def severity_of(cause: str, harm: HarmEstimate | None, policy: DriftPolicy) -> str:
    """Return ``none``, ``info``, ``warning`` or ``critical``: the harm decides, where it is known.

    A fault is critical unless it is known to cost nothing: it also poisons the data that the next model learns from.
    A drift is critical where it surely costs more than the policy allows, and merely worth knowing where it surely
    does not.
    """
    if cause == NONE:
        return "none"
    if harm is None or not all(math.isfinite(n) for n in (harm.low, harm.high)):
        return "critical" if cause == UPSTREAM else "warning"
    if harm.low >= policy.max_loss_increase:
        return "critical"
    if harm.high < policy.max_loss_increase:
        return "warning" if cause == UPSTREAM else "info"
    return "critical" if cause == UPSTREAM else "warning"
