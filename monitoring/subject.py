"""What is watched: a model's declaration, the version that answers and the baseline sealed with its artifact."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from trellis.contract import ModelSpec
from trellis.drift import REQUEST, Reference, declared_unit
from trellis.errors import DataError, RegistryError, TrellisError
from trellis.ledger import LossModel
from trellis.settings import Settings

REFERENCE_FILE = "reference.json"
LOSS_FILE = "performance.json"
ON_DEMAND = "on_demand"


@dataclass(frozen=True)
class Subject:
    """A model version under watch.

    Attributes:
        spec: The model's declaration.
        version: The version whose baseline this is.
        reference: Its training data, summarised.
        views: Feature view by column; ``request`` and ``on_demand`` for what no feature table holds.
        loss_models: What is expected of predictions without labels, by version; a version may lack it.
        services: Feature service by version, for those that read another than the champion.
    """

    spec: ModelSpec
    version: str
    reference: Reference
    views: Mapping[str, str]
    loss_models: Mapping[str, LossModel] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)

    def read_alike(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the predictions of versions that read the champion's feature service."""
        return frame[~frame["version"].isin(list(self.services))] if self.services else frame

    @property
    def units(self) -> dict[str, str]:
        """Declared unit by column, read from the fields' descriptions."""
        found = {name: declared_unit(item.description) for name, item in self.spec.fields.items()}
        return {name: unit for name, unit in found.items() if unit is not None}


def subject_of(model: str, settings: Settings) -> Subject:
    """Find the champion of a model, its baseline, and the thresholds and features that it was released with.

    Raises:
        UnknownModelError: No plug-in of that name.
        RegistryError: Nothing is deployed.
        DataError: The artifact holds no readable baseline.
    """
    # Late, so that rendering rules or metrics needs neither a database nor a plug-in.
    from trellis.adapters.plan_store import PlanStore
    from trellis.adapters.remote_artifacts import local_artifact
    from trellis.catalog import Catalogue
    from trellis.rollout import bound

    declared = Catalogue([settings.models]).plugin(model).spec
    plan = PlanStore(settings.database_url).current(model)
    if plan is None:
        raise RegistryError(
            f"{model!r} has no rollout plan.", where=settings.database_url, remedy="Deploy a version first."
        )
    champion = plan.champion
    spec = bound(declared, champion.release)
    path = local_artifact(champion.location, champion.digest, settings.directory()) / REFERENCE_FILE
    if champion.release is not None and champion.release.baseline:
        _require_same(path, champion.release.baseline)
    reference = watched(read_reference(path), spec)
    history = PlanStore(settings.database_url).history(model)
    seen = {
        v.version: (v.location, v.digest) for change in history for v in (*change.plan.variants, *change.plan.shadows)
    }
    models: dict[str, LossModel] = {}
    for version, (location, digest) in seen.items():
        with contextlib.suppress(TrellisError, OSError):  # an artifact that is gone, or older than loss models
            file = local_artifact(location, digest, settings.directory()) / LOSS_FILE
            models[version] = LossModel.loads(file.read_bytes(), where=file)
    services = {
        v.version: v.release.feature_service
        for change in history
        for v in change.plan.variants
        if v.release is not None and v.release.feature_service not in ("", spec.feature_service)
    }
    return Subject(
        spec, plan.champion.version, reference, views_of(spec, settings.home), loss_models=models, services=services
    )


def _require_same(path: Path, digest: str) -> None:
    """Refuse a baseline that is not the one the version was released with."""
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(
            "The drift baseline is not the one that the version was released with.",
            where=path,
            remedy="Restore the artifact's files; its digest is in the rollout plan.",
        )


def watched(reference: Reference, spec: ModelSpec) -> Reference:
    """Leave out the columns that the predictor does not see: they cannot hurt it, and every column costs sharpness."""
    columns = {name: column for name, column in reference.columns.items() if name.partition(".")[0] in spec.inputs}
    return replace(reference, columns=columns)


def read_reference(path: Path) -> Reference:
    """Read a baseline.

    Raises:
        DataError: It is not there, or is none.
    """
    try:
        return Reference.loads(path.read_bytes(), where=path)
    except OSError as error:
        raise DataError(
            f"The drift baseline cannot be read: {error.strerror or error}.",
            where=path,
            remedy="Train the version again.",
        ) from error


def views_of(spec: ModelSpec, home: Path) -> dict[str, str]:
    """Map every column to the feature view whose table holds it."""
    import pyarrow.parquet as pq

    tables = {path.stem: set(pq.read_schema(path).names) for path in sorted((home / "features").glob("*.parquet"))}
    views = {item.name: REQUEST for item in spec.request}
    for item in spec.features:
        views[item.name] = next((view for view, names in tables.items() if item.name in names), ON_DEMAND)
    for item in spec.fields.values():
        if item.kind == "tensor":
            views |= {f"{item.name}.{part}": views[item.name] for part in ("mean", "std")}
    return views
