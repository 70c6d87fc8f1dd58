"""How a predictor comes about: from nothing, or from a version that learns further rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trellis.adapters.onnx_ensemble import exportable
from trellis.adapters.remote_artifacts import local_artifact
from trellis.adapters.signing import verify_artifact
from trellis.contract import LearnsOnline, ModelPlugin, Predictor, TrainingData, TrainingRun
from trellis.ensemble import ENSEMBLE, Member, members_of, weigh
from trellis.errors import ContractError
from trellis.settings import settings


@dataclass(frozen=True)
class Start:
    """A version that learns further rows.

    Attributes:
        version: Which.
        path, digest: Its artifact.
        rows: Rows it learns at a time, in their order; 0 for all at once.
        members: A new member joins those of the version, so many at most; 0 lets the version itself learn.
        decay_days: Half-life of a row's weight where the members are weighed.
        until: Until when the version's training rows were known, RFC 3339.
        joined: Until when the new member's are.
    """

    version: str
    path: str
    digest: str
    rows: int = 0
    members: int = 0
    decay_days: float = 0.0
    until: str = ""
    joined: str = ""


def fit(plugin: ModelPlugin, data: TrainingData, run: TrainingRun, start: Start | None) -> Predictor:
    """Train a predictor from nothing, let a version learn further rows, or let a new member join it.

    Raises:
        ContractError: The plug-in's predictors learn no further rows.
        ArtifactError: The version's files are not what was sealed, or not signed where a key is configured.
    """
    if start is None:
        return plugin.train(data, run)
    if start.members:
        new = Member("new", start.joined, plugin.train(data, run))
        place = local_artifact(start.path, start.digest, settings().directory())
        verify_artifact(place, start.digest, settings().verify_key)
        older = members_of(plugin, place, version=start.version, until=start.until)
        rows = data.validation
        return exportable(weigh(plugin.spec, [new, *older], rows, decay_days=start.decay_days, most=start.members))
    if not isinstance(plugin, LearnsOnline):
        raise ContractError(
            f"The models of {plugin.spec.name!r} learn no further rows.",
            where=type(plugin).__module__,
            remedy="Give the plug-in the verb learn (trellis.contract.LearnsOnline), or retrain by another method.",
        )
    place = local_artifact(start.path, start.digest, settings().directory())
    verify_artifact(place, start.digest, settings().verify_key)
    if (place / ENSEMBLE).exists():
        raise ContractError(
            f"Version {start.version} of {plugin.spec.name!r} is an ensemble, which learns no further rows.",
            where=place,
            remedy="Retrain by the method ensemble, full or window.",
        )
    predictor = plugin.load(place)
    count = len(data.train)
    order = np.arange(count) if data.train.time is None else np.argsort(data.train.time, kind="stable")
    step = start.rows or count
    for first in range(0, count, step):
        rows = data.train.take(order[first : first + step])
        predictor = plugin.learn(predictor, TrainingData(rows, data.validation), run)
    return predictor
