"""What a model declares about itself: its fields and target, and how it is judged, rolled out and watched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from trellis.contract.policies import (
    DriftPolicy,
    GatePolicy,
    QualityPolicy,
    RetrainPolicy,
    RolloutPolicy,
    require,
)

FieldKind = Literal["float", "int", "bool", "category", "text", "timestamp", "tensor"]
Task = Literal["binary", "multiclass", "regression"]

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
        require(bool(_NAME.fullmatch(self.name)), self.name, "is not a lower snake case name")
        bounds = (self.minimum, self.maximum)
        require(None in bounds or bounds[0] <= bounds[1], self.name, f"has an empty range {bounds}")  # type: ignore[operator]
        require((self.kind == "tensor") == bool(self.shape), self.name, "needs a shape if, and only if, it is a tensor")
        require(self.choices is None or self.kind == "category", self.name, "has choices but is no category")


@dataclass(frozen=True)
class Target:
    """What is predicted and how its truth arrives.

    Attributes:
        name: The label's name.
        description: Its meaning in one sentence.
        classes: Names of the classes, negative first for a binary target; empty for regression.
        delay_hours: How long after the prediction the truth is usually known, in hours. What is known sooner counts
            from then on, so that quick truths are not taken for all.
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
        require(bool(_NAME.fullmatch(self.name)), self.name, "is not a lower snake case name")
        require(bool(self.owner and self.description), self.name, "needs an owner and a description")
        bounded = self.task != "regression" or self.rollout.strategy != "bandit"
        require(bounded, self.name, "cannot be rolled out by a bandit: its loss is not in [0, 1]")
        names = [f.name for f in (*self.request, *self.features)]
        require(len(names) == len(set(names)), self.name, f"declares a field twice: {_doubles(names)}")
        known, sent = set(names), {f.name for f in self.request}
        for part, used, among in (
            ("inputs", self.inputs, known),
            ("entity_keys", self.entity_keys, sent),
            ("segments", self.segments, known),
            ("time_field", (self.time_field,) if self.time_field else (), sent),
            ("rollout.unit", (self.rollout.unit,) if self.rollout.unit else (), sent),
        ):
            unknown = [name for name in used if name not in among]
            require(not unknown, self.name, f"names undeclared fields {unknown} in {part}")
        require(bool(self.inputs and self.outputs and self.recipes), self.name, "needs inputs, outputs and a recipe")
        require(
            bool(self.features) == (self.feature_service is not None),
            self.name,
            "needs features if, and only if, it names a feature service",
        )
        require(self.task == "regression" or len(self.target.classes) >= 2, self.name, "needs the names of its classes")
        require(self.task != "binary" or len(self.target.classes) == 2, self.name, "is binary and needs two classes")
        if self.default is not None:
            outputs = {f.name: f for f in self.outputs}
            require(set(self.default) == set(outputs), self.name, f"needs a default for each of {sorted(outputs)}")
            wrong = [name for name, value in self.default.items() if not _fits(outputs[name], value)]
            require(not wrong, self.name, f"has defaults that its outputs do not allow: {wrong}")

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
