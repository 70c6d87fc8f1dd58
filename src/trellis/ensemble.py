"""The time-decayed ensemble: members trained on successive windows, weighted by how well they do on the newest rows.

Each retraining adds a member trained on the newest window and weighs all of them anew (Wang, Fan, Yu and Han, "Mining
Concept-Drifting Data Streams using Ensemble Classifiers", KDD 2003: a member's weight is how much better it is than
guessing). Where that paper takes the newest chunk as it is, rows here count the less the older they are, by half every
``decay_days``, as in Klinkenberg ("Learning drifting concepts", 2004). A member that is no better than guessing weighs
nothing, and is kept as long as there is room: where an old concept comes back, the member that knows it does too
(Brzezinski and Stefanowski, "Reacting to Different Types of Concept Drift", 2014, section III, on recurring drift).

An ensemble's artifact is its members' own artifacts, ``ensemble.json`` with their weights, and where the members export
ONNX one graph of those that weigh something, so that serving needs nothing new.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.contract import Batch, Dataset, ModelPlugin, ModelSpec, Predictor, select
from trellis.contract.spec import Task
from trellis.errors import ArtifactError, ContractError
from trellis.metrics import row_loss

ENSEMBLE = "ensemble.json"
_FOLDER = "members"


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    Attributes:
        name: Version that it was first part of, or ``new`` before it has one.
        until: Until when its training rows were known, RFC 3339; empty if unknown.
        predictor: What scores.
    """

    name: str
    until: str
    predictor: Predictor


@dataclass(frozen=True)
class Weight:
    """What a member counts for, with its arithmetic.

    Attributes:
        name, until: Of the member.
        loss: Its decayed mean loss on the newest rows, in the unit of ``trellis.metrics.row_loss``.
        guessing: The same of the best constant answer.
        weight: Share of the answer, in [0, 1]; the shares of all members sum to 1.
    """

    name: str
    until: str
    loss: float
    guessing: float
    weight: float


class EnsemblePredictor(Predictor):
    """The weighted mean of its members' outputs.

    Args:
        spec: The model's declaration.
        members: With their weights, the best first.

    Raises:
        ContractError: An output is no number, of which there is no mean.
    """

    def __init__(self, spec: ModelSpec, members: Sequence[tuple[Member, Weight]]) -> None:
        odd = [f.name for f in spec.outputs if f.kind not in ("float", "tensor")]
        if odd:
            raise ContractError(
                f"The outputs {odd} of {spec.name!r} have no mean.",
                remedy="Retrain by another method than ensemble, or declare them as float or tensor.",
            )
        self.spec = spec
        self.members = tuple(members)

    @property
    def heard(self) -> list[tuple[Predictor, float]]:
        """The members that weigh something, and their weights."""
        return [(member.predictor, weight.weight) for member, weight in self.members if weight.weight > 0]

    def predict(self, batch: Batch) -> Batch:
        """Score rows by every member that weighs something."""
        sums: dict[str, NDArray[Any]] = {}
        for predictor, weight in self.heard:
            answer = predictor.predict(batch)
            for output in self.spec.outputs:
                part = weight * np.asarray(answer[output.name], dtype=np.float64)
                sums[output.name] = part if output.name not in sums else sums[output.name] + part
        return sums

    def save(self, directory: Path) -> None:
        """Write every member's own files and ``ensemble.json``."""
        told = []
        for number, (member, weight) in enumerate(self.members):
            place = directory / _FOLDER / str(number)
            place.mkdir(parents=True)
            member.predictor.save(place)
            told.append(asdict(weight))
        (directory / ENSEMBLE).write_text(json.dumps({"members": told}, indent=1, sort_keys=True) + "\n")


def weigh(
    spec: ModelSpec, members: Sequence[Member], rows: Dataset, *, decay_days: float, most: int
) -> EnsemblePredictor:
    """Weigh members on the newest rows, none of which any of them was trained on, and keep the best.

    Args:
        spec: The model's declaration.
        members: The newest first; the newest is always kept.
        rows: Labelled rows, ``n`` of them, later than every member's training rows.
        decay_days: Half-life of a row's weight, in days; rows without a time count alike.
        most: How many members are kept.

    Returns:
        The ensemble, its members by falling weight.
    """
    age = _ages_days(rows)
    decay = 0.5 ** (age / decay_days)
    guess = guessing_loss(spec.task, rows.target, decay)
    batch = select(rows.columns, spec.inputs)
    losses = [
        float(np.average(row_loss(spec.task, rows.target, np.asarray(m.predictor.predict(batch)[spec.score.name])),
                         weights=decay))
        for m in members
    ]  # fmt: skip
    order = sorted(range(len(members)), key=lambda i: (i > 0, losses[i]))[:most]
    shares = member_weights([losses[i] for i in order], guess)
    weighed = [
        (members[i], Weight(members[i].name, members[i].until, losses[i], guess, share))
        for i, share in zip(order, shares, strict=True)
    ]
    return EnsemblePredictor(spec, sorted(weighed, key=lambda pair: -pair[1].weight))


def member_weights(losses: Sequence[float], guessing: float) -> list[float]:
    """Return shares in proportion to how much better than guessing each is; the first alone where none is.

    Args:
        losses: Mean loss by member.
        guessing: Mean loss of the best constant answer.
    """
    gains = [max(0.0, guessing - loss) for loss in losses]
    total = sum(gains)
    if total <= 0:
        return [1.0 if i == 0 else 0.0 for i in range(len(losses))]
    return [gain / total for gain in gains]


def guessing_loss(task: Task, target: NDArray[Any], weights: NDArray[np.float64]) -> float:
    """Return the weighted mean loss of the best constant answer: the shares of the classes, or the median.

    Args:
        task: The model's task.
        target: Truth, shape ``(n,)``.
        weights: Of the rows, shape ``(n,)``, above zero.
    """
    share = weights / weights.sum()
    if task == "regression":
        order = np.argsort(target, kind="stable")
        middle = target[order][np.searchsorted(np.cumsum(share[order]), 0.5)]
        return float(share @ np.abs(target - middle))
    shares = np.bincount(target.astype(np.int64), weights=share)
    # Brier loss of the shares themselves; for two classes that is p (1 - p), for more half of 1 - Σ p².
    return float((1.0 - (shares**2).sum()) / 2)


def load_artifact(plugin: ModelPlugin, directory: Path) -> Predictor:
    """Load an artifact's own files by the plug-in: those of a single model, or of an ensemble's members.

    Raises:
        ArtifactError: ``ensemble.json`` is none.
    """
    if not (directory / ENSEMBLE).exists():
        return plugin.load(directory)
    return EnsemblePredictor(plugin.spec, [(Member(w.name, w.until, p), w) for w, p in _stored(plugin, directory)])


def members_of(plugin: ModelPlugin, directory: Path, *, version: str, until: str) -> list[Member]:
    """Return the members in an artifact; one of a single model is a member itself.

    Args:
        plugin: The model's plug-in.
        directory: The artifact.
        version: The artifact's version.
        until: Until when the training rows of a single model, or of an ensemble's newest member, were known.

    Raises:
        ArtifactError: ``ensemble.json`` is none.
    """
    if not (directory / ENSEMBLE).exists():
        return [Member(version, until, plugin.load(directory))]
    found = _stored(plugin, directory)
    return [Member(version if w.name == "new" else w.name, w.until, p) for w, p in found]


def _stored(plugin: ModelPlugin, directory: Path) -> list[tuple[Weight, Predictor]]:
    path = directory / ENSEMBLE
    try:
        told: Sequence[Mapping[str, Any]] = json.loads(path.read_text())["members"]
        weights = [Weight(**one) for one in told]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"The ensemble's members cannot be read: {error}.", where=path, remedy="Train the version again."
        ) from error
    return [(weight, plugin.load(directory / _FOLDER / str(i))) for i, weight in enumerate(weights)]


def _ages_days(rows: Dataset) -> NDArray[np.float64]:
    if rows.time is None:
        return np.zeros(len(rows))
    return np.asarray((rows.time.max() - rows.time) / np.timedelta64(1, "D"), dtype=np.float64)
