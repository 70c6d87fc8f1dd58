"""What a model declares about itself: its fields and target, and how it is judged, rolled out and watched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from trellis.errors import ContractError

FieldKind = Literal["float", "int", "bool", "category", "text", "timestamp", "tensor"]
Task = Literal["binary", "multiclass", "regression"]
Strategy = Literal["canary", "blue_green", "ab", "bandit"]
RetrainMethod = Literal["full", "window", "incremental", "online", "ensemble"]

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}$")


@dataclass(frozen=True)
class Field:
    """One named column.

    Attributes:
        name: Lower snake case.
        kind: ``float`` and ``int`` are numbers; ``category`` a string of a closed or open set; ``text`` free text;
            ``timestamp`` UTC, RFC 3339 on the wire and ``datetime64[us]`` in a batch; ``tensor`` a float32 array.
        description: One sentence, with the unit where there is one.
        minimum: Smallest allowed value, inclusive (numbers and tensors).
        maximum: Largest allowed value, inclusive.
        choices: The closed set of a category; None leaves it open.
        max_length: Longest allowed string, in characters.
        shape: Shape of one row of a tensor, for example ``(1, 8, 8)``; empty for scalars.
        nullable: Whether it may be missing: NaN for numbers, None or the empty string for strings.
        example: A value for the API page.
    """

    name: str
    kind: FieldKind
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | None = None
    max_length: int = 256
    shape: tuple[int, ...] = ()
    nullable: bool = False
    example: Any = None

    def __post_init__(self) -> None:
        """Refuse a declaration that means nothing."""
        _require(bool(_NAME.fullmatch(self.name)), self.name, "is not a lower snake case name")
        bounds = (self.minimum, self.maximum)
        _require(None in bounds or bounds[0] <= bounds[1], self.name, f"has an empty range {bounds}")  # type: ignore[operator]
        _require(
            (self.kind == "tensor") == bool(self.shape), self.name, "needs a shape if, and only if, it is a tensor"
        )
        _require(self.choices is None or self.kind == "category", self.name, "has choices but is no category")


@dataclass(frozen=True)
class Target:
    """What is predicted and how its truth arrives.

    Attributes:
        name: The label's name.
        description: Its meaning in one sentence.
        classes: Names of the classes, negative first for a binary target; empty for regression.
        delay_hours: How long after the prediction the truth is usually known, in hours.
    """

    name: str
    description: str
    classes: tuple[str, ...] = ()
    delay_hours: float = 0.0


@dataclass(frozen=True)
class Metric:
    """The metric a model is judged by, computed by the platform (see ``trellis.metrics``).

    Attributes:
        name: One of the platform's metrics for the task, for example ``auc``, ``accuracy`` or ``mae``.
        floor: The worst acceptable value on unseen rows (the largest one where smaller is better).
    """

    name: str
    floor: float


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
        _require(self.margin > 0 and self.segment_margin > 0, "gates", "needs margins above zero")
        _require(0.5 < self.confidence < 1, "gates", "needs a confidence between 0.5 and 1")


@dataclass(frozen=True)
class RolloutPolicy:
    """How a promoted candidate takes over.

    Attributes:
        steps: Shares of traffic of the canary, rising, in (0, 1].
        margin: Largest acceptable increase of the mean per-row loss against the champion.
        alpha: Chance of a wrong verdict over the whole rollout, however often it is looked at.
        min_labels: Fewest labelled rows per variant for a verdict.
        max_days: After so many days of event time without a verdict the rollout ends INCONCLUSIVE and is rolled back.
        unit: Request field that keeps a caller on one variant; None splits by prediction id.
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
        _require(
            bool(self.steps) and rising and self.steps[0] > 0 and self.steps[-1] <= 1,
            "rollout",
            "needs rising steps in (0, 1]",
        )
        _require(0 < self.alpha < 0.5, "rollout", "needs an alpha between 0 and 0.5")
        _require(self.strategy in get_args(Strategy), "rollout", f"knows the strategies {get_args(Strategy)}")
        _require(self.on_timeout in ("roll_back", "pause"), "rollout", "needs on_timeout roll_back or pause")
        _require(0 <= self.shadow_rate <= 1, "rollout", "needs a shadow_rate in [0, 1]")
        _require(0 < self.floor < 0.5, "rollout", "needs a floor between 0 and 0.5")
        _require(
            self.max_days > 0 and 0 <= self.shadow_days < self.max_days and self.rollback_days >= 0,
            "rollout",
            "needs max_days above zero, shadow_days below it and rollback_days of zero or more",
        )
        _require(self.max_slowdown is None or self.max_slowdown > 0, "rollout", "needs a max_slowdown above zero")


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
        _require(all(0 <= share < 1 for share in shares), "quality", "needs shares in [0, 1)")


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
        verify_labels: Labelled predictions of a new champion after which it is held against the one it replaced.
        verify_days: How long is waited for them, in days of event time.
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
        _require(self.method in get_args(RetrainMethod), "retrain", f"knows the methods {get_args(RetrainMethod)}")
        _require(
            self.cooldown_days >= 0 and self.budget_per_month >= 0, "retrain", "needs a cooldown and a budget >= 0"
        )
        days = min(self.window_days, self.breaker_days, self.decay_days)
        _require(days > 0 and self.verify_days >= 0, "retrain", "needs days above zero")
        counts = (self.online_rows, self.members, self.max_attempts, self.max_failures, self.verify_labels)
        _require(min(counts) >= 1, "retrain", "needs counts of one or more")
        for name in ("schedule_days", "label_volume"):
            value = getattr(self, name)
            _require(value is None or value > 0, "retrain", f"needs {name} above zero, or None")


@dataclass(frozen=True)
class ModelSpec:
    """A model's declaration; everything the platform needs to know without running the model.

    Attributes:
        name: Unique lower snake case name.
        version: Version of the plug-in's code and declaration, for example ``1.0``.
        task: ``binary``, ``multiclass`` or ``regression``.
        owner: Who answers for it.
        description: One or two sentences for people.
        request: Fields a caller sends.
        inputs: Names, out of ``request`` and ``features``, that the predictor sees, in order.
        outputs: Columns that the predictor returns; the first is the score: the positive class's probability for
            binary, a tensor of class probabilities for multiclass, the value for regression.
        target: What is predicted.
        metric: What it is judged by.
        features: Fields the feature service adds; a caller may override any by sending it.
        feature_service: Name of the Feast feature service; None where the request carries everything.
        entity_keys: Request fields that are keys of the feature service.
        time_field: Request field with the event time of a prediction; None takes the time of arrival.
        segments: Columns by which quality is also judged.
        recipes: Names of the ways to train it, the default first.
        gates, rollout, drift, quality, retrain: The policies.
        default: Value of every output that is answered where nothing can be scored, for example the base rate; None
            refuses such a request (503).
        settings: Free, declared defaults of the plug-in (hyper-parameters), shown in the model card.
    """

    name: str
    version: str
    task: Task
    owner: str
    description: str
    request: tuple[Field, ...]
    inputs: tuple[str, ...]
    outputs: tuple[Field, ...]
    target: Target
    metric: Metric
    features: tuple[Field, ...] = ()
    feature_service: str | None = None
    entity_keys: tuple[str, ...] = ()
    time_field: str | None = None
    segments: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ("default",)
    gates: GatePolicy = field(default_factory=GatePolicy)
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    drift: DriftPolicy = field(default_factory=DriftPolicy)
    quality: QualityPolicy = field(default_factory=QualityPolicy)
    retrain: RetrainPolicy = field(default_factory=RetrainPolicy)
    default: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a declaration that contradicts itself, naming the model and the part."""
        _require(bool(_NAME.fullmatch(self.name)), self.name, "is not a lower snake case name")
        _require(bool(self.owner and self.description), self.name, "needs an owner and a description")
        bounded = self.task != "regression" or self.rollout.strategy != "bandit"
        _require(bounded, self.name, "cannot be rolled out by a bandit: its loss is not in [0, 1]")
        names = [f.name for f in (*self.request, *self.features)]
        _require(len(names) == len(set(names)), self.name, f"declares a field twice: {_doubles(names)}")
        known, sent = set(names), {f.name for f in self.request}
        for part, used, among in (
            ("inputs", self.inputs, known),
            ("entity_keys", self.entity_keys, sent),
            ("segments", self.segments, known),
            ("time_field", (self.time_field,) if self.time_field else (), sent),
            ("rollout.unit", (self.rollout.unit,) if self.rollout.unit else (), sent),
        ):
            unknown = [name for name in used if name not in among]
            _require(not unknown, self.name, f"names undeclared fields {unknown} in {part}")
        _require(bool(self.inputs and self.outputs and self.recipes), self.name, "needs inputs, outputs and a recipe")
        _require(
            bool(self.features) == (self.feature_service is not None),
            self.name,
            "needs features if, and only if, it names a feature service",
        )
        _require(
            self.task == "regression" or len(self.target.classes) >= 2, self.name, "needs the names of its classes"
        )
        _require(self.task != "binary" or len(self.target.classes) == 2, self.name, "is binary and needs two classes")
        if self.default is not None:
            outputs = {f.name: f for f in self.outputs}
            _require(set(self.default) == set(outputs), self.name, f"needs a default for each of {sorted(outputs)}")
            wrong = [name for name, value in self.default.items() if not _fits(outputs[name], value)]
            _require(not wrong, self.name, f"has defaults that its outputs do not allow: {wrong}")

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        """Every declared field by name: request fields first, then features."""
        return {f.name: f for f in (*self.request, *self.features)}

    @property
    def score(self) -> Field:
        """The output that is judged."""
        return self.outputs[0]


def _fits(field: Field, value: Any) -> bool:
    """Tell whether a declared value is of the field's kind, shape and range."""
    if field.kind in ("float", "int", "tensor"):
        numbers: list[Any] = [value]
        for size in field.shape:
            if not all(isinstance(part, list | tuple) and len(part) == size for part in numbers):
                return False
            numbers = [inner for part in numbers for inner in part]
        low = -math.inf if field.minimum is None else field.minimum
        high = math.inf if field.maximum is None else field.maximum
        kinds = int if field.kind == "int" else (int, float)
        return all(
            isinstance(n, kinds) and not isinstance(n, bool) and math.isfinite(n) and low <= n <= high for n in numbers
        )
    if field.kind == "bool":
        return isinstance(value, bool)
    return isinstance(value, str) and (field.choices is None or value in field.choices)


def _doubles(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [n for n in names if n in seen or seen.add(n)]  # type: ignore[func-returns-value]


def _require(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise ContractError(f"The declaration of {name!r} {problem}.", remedy="Mend it in the plug-in's ModelSpec.")
