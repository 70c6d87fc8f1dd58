"""What a drift verdict is made of, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from trellis.drift.causes import HarmEstimate, SegmentLoss
from trellis.drift.faults import Fault
from trellis.drift.joint import Signal
from trellis.drift.outcomes import Outcomes, OutcomeShift
from trellis.drift.reference import Reference
from trellis.drift.shift import Shift
from trellis.drift.summary import Window
from trellis.sums import LossSums


@dataclass(frozen=True)
class DriftInputs:
    """All that a drift verdict is made of.

    Attributes:
        model: The model's name.
        version: The version whose training data are the reference.
        reference: Its baseline.
        windows: Consecutive windows of served rows, oldest first; the last is judged, the others are its history.
        views: Feature view of every column; ``request`` for what callers send, ``prediction`` for the score.
        losses: Loss of every window as far as labels are known, parallel to ``windows``; empty without labels.
        units: Declared unit by column, where there is one.
        sla_hours: Largest healthy age of the features by view, in hours.
        outcomes: Scores and labels of every window, parallel to ``windows``; empty where the reference has none.
        signals: What joint tests found in the judged window's rows.
        segments: Losses by segment, before and now.
        streams: When streaming detectors fired on the labelled losses, RFC 3339, by detector: they date a change and
            raise no alarm, for they know no budget.
        looks: Looks already taken that end within 30 days of this one: the budget's share of this one depends on it.
        level: That share: the chance of a false alarm that the look may take. 0 for a look between two due ones, which
            asks nothing that spends the budget: only certain faults count. None in evidence of before it was kept.
        estimate: What the change costs, as the performance ledger estimates it; realised losses decide without it.
    """

    model: str
    version: str
    reference: Reference
    windows: tuple[Window, ...]
    views: dict[str, str]
    losses: tuple[LossSums, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    sla_hours: dict[str, float] = field(default_factory=dict)
    outcomes: tuple[Outcomes, ...] = ()
    signals: tuple[Signal, ...] = ()
    segments: tuple[SegmentLoss, ...] = ()
    streams: dict[str, tuple[str, ...]] = field(default_factory=dict)
    looks: int = 0
    level: float | None = None
    estimate: HarmEstimate | None = None


@dataclass(frozen=True)
class Harm:
    """What the shift costs, where labels tell.

    Attributes:
        window: Index of the newest window with enough labels.
        labels: Labelled rows in it.
        increase: Mean loss minus the reference's.
        low: Lower end of its 95 % interval.
        p_value: One-sided: that the loss has not risen.
        real: Whether the increase is both above the policy's and sure.
        high: Upper end of the interval.
    """

    window: int
    labels: int
    increase: float
    low: float
    p_value: float
    real: bool = False
    high: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """A verdict's findings in a form that programs can read.

    Attributes:
        outcome: STABLE, DRIFT, UPSTREAM_FAULT or INSUFFICIENT.
        kind: ``none``; ``gradual`` or ``sudden`` for a population; ``concept``; ``label``; ``scores`` (only what is
            predicted moved); ``joint`` (only ties between columns moved); or the fault's kind.
        action: ``none``, ``watch``, ``retrain``, ``fix upstream`` or ``wait``.
        reason: One sentence with the numbers.
        shifts: Every watched column, strongest first.
        faults: Every fault found.
        views: Views concerned.
        since: Start of the first window concerned.
        harm: None where labels do not allow to say.
        alpha: Level at which the look was taken.
        missing_rows: Rows still needed for a verdict.
        cause: ``data drift``, ``concept drift``, ``label drift``, ``upstream fault`` or ``none``.
        severity: ``none``, ``info``, ``warning`` or ``critical``, decided by the harm where it is known.
        drivers: Columns that drive it, strongest first.
        segments: Segments whose loss has risen most, worst first.
        links: Scores and labels against the reference's; None where labels do not allow to say.
        signals: Joint tests, with adjusted p-values.
        confirmed: Streaming detectors that fired since the change.
    """

    outcome: str
    kind: str
    action: str
    reason: str
    shifts: tuple[Shift, ...] = ()
    faults: tuple[Fault, ...] = ()
    views: tuple[str, ...] = ()
    since: str | None = None
    harm: Harm | None = None
    alpha: float = 1.0
    missing_rows: int = 0
    cause: str = "none"
    severity: str = "none"
    drivers: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    links: OutcomeShift | None = None
    signals: tuple[Signal, ...] = ()
    confirmed: tuple[str, ...] = ()
