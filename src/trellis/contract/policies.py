"""The policies of a model's declaration: how it is judged, rolled out, watched and trained again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from trellis.errors import ContractError

Strategy = Literal["canary", "blue_green", "ab", "bandit"]
RetrainMethod = Literal["full", "window", "incremental", "online", "ensemble"]


def require(condition: bool, name: str, problem: str) -> None:
    """Refuse a declaration that means nothing.

    Raises:
        ContractError: The condition does not hold.
    """
    if not condition:
        raise ContractError(f"The declaration of {name!r} {problem}.", remedy="Mend it in the plug-in's ModelSpec.")


@dataclass(frozen=True)
class GatePolicy:
    """What a candidate must show offline before it may take traffic.

    Attributes:
        margin: Largest acceptable increase of the mean per-row loss against the champion, in the loss's unit.
        segment_margin: The same within one segment.
        confidence: Level of every one-sided bound, in (0.5, 1).
        min_rows: Fewest rows for any verdict but HOLD.
        min_segment_rows: Segments below it are pooled into one.
        max_latency_ms: Largest acceptable one-row p95 latency, in milliseconds.
        max_bytes: Largest acceptable artifact, in bytes.
    """

    margin: float = 0.005
    segment_margin: float = 0.03
    confidence: float = 0.95
    min_rows: int = 500
    min_segment_rows: int = 300
    max_latency_ms: float = 50.0
    max_bytes: int = 200_000_000

    def __post_init__(self) -> None:
        """Refuse margins and levels out of range."""
        require(self.margin > 0 and self.segment_margin > 0, "gates", "needs margins above zero")
        require(0.5 < self.confidence < 1, "gates", "needs a confidence between 0.5 and 1")


@dataclass(frozen=True)
class RolloutPolicy:
    """How a promoted candidate takes over.

    Attributes:
        steps: Shares of traffic of the canary, rising, in (0, 1].
        margin: Largest acceptable increase of the mean per-row loss against the champion.
        alpha: Chance of a wrong verdict over the whole rollout, however often it is looked at.
        min_labels: Fewest labelled rows per variant for a verdict.
        max_days: After so many days of event time without a verdict the rollout ends INCONCLUSIVE and is rolled back.
        unit: Request field that keeps a caller on one variant; None splits by prediction id. Verdicts then count
            callers rather than rows, so many are needed; with a few, compare in pairs (``shadow_rate``). Not for a
            bandit.
        strategy: ``canary`` raises the share by ``steps`` as evidence comes in. ``blue_green`` warms the candidate,
            gives it all traffic at once and keeps the old version warm for ``rollback_days``. ``ab`` splits the last
            of ``steps`` evenly among the candidates until one is better beyond doubt. ``bandit`` moves traffic to
            whichever does best, ``floor`` for each at least.
        shadow_rate: Share of requests that the candidate scores, without answering, before anything else; 0 skips this.
            A canary goes on doing so for what the champion answers: the same rows tell more than a split.
        shadow_days: How long it does, in days of event time.
        rollback_days: How long a blue-green rollout keeps the old version warm, in days of event time.
        floor: Smallest share of any arm of a bandit.
        max_slowdown: Largest acceptable relative increase of the 95th percentile of latency, for example 0.1; None
            holds latencies to the gate's limit only.
        on_timeout: What happens where ``max_days`` pass without a verdict: ``roll_back``, or ``pause`` for a person.
    """

    steps: tuple[float, ...] = (0.1, 0.5)
    margin: float = 0.02
    alpha: float = 0.05
    min_labels: int = 200
    max_days: float = 30.0
    unit: str | None = None
    strategy: Strategy = "canary"
    shadow_rate: float = 0.0
    shadow_days: float = 1.0
    rollback_days: float = 1.0
    floor: float = 0.05
    max_slowdown: float | None = None
    on_timeout: Literal["roll_back", "pause"] = "roll_back"

    def __post_init__(self) -> None:
        """Refuse steps that do not rise, or a level out of range."""
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        require(
            bool(self.steps) and rising and self.steps[0] > 0 and self.steps[-1] <= 1,
            "rollout",
            "needs rising steps in (0, 1]",
        )
        require(0 < self.margin < math.inf, "rollout", "needs a margin above zero")
        require(self.min_labels >= 1, "rollout", "needs min_labels of one or more")
        require(0 < self.alpha < 0.5, "rollout", "needs an alpha between 0 and 0.5")
        require(self.strategy in get_args(Strategy), "rollout", f"knows the strategies {get_args(Strategy)}")
        require(
            self.unit is None or self.strategy != "bandit",
            "rollout",
            "splits by a unit, which a bandit cannot: it counts rows, and those of a unit are not independent",
        )
        require(self.on_timeout in ("roll_back", "pause"), "rollout", "needs on_timeout roll_back or pause")
        require(0 <= self.shadow_rate <= 1, "rollout", "needs a shadow_rate in [0, 1]")
        require(0 < self.floor < 0.5, "rollout", "needs a floor between 0 and 0.5")
        require(
            self.max_days > 0 and 0 <= self.shadow_days < self.max_days and self.rollback_days >= 0,
            "rollout",
            "needs max_days above zero, shadow_days below it and rollback_days of zero or more",
        )
        require(self.max_slowdown is None or self.max_slowdown > 0, "rollout", "needs a max_slowdown above zero")


@dataclass(frozen=True)
class DriftPolicy:
    """When a difference between training and now is worth a person's attention.

    Attributes:
        false_alarms_per_month: Budget of alarms where nothing changed, over all features and looks.
        looks_per_month: How often the model is looked at.
        psi_warn: Population stability index from which a feature counts as shifted (the familiar 0.1).
        psi_alarm: From which it counts as strongly shifted (the familiar 0.25).
        min_rows: Fewest rows in a window for any verdict.
        max_loss_increase: Increase of the mean per-row loss over training's that counts as harm.
    """

    false_alarms_per_month: float = 0.5
    looks_per_month: float = 8.0
    psi_warn: float = 0.1
    psi_alarm: float = 0.25
    min_rows: int = 500
    max_loss_increase: float = 0.02


@dataclass(frozen=True)
class QualityPolicy:
    """How good the rows have to be that a model is served with.

    Attributes:
        max_skew: Largest acceptable share of rows with a feature that differs from the one recomputed offline.
        skew_tolerance: Largest relative difference of a feature that counts as none.
        max_invalid: Share of rows out of a field's declared range, set or nullability from which it is a finding.
        max_duplicates: Share of rows that repeat another's fields and time from which it is a finding.
        max_outliers: Share of rows more isolated than 99 % of earlier rows from which it is a finding.
    """

    max_skew: float = 0.01
    skew_tolerance: float = 1e-4
    max_invalid: float = 0.001
    max_duplicates: float = 0.01
    max_outliers: float = 0.05

    def __post_init__(self) -> None:
        """Refuse shares out of range."""
        shares = (self.max_skew, self.skew_tolerance, self.max_invalid, self.max_duplicates, self.max_outliers)
        require(all(0 <= share < 1 for share in shares), "quality", "needs shares in [0, 1)")


@dataclass(frozen=True)
class RetrainPolicy:
    """When and how the loop trains again by itself.

    Attributes:
        cooldown_days: Shortest time between two retrainings, in days of event time.
        budget_per_month: Most retrainings in 30 days.
        min_new_labels: Fewest labels newer than the champion's training data.
        schedule_days: Train again when the last training is so many days ago; None for no schedule.
        label_volume: Train again when so many labels are newer than the training data; None for no such trigger.
        method: What a retraining starts from and which rows it sees. ``full``: from nothing, every row. ``window``:
            from nothing, those of the last ``window_days``. ``incremental``: the champion learns the rows since its own
            in one go. ``online``: the same in their order, ``online_rows`` at a time; these two need the plug-in's
            ability ``LearnsOnline``. ``ensemble``: a new member from nothing on the rows of the last ``window_days``
            joins the champion's, and all are weighed on the newest rows (see ``trellis.ensemble``).
        window_days: Days of rows of ``window``, and of each member of ``ensemble``.
        online_rows: Rows of one step of ``online``.
        members: Most members of ``ensemble``.
        decay_days: Half-life of a row's weight where members are weighed, in days.
        max_attempts: How often a training is tried before the retraining counts as failed.
        max_failures: After so many retrainings in a row that led to no better version, the circuit breaker opens.
        breaker_days: How long it stays open before one more retraining is tried, in days of event time.
        verify_labels: Labelled predictions of a new champion, past the declared delay, after which it is held against
            the one it replaced.
        verify_days: How long is waited for them from when the first can be due, in days of event time.
    """

    cooldown_days: float = 14.0
    budget_per_month: int = 2
    min_new_labels: int = 2_000
    schedule_days: float | None = None
    label_volume: int | None = None
    method: RetrainMethod = "full"
    window_days: float = 90.0
    online_rows: int = 256
    members: int = 5
    decay_days: float = 14.0
    max_attempts: int = 3
    max_failures: int = 3
    breaker_days: float = 30.0
    verify_labels: int = 500
    verify_days: float = 14.0

    def __post_init__(self) -> None:
        """Refuse what would never train, or never stop."""
        require(self.method in get_args(RetrainMethod), "retrain", f"knows the methods {get_args(RetrainMethod)}")
        require(self.cooldown_days >= 0 and self.budget_per_month >= 0, "retrain", "needs a cooldown and a budget >= 0")
        days = min(self.window_days, self.breaker_days, self.decay_days)
        require(days > 0 and self.verify_days >= 0, "retrain", "needs days above zero")
        counts = (self.online_rows, self.members, self.max_attempts, self.max_failures, self.verify_labels)
        require(min(counts) >= 1, "retrain", "needs counts of one or more")
        for name in ("schedule_days", "label_volume"):
            value = getattr(self, name)
            require(value is None or value > 0, "retrain", f"needs {name} above zero, or None")
